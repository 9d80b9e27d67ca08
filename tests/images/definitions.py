"""What is written about images: docker-bake.hcl and the Dockerfiles, each read by a real parser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dockerfile
import hcl2
import yaml

ROOT = Path(__file__).parents[2]
BAKE = ROOT / "docker-bake.hcl"
BUDGET = ROOT / "images/budget.yaml"


@dataclass(frozen=True)
class Target:
    """A target of the Bake file, with what it inherits."""

    name: str
    dockerfile: Path
    stage: str = ""
    args: dict[str, str] = field(default_factory=dict)
    """Values as they are written: a variable's name, or a text."""
    contexts: dict[str, str] = field(default_factory=dict)
    """By the name that the Dockerfile uses: another target's."""
    written: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """A Dockerfile's build stages, in order."""

    file: Path
    arguments: dict[str, str | None]
    """Before the first FROM, by name: the default."""
    stages: list[Stage]

    @property
    def last(self) -> Stage:
        return self.stages[-1]


@dataclass(frozen=True)
class Stage:
    base: str
    name: str
    instructions: list[dockerfile.Command]

    def of(self, kind: str) -> list[dockerfile.Command]:
        return [each for each in self.instructions if each.cmd.upper() == kind]


def images() -> list[str]:
    """Every folder of images/ with a Dockerfile but base, which holds the floors below them."""
    return sorted(file.parent.name for file in ROOT.glob("images/*/Dockerfile") if file.parent.name != "base")


def dockerfiles() -> list[Path]:
    return sorted(ROOT.glob("images/*/Dockerfile"))


def read_dockerfile(file: Path) -> Image:
    arguments: dict[str, str | None] = {}
    stages: list[Stage] = []
    for each in dockerfile.parse_file(str(file)):
        if each.cmd.upper() == "FROM":
            name = each.value[2] if len(each.value) == 3 else ""
            stages.append(Stage(each.value[0], name, []))
        elif stages:
            stages[-1].instructions.append(each)
        else:
            assert each.cmd.upper() == "ARG", f"{file}: {each.original} before the first FROM"
            for argument in each.value:
                key, equals, value = argument.partition("=")
                arguments[key] = value if equals else None
    return Image(file, arguments, stages)


def read_bake() -> tuple[dict[str, str], dict[str, Target], list[str]]:
    """The Bake file's variables with their defaults, its targets but for those that are only inherited from, and the
    names of those that a plain `docker buildx bake` builds."""
    document = _plain(hcl2.loads(BAKE.read_text(encoding="utf-8")))
    variables = {name: body.get("default", "") for each in document["variable"] for name, body in each.items()}
    written = {name: body for each in document["target"] for name, body in each.items()}
    (group,) = (each["default"] for each in document["group"])

    def resolved(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"args": {}, "contexts": {}}
        for each in [*map(resolved, written[name].get("inherits", [])), written[name]]:
            merged = {key: found[key] | each.get(key, {}) for key in ("args", "contexts")}
            found = found | each | merged
        return found

    targets = {}
    for name in written:
        if name.startswith("_"):
            continue
        all_of = resolved(name)
        contexts = {key: value.removeprefix("target:") for key, value in all_of["contexts"].items()}
        targets[name] = Target(
            name, ROOT / all_of["dockerfile"], all_of.get("target", ""), all_of["args"], contexts, all_of
        )
    return variables, targets, group["targets"]


def budget_bytes() -> dict[str, int]:
    """The most that an image may hold, unpacked, by name."""
    return {
        name: int(megabytes) * 1_000_000
        for name, megabytes in yaml.safe_load(BUDGET.read_text(encoding="utf-8")).items()
    }


def _plain(value: Any) -> Any:
    """hcl2 keeps quotes around texts and notes of its own beside what was written."""
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return re.sub(r'^"(.*)"$', r"\1", value, flags=re.DOTALL) if isinstance(value, str) else value
