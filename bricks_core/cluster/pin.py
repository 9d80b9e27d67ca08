"""What a run began with: its settings with every default, the versions of functions, the code, and the images.

It is kept in a ConfigMap of the run that never changes, one for each generation of the run file and for each time the
run was begun again. So a chart that is upgraded later, a default that is another one then, or a moved tag changes
nothing of what is under way.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from pydantic import TypeAdapter

from bricks_core.errors import SpecError
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.items import KINDS
from bricks_core.spec.manifest import canonical_json
from bricks_core.spec.run import BrickRun, run_of
from bricks_core.spec.stages import STAGES, Stage
from bricks_core.storage.code_version import code_version

Object = dict[str, Any]

RETRY_ANNOTATION = "bricks.dev/retry"
"""Of a BrickRun: each new value lets a run that failed for good begin again, once (`bricks retry`). On a child: under
which value it was made."""
RENEW_ANNOTATION = "bricks.dev/renew"
"""The same, for doing again what the version of now would do otherwise (`bricks retry --renew`)."""
GENERATION_ANNOTATION = "bricks.dev/generation"
"""On a child: the run's generation when it was made. Children of versions before 0.2 have none."""
VERSION_ANNOTATION = "bricks.dev/version"
"""On a child: the version of its stage (spec/stages.py)."""
STOPS = ("suspend", "cancel")
NEVER_KEPT = (*STOPS, "notify")
"""The last is a secret: BrickRuns have none, and one that was stored before that was so is copied nowhere."""
_TAGS = ("kind", "family", "provider")
"""Fields that say which alternative an object is: of another one, defaults are others."""
_PLAIN = "pin.json"
_SETTINGS = "settings.json.gz"
"""Compressed: with what was written and what it came to it is twice the run file, and a ConfigMap holds 1 MiB."""
_MAX_SETTINGS_BYTES = 16 << 20


@dataclass(frozen=True)
class Pin:
    """What a run began with."""

    generation: int
    """Of the run file that `written` is."""
    first: int
    """The run's generation when it was first pinned."""
    at: str
    """When the run began, or was begun again: RFC 3339."""
    code: str
    versions: Mapping[str, int]
    """Of stages, by name."""
    kinds: Mapping[str, int]
    """Of items' functions, by kind."""
    images: Mapping[str, str]
    """By stage."""
    written: Object
    """The spec as its author wrote it."""
    resolved: Object
    """The same with every default."""
    preflight: Object
    retry: str = ""
    renew: str = ""
    config: str = field(default="", compare=False)
    """Name of the ConfigMap that keeps it; empty: none does yet."""
    renews: bool = field(default=False, compare=False)
    """It is begun again, and what this version of Bricks makes otherwise is not forgotten yet."""

    @classmethod
    def of_now(cls, raw: Object, run: BrickRun, profile: ClusterProfile, at: str) -> Self:
        """What a run that begins just now begins with."""
        meta = raw["metadata"]
        generation = int(meta.get("generation") or 0)
        resolved = run.model_dump(mode="json")["spec"]
        return cls(
            generation=generation,
            first=generation,
            at=at,
            code=code_version(),
            versions={stage.name: stage.version for stage in STAGES.values()},
            kinds={kind.name: kind.version for kind in KINDS.values()},
            images={stage: profile.images.of(stage) for stage in STAGES},
            written=_to_keep(raw["spec"]),
            resolved=_to_keep(resolved),
            preflight=profile.preflight.model_dump(mode="json", by_alias=True),
            retry=asked(raw, RETRY_ANNOTATION),
            renew=asked(raw, RENEW_ANNOTATION),
            renews=bool(asked(raw, RENEW_ANNOTATION)),
        )

    def followed(self, now: Self, raw: Object) -> Self:
        """What a run goes by after this: `now` is what it would begin with now, had it never begun.

        An edit of the run file changes what it says, and nothing else. `bricks retry` brings images and functions of
        now to what is not finished, `--renew` also this version's defaults.
        """
        if now.renew != self.renew:
            return replace(now, first=self.first)
        resolved = _to_keep(self.spec_of(raw))
        if now.retry != self.retry:
            return replace(now, first=self.first, resolved=resolved, renews=False)
        return replace(self, generation=now.generation, written=now.written, resolved=resolved, config="")

    def adopted(self, spec: Object | None) -> Self:
        """Of a run that an earlier version had begun, which kept nothing: its pods' run file is what it goes by, unless
        that is of before an edit."""
        if spec is None or not _has_all(spec, self.written):
            return self
        return replace(self, resolved=_to_keep(spec))

    def stage(self, name: str) -> Stage:
        """A stage in the version that the run began with."""
        stage = STAGES[name]
        return replace(stage, version=self.versions.get(name, stage.version))

    def spec_of(self, raw: Object) -> Object:
        """A run file's spec as it is written now, with the defaults that the run began with."""
        spec: Object = kept(_to_keep(raw["spec"]), self.written, self.resolved)
        return spec | {name: raw["spec"][name] for name in STOPS if name in raw["spec"]}

    def run_of(self, raw: Object) -> tuple[BrickRun, Object | None]:
        """The run with the defaults that it began with, and that spec; None for it where this version of Bricks cannot
        read it: then the run is as this version reads its file.

        Raises:
            SpecError: the file cannot be used.
        """
        spec = self.spec_of(raw)
        try:
            return run_of(raw | {"spec": spec}), spec
        except SpecError:
            return run_of(raw), None

    def data(self) -> Object:
        """As the ConfigMap has it."""
        plain = asdict(self)
        settings = {name: plain.pop(name) for name in ("written", "resolved")}
        del plain["config"], plain["renews"]
        # In the order of their fields: the run file that pods read is written in it.
        packed = gzip.compress(json.dumps(settings, ensure_ascii=False).encode(), mtime=0)
        return {
            "data": {_PLAIN: json.dumps(plain, indent=1) + "\n"},
            "binaryData": {_SETTINGS: b64encode(packed).decode()},
        }

    @classmethod
    def read(cls, config: Object) -> Self | None:
        """From a ConfigMap; None where somebody has damaged it. What a newer version adds to it is left out."""
        try:
            found = json.loads(config["data"][_PLAIN]) | json.loads(_unpacked(config["binaryData"][_SETTINGS]))
            known = {each.name: found[each.name] for each in fields(cls) if each.name in found}
            pin: Self = TypeAdapter(cls).validate_python(known | {"config": config["metadata"]["name"]})
            return pin
        except (KeyError, TypeError, ValueError, OSError, EOFError, zlib.error):
            return None


def _unpacked(packed: str) -> bytes:
    """Raises ValueError: it comes to more than any run file does."""
    with gzip.open(io.BytesIO(b64decode(packed))) as file:
        data = file.read(_MAX_SETTINGS_BYTES + 1)
    if len(data) > _MAX_SETTINGS_BYTES:
        raise ValueError("more than any run file")
    return data


def pin_name(run: str, uid: str, generation: int, retry: str, renew: str) -> str:
    """Of the ConfigMap that keeps what a run began with."""
    digest = hashlib.sha256(canonical_json([uid, generation, retry, renew])).hexdigest()[:10]
    return f"{run}-began-{digest}"


def pin_name_of(raw: Object, generation: int | None = None) -> str:
    """The same, of a BrickRun; `generation`: of an earlier one of it."""
    meta = raw["metadata"]
    of = int(meta.get("generation") or 0) if generation is None else generation
    return pin_name(meta["name"], meta["uid"], of, asked(raw, RETRY_ANNOTATION), asked(raw, RENEW_ANNOTATION))


def asked(raw: Object, annotation: str) -> str:
    """One of a BrickRun's annotations; empty: it has none."""
    return str((raw["metadata"].get("annotations") or {}).get(annotation) or "")


def kept(now: Any, written: Any, resolved: Any) -> Any:
    """What is written now, with the defaults that it had when `written` came to `resolved`.

    A list that is another one now is as it is written: which of its elements were there before, nobody can tell.
    """
    if now == written:
        return resolved
    if not (isinstance(now, dict) and isinstance(written, dict) and isinstance(resolved, dict)):
        return now
    if any(now.get(tag) != written.get(tag) for tag in _TAGS):
        return now
    whole: Object = {}
    for name in [*resolved, *(each for each in now if each not in resolved)]:
        if name in now and name in written:
            whole[name] = kept(now[name], written[name], resolved.get(name))
        elif name in now:
            whole[name] = kept(now[name], {}, resolved.get(name))
        elif name not in written:
            whole[name] = resolved[name]
    return whole


def _has_all(whole: Any, part: Any) -> bool:
    """Whether all that is in `part` is so in `whole`."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(value is None or _has_all(whole.get(name), value) for name, value in part.items())
    if isinstance(whole, list) and isinstance(part, list):
        return len(whole) == len(part) and all(map(_has_all, whole, part))
    return bool(whole == part)


def _to_keep(spec: Object) -> Object:
    return {name: value for name, value in spec.items() if name not in NEVER_KEPT}
