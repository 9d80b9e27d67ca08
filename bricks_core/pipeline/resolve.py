"""Where every stage's artifact of a run lies, and whether it is there.

A stage's cache key is made of its settings and of the artifacts that it reads, so it is known once these are there. The
artifact lies under that key, unless it depends on more than was known before it ran: then the run's points tell where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bricks_core.errors import CorruptManifest, DataError
from bricks_core.pipeline.compared import compared
from bricks_core.pipeline.points import Pointer, read_points
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.items import KINDS
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.manifest import (
    Manifest,
    Try,
    artifact_digest,
    cache_key,
    cache_key_then,
    canonical_json,
    versions_of,
)
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, Stage, until
from bricks_core.spec.strict import Strict, what_of
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import artifact_prefix, find_manifest
from bricks_core.storage.media_table import listed
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import begun, continued

Find = Callable[[Store, str, str], Manifest | None]


@dataclass(frozen=True)
class Address:
    """Where a stage's artifact of a run lies or will lie, and what its cache key is made of."""

    stage: Stage
    spec: Strict
    digest: str
    """The cache key, or where the artifact was found."""
    inputs: dict[str, str]
    """Digests of the artifacts that it reads, and fingerprints of what lies outside the store."""
    cache_key: str = ""
    made_by: str = ""
    """What an earlier version of Bricks that finished it did otherwise, such as 'clip 2 → 3'. It stays finished."""

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.stage.name, self.digest)

    def pointer(self) -> Pointer:
        return Pointer(
            stage=self.stage.name,
            digest=self.digest,
            cache_key=self.cache_key or self.digest,
            spec=self.spec.model_dump(mode="json"),
            inputs=self.inputs,
        )


Found = dict[str, tuple[Address, Manifest]]


class Resolver:
    """Looks a run's stages up, one after the other."""

    def __init__(self, run: BrickRun, store: Store, *, frozen: bool = False, find: Find = find_manifest):
        """`frozen`: sources and weights outside the store are taken to be as they were when this run, or the one it
        goes on from, looked at them last. `find`: for one who asks often, and keeps what was found."""
        self._run, self._store, self._frozen, self._find = run, store, frozen, find
        names = [run.name, *filter(None, [run.spec.inputs_of])]
        self._pointers = [read_points(store, name).stages for name in names]

    def address(self, stage: Stage, found: Found, *, kept: bool = True) -> Address:
        """A stage's address, given those of the stages that it reads; where it is known to lie, if the run points to
        it. `kept`: what an earlier version of Bricks has finished for the run counts, though this one would make it
        otherwise; also of single items.

        Raises:
            SpecError: a section or a source is missing.
        """
        spec = self._run.stage_spec(stage.name)
        needs = {need: found[need][0].digest for need in stage.needs}
        keyed = {need: found[need][1].read_as.get(stage.name) or needs[need] for need in stage.key_inputs}
        outside = self._outside_before(stage, spec) if self._frozen else None
        outside = outside_inputs(spec) if outside is None else outside
        if isinstance(spec, TrainSpec) and spec.continue_from:
            outside = outside | {"continue_from": continued(self._store, self._run.name, spec)}
        if isinstance(spec, EvaluateSpec) and spec.compare:
            before = self._outside_before(stage, spec) or {}
            if not (self._frozen and before):
                outside = outside | compared(self._store, spec, needs["latents"], before, is_here=not self._frozen)
        key = cache_key(stage, what_of(spec), keyed | outside)
        digest = artifact_digest(key, spec.shown) if isinstance(spec, TrainSpec) else key
        address = Address(stage, spec, digest, needs | outside, key)
        for pointers in self._pointers:
            pointer = pointers.get(stage.name)
            if pointer is None or not _shows_the_same(pointer, spec):
                continue
            if pointer.cache_key == key and (kept or not self._has_earlier_items(stage, pointer)):
                return replace(address, digest=pointer.digest)
            if kept and (made_by := self._made_by(stage, pointer, what_of(spec), keyed | outside)):
                return replace(address, digest=pointer.digest, cache_key=pointer.cache_key, made_by=made_by)
        return address

    def _made_by(self, stage: Stage, pointer: Pointer, settings: dict[str, Any], inputs: dict[str, str]) -> str:
        """What differs, where an artifact was asked for with the same settings and inputs, and made by another version
        of Bricks. Empty: it was not, or is not whole."""
        try:
            manifest = self._find(self._store, stage.name, pointer.digest)
        except CorruptManifest:
            return ""
        if manifest is None or cache_key_then(manifest, settings, inputs) != pointer.cache_key:
            return ""
        raised = [(stage.name, [manifest.stage_version], stage.version)]
        raised += [(name, versions_of(manifest, name), KINDS[name].version) for name in stage.kinds]
        return ", ".join(f"{name} {_in_a_row(then)} → {now}" for name, then, now in raised if then[-1] != now)

    def _has_earlier_items(self, stage: Stage, pointer: Pointer) -> bool:
        try:
            manifest = self._find(self._store, stage.name, pointer.digest)
        except CorruptManifest:
            return False
        return manifest is not None and bool(manifest.item_versions)

    def find(self, address: Address) -> Manifest | None:
        """The manifest at an address; None when it is not done.

        Raises:
            CorruptManifest: there is something else.
        """
        return self._find(self._store, address.stage.name, address.digest)

    def has_looked_at(self, stage: Stage, spec: Strict) -> bool:
        """Whether this run, or the one it goes on from, has been at a stage with these settings."""
        return self._outside_before(stage, spec) is not None

    def _outside_before(self, stage: Stage, spec: Strict) -> dict[str, str] | None:
        for pointers in self._pointers:
            pointer = pointers.get(stage.name)
            if pointer is not None and _same_settings(pointer, spec):
                return {name: each for name, each in pointer.inputs.items() if name not in STAGES}
        if isinstance(spec, TrainSpec):  # not finished: the run points to nothing, but has kept what it has begun
            for each in reversed(begun(self._store, self._run.name)):
                if _are_the_same(each.spec, spec):
                    # What it goes on from is looked up anew: see `address`.
                    return {name: of for name, of in each.inputs.items() if name not in ("latents", "continue_from")}
        return None


def address_alone(run: BrickRun, store: Store, stage: str, *, kept: bool = True) -> Address:
    """The address of a stage whose inputs are finished, for a job that does this stage alone. `kept`: see
    `Resolver.address`.

    Sources and weights outside the store that only earlier stages read are taken to be as they were then: this job need
    not reach them.

    Raises:
        SpecError: a section or a source is missing.
        DataError: an input is not finished.
    """
    before, found = Resolver(run, store, frozen=True), Found()
    for each in until(stage):
        if each.name == stage:
            return Resolver(run, store).address(each, found, kept=kept)
        if each.name == "ingest" and not before.has_looked_at(each, run.stage_spec(each.name)):
            raise DataError(
                f"Run {run.name} has not ingested these sources into {store.uri}: run bricks run or python -m "
                "jobs.ingest with this run file first."
            )
        address = before.address(each, found)
        manifest = before.find(address)
        if manifest is None:
            raise DataError(f"{each.name} is not finished: {store.uri} has no {address.prefix}manifest.json.")
        found[each.name] = address, manifest
    raise AssertionError("unreachable")


def finished(run: BrickRun, store: Store, find: Find = find_manifest) -> Found:
    """The stages of a run whose artifacts are in the store, from the first on, up to one that is not there, or that a
    changed limit makes pending.

    Asks for manifests alone, and looks at no source: for whoever watches a run from outside its pods.
    """
    resolver, found = Resolver(run, store, frozen=True, find=find), Found()
    for stage in until(None):
        if getattr(run.spec, stage.name) is None:
            break
        if stage.name == "ingest" and not resolver.has_looked_at(stage, run.spec.ingest):
            break
        address = resolver.address(stage, found)
        try:
            manifest = resolver.find(address)
        except CorruptManifest:  # the stage's own pods mend it, when they are run again
            break
        if manifest is None or pending_again(run, manifest):
            break
        found[stage.name] = address, manifest
    return found


def pending_again(run: BrickRun, manifest: Manifest) -> list[Try]:
    """What a limit stopped that is another one now."""
    return [each for each in manifest.pending if any(changed_limits(run, each))]


def changed_limits(run: BrickRun, each: Try) -> Iterator[str]:
    """The limits of a try that are others now, each as 'name: before → now'."""
    for name, before in each.limits.items():
        section, _, field = name.partition(".")
        now = getattr(getattr(run.spec, section, None), field, before)
        if float(now) != before:
            yield f"{name}: {before:g} → {float(now):g}"


def outside_inputs(spec: Strict) -> dict[str, str]:
    """Fingerprints of what a stage reads from outside the store: sources, and weights in local folders.

    A hub's id is not fingerprinted: spec.latents.codec.revision is what pins it.
    """
    match spec:
        case IngestSpec():
            return {"sources": _fingerprint(source.path for source in spec.sources)}
        case LatentsSpec():
            folders = {"codec.model": spec.codec.model, "text.model": spec.text.model}
            return {name: _fingerprint([path]) for name, path in folders.items() if path and Path(path).exists()}
        case EvaluateSpec():
            return {f"compare.{each}": _fingerprint([each]) for each in spec.compare if Path(each).exists()}
        case TrainSpec() if spec.init_from and Path(spec.init_from).exists():
            return {"init_from": _fingerprint([spec.init_from])}
    return {}


def _shows_the_same(pointer: Pointer, spec: Strict) -> bool:
    """Whether an artifact's tables tell of the same steps, of a training."""
    try:
        return not isinstance(spec, TrainSpec) or TrainSpec.model_validate(pointer.spec).shown == spec.shown
    except ValidationError:
        return False


def _in_a_row(versions: Iterable[int]) -> str:
    return ", ".join(map(str, versions))


def _same_settings(pointer: Pointer, spec: Strict) -> bool:
    """Whether an artifact was asked for with the same settings, as far as they change anything."""
    return _are_the_same(pointer.spec, spec)


def _are_the_same(before: dict[str, Any], spec: Strict) -> bool:
    try:
        return what_of(type(spec).model_validate(before)) == what_of(spec)
    except ValidationError:
        return False


def _fingerprint(paths: Iterable[str]) -> str:
    """One fingerprint of everything below some paths, or named in a table there: names, sizes and contents."""
    listing = [[path, file.name, file.size_bytes, file.fingerprint()] for path in paths for file in listed(path)]
    return hashlib.sha256(canonical_json(listing)).hexdigest()[:32]
