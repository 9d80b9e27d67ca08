"""What follows from the chart's values.yaml: its schema, and the table in its README.

    python -m helm.generate          write helm/bricks/values.schema.json and the table of helm/bricks/README.md
    python -m helm.generate --check  say whether they are as they would be written (exit 1: no)

A key's comment that begins with "# --" is its description in both. What the chart passes on to the cluster's profile is
typed by its pydantic model (bricks_core/spec/cluster.py), the rest by `SHAPES` and by the default itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bricks_core.spec.cluster import ENV_NAME, ClusterProfile

CHART = Path(__file__).parent / "bricks"
BEGIN, END = "<!-- values: python -m helm.generate writes them -->", "<!-- end of values -->"

Schema = dict[str, Any]

_NAME = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
_PORTS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_CIDRS: Schema = {"type": "array", "items": {"type": "string", "pattern": r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"}}
_QUANTITY: Schema = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
_DIGESTS: Schema = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}}
_ENV: Schema = _TEXTS | {"propertyNames": {"pattern": f"^({ENV_NAME.pattern})$"}}
_FREE: Schema = {"type": "object"}
_SHORT: Schema = {"type": "string", "pattern": r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 50}
_OBJECT_NAME: Schema = {"type": "string", "pattern": _NAME, "maxLength": 253}
_PULL_SECRETS: Schema = {
    "type": "array",
    "items": {
        "type": ["string", "object"],
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
        "additionalProperties": False,
    },
}

SHAPES: dict[str, Schema] = {
    "nameOverride": _SHORT,
    "fullnameOverride": _SHORT,
    "commonLabels": _TEXTS,
    "global.imagePullSecrets": _PULL_SECRETS,
    "images.digests": {
        "type": "object",
        "additionalProperties": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
    },
    "images.pullSecrets": _PULL_SECRETS,
    "pods.env": _ENV,
    "train.nccl": _ENV,
    "pods.hostUsers": {"type": "boolean"},
    "storage.mode": {"type": "string", "enum": ["s3", "pvc"]},
    "storage.s3.bucket": {"type": "string", "pattern": r"^$|^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"},
    "storage.s3.prefix": {"type": "string", "pattern": r"^[^:]*$"},
    "storage.s3.endpoint": {"type": "string", "pattern": r"^$|^https?://[^/]+"},
    "storage.s3.existingSecret": _OBJECT_NAME,
    "notify.existingSecret": _OBJECT_NAME,
    "notify.key": {"type": "string", "pattern": "^[-._a-zA-Z0-9]+$", "maxLength": 253},
    "storage.pvc.existingClaim": _OBJECT_NAME,
    "storage.pvc.size": _QUANTITY,
    "storage.pvc.accessModes": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "enum": ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]},
    },
    "storage.pvc.path": {"type": "string", "pattern": r"^[^:]*$"},
    "controller.extraArgs": {"type": "array", "items": {"type": "string"}},
    "controller.resources.requests.cpu": _QUANTITY,
    "controller.resources.requests.memory": _QUANTITY,
    "controller.resources.limits.cpu": _QUANTITY,
    "controller.resources.limits.memory": _QUANTITY,
    "controller.podAnnotations": _TEXTS,
    "controller.podLabels": _TEXTS,
    "controller.nodeSelector": _TEXTS,
    "controller.podSecurityContext": _FREE,
    "controller.securityContext": _FREE,
    "controller.affinity": _FREE,
    "serviceAccounts.controller.name": _OBJECT_NAME,
    "serviceAccounts.controller.annotations": _TEXTS,
    "serviceAccounts.stages.name": _OBJECT_NAME,
    "serviceAccounts.stages.annotations": _TEXTS,
    "serviceAccounts.ci.name": _OBJECT_NAME,
    "serviceAccounts.ci.annotations": _TEXTS,
    "networkPolicy.dns.ports": _PORTS,
    "networkPolicy.privateCidrs": _CIDRS,
    "networkPolicy.apiServer.cidrs": _CIDRS,
    "networkPolicy.apiServer.ports": _PORTS,
    "networkPolicy.store.cidrs": _CIDRS,
    "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
}
"""What a default alone does not tell. An object without `properties` here is Kubernetes' own, and any key may stand in
it: the API server checks it, and newer servers know more keys than we do."""

PROFILE = ("images", "secrets", "stages", "train", "preflight")
"""Passed on to the profile under the same names; `kueue.queues` and `pods` are under others, see `_in_profile`."""


@dataclass(frozen=True)
class Value:
    """A key of values.yaml that has a description: what a user sets."""

    path: tuple[str, ...]
    default: Any
    description: str

    @property
    def key(self) -> str:
        return ".".join(self.path)


def read_values(file: Path) -> list[Value]:
    """All values in the order of the file.

    Raises:
        SystemExit: a key that has no description, and no keys below it that have.
    """
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(_walk(root, yaml.safe_load(text), text.splitlines(), ()))


def _walk(node: yaml.Node | None, value: Any, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        here = (*path, key.value)
        description = _description(lines, key.start_mark.line)
        if description:
            yield Value(here, value[key.value], description)
        elif isinstance(child, yaml.MappingNode) and child.value:
            yield from _walk(child, value[key.value], lines, here)
        else:
            raise SystemExit(f"values.yaml: {'.'.join(here)} has no description: write a comment above it, # -- ….")


def _description(lines: list[str], line: int) -> str:
    """The comment directly above a key that begins with "# --", as one line."""
    words: list[str] = []
    for text in reversed(lines[:line]):
        text = text.strip()
        if not text.startswith("#"):
            return ""
        words.insert(0, text.lstrip("# "))
        if text.startswith("# -- "):
            return " ".join(words).removeprefix("-- ")
    return ""


def schema(values: list[Value]) -> Schema:
    """The JSON schema of the values. Closed: a key that the chart does not know is refused, but for `global`."""
    root = _object()
    for value in values:
        place = root
        for name in value.path[:-1]:
            place = place["properties"].setdefault(name, _object())
        place["properties"][value.path[-1]] = {"description": value.description} | _nullable(_shape(value))
    # Charts that have this one as a part put keys of their own there.
    root["properties"]["global"]["additionalProperties"] = True
    limits = root["properties"]["controller"]["properties"]["resources"]["properties"]
    for each in limits.values():
        each["properties"].setdefault("cpu", _nullable(_QUANTITY))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart bricks",
    } | root


def _object() -> Schema:
    return {"type": "object", "properties": {}, "additionalProperties": False}


def _shape(value: Value) -> Schema:
    if value.key in SHAPES:
        return SHAPES[value.key]
    of_profile = _in_profile(value.path)
    if of_profile is not None:
        return of_profile
    match value.default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case str():
            return {"type": "string"}
        case list():
            return _OBJECTS
    raise SystemExit(f"helm/generate.py: say in SHAPES what {value.key} is; its default does not tell.")


def _in_profile(path: tuple[str, ...]) -> Schema | None:
    """The profile's own schema of what is passed on to it; None: it is not passed on."""
    whole = ClusterProfile.model_json_schema(by_alias=True)
    if path[0] == "pods" or path[:2] == ("kueue", "queues"):
        path = path[1:]
    elif path[0] not in PROFILE:
        return None
    place = whole = _profile_schema()
    for name in path:
        place = _resolved(place, whole)
        place = place["properties"][name] if "properties" in place else place["additionalProperties"]
    return _plain(_resolved(place, whole), whole)


@cache
def _profile_schema() -> Schema:
    return ClusterProfile.model_json_schema(by_alias=True)


def _resolved(place: Schema, whole: Schema) -> Schema:
    reference = place.get("$ref")
    return whole["$defs"][reference.rsplit("/", 1)[-1]] if reference else place


def _plain(place: Schema, whole: Schema) -> Schema:
    """Without titles, defaults and references. Quantities may be numbers: --set memory=4 makes one of them."""
    if place.get("pattern") == _QUANTITY["pattern"]:
        return _QUANTITY
    kept = {
        key: value for key, value in place.items() if key not in ("title", "default", "description", "propertyNames")
    }
    for key in ("additionalProperties", "items"):
        if isinstance(kept.get(key), dict):
            kept[key] = _plain(_resolved(kept[key], whole), whole)
    return kept


def _nullable(shape: Schema) -> Schema:
    """The same, or null: that is how Helm unsets what a file before said."""
    made = dict(shape)
    if "type" in made:
        types = made["type"] if isinstance(made["type"], list) else [made["type"]]
        made["type"] = [*types, "null"]
    if "enum" in made:
        made["enum"] = [*made["enum"], None]
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = _nullable(made["additionalProperties"])
    return made


def table(values: list[Value]) -> str:
    """The README's tables, one for every key at the top."""
    lines: list[str] = []
    top = ""
    for value in values:
        group = value.path[0] if len(value.path) > 1 else "names"
        if value.path[0] == "extraObjects":
            group = "extraObjects"
        if group != top:
            top = group
            lines += ["", f"### {top}", "", "| key | default | what it is |", "|---|---|---|"]
        default = json.dumps(value.default, ensure_ascii=False)
        lines.append(f"| `{value.key}` | `{_cell(default)}` | {_prose(value.description)} |")
    return "\n".join(lines[1:]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _prose(text: str) -> str:
    return _cell(text).replace("<", r"\<")


def written(chart: Path = CHART) -> dict[Path, str]:
    """Every generated file of the chart and what must be in it."""
    values = read_values(chart / "values.yaml")
    readme = (chart / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        chart / "values.schema.json": json.dumps(schema(values), indent=2, ensure_ascii=False) + "\n",
        chart / "README.md": f"{before}{BEGIN}\n\n{table(values)}\n{END}{after}",
    }


def main(arguments: list[str]) -> int:
    stale = {
        file: text for file, text in written().items() if not file.exists() or file.read_text(encoding="utf-8") != text
    }
    if arguments == ["--check"]:
        for file in stale:
            print(f"{file} is not what values.yaml makes of it: python -m helm.generate")
        return 1 if stale else 0
    if arguments:
        print(__doc__)
        return 64
    for file, text in stale.items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
