"""What a run would do, and why: every stage's address, and whether its answer is already there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, DataError, NoSuchObject
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.manifest import Manifest, artifact_digest, canonical_json
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import Stage, until
from bricks_core.spec.strict import Strict
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import artifact_prefix, find_manifest, problems
from bricks_core.storage.media_table import listed
from bricks_core.storage.store import Store

State = Literal["cached", "to run", "broken"]


class Pointer(Strict):
    """runs/<run>/<stage>.json: which artifact a run has, and the question that it answers."""

    stage: str
    digest: str
    spec: dict[str, Any]
    inputs: dict[str, str]


@dataclass(frozen=True)
class Address:
    """Where a stage's artifact of a run lies, and the inputs that its digest is made of."""

    stage: Stage
    spec: Strict
    digest: str
    inputs: dict[str, str]

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.stage.name, self.digest)

    def pointer(self) -> Pointer:
        return Pointer(
            stage=self.stage.name, digest=self.digest, spec=self.spec.model_dump(mode="json"), inputs=self.inputs
        )


@dataclass(frozen=True)
class Step:
    """One stage of a plan."""

    address: Address
    state: State
    why: list[str]
    manifest: Manifest | None = None
    num_parts: int = 0
    """Items that an earlier, unfinished try has done."""
    wrong: list[AlteredObject | CorruptManifest] = field(default_factory=list)


def pointer_key(run: str, stage: str) -> str:
    """Where a run points to one of its artifacts."""
    return f"runs/{run}/{stage}.json"


def read_pointer(store: Store, run: str, stage: str) -> Pointer | None:
    """The artifact a run had last, or None. One that cannot be read counts as none: it is only a pointer."""
    try:
        return Pointer.model_validate_json(store.get(pointer_key(run, stage)))
    except (NoSuchObject, ValidationError):
        return None


def point(run: str, store: Store, address: Address) -> None:
    """Let a run point to an artifact. Written only when it says something new, so that nothing to do writes nothing."""
    pointer = address.pointer().model_dump_json(indent=1).encode()
    key = pointer_key(run, address.stage.name)
    if store.head(key) is None or store.get(key) != pointer:
        store.put(key, pointer)


def addresses(run: BrickRun, store: Store, stop_after: str | None = None, *, frozen: bool = False) -> list[Address]:
    """The address of every stage up to `stop_after`.

    Sources and weights outside the store are looked at now; with `frozen`, the stages before the last one (and ingest)
    are taken to have answered for what lay there when they ran, so that a later stage's job needs no look at it.

    Raises:
        SpecError: a section or a source is missing.
        DataError: `frozen`, and this run has never ingested these sources.
    """
    found: dict[str, Address] = {}
    stages = until(stop_after)
    for stage in stages:
        spec = run.stage_spec(stage.name)
        inputs = {name: found[name].digest for name in stage.needs}
        answered = None
        if frozen and (stage is not stages[-1] or stage.name == "ingest"):
            answered = _answered(run, store, stage, spec, inputs)
            if answered is None and stage.name == "ingest":
                raise DataError(
                    f"Run {run.name} has not ingested these sources into {store.uri}: run bricks run or python -m "
                    "jobs.ingest with this run file first."
                )
        inputs = inputs | outside_inputs(spec) if answered is None else answered.inputs
        found[stage.name] = Address(stage, spec, artifact_digest(stage, spec, inputs), inputs)
    return list(found.values())


def finished(
    run: BrickRun, store: Store, find: Callable[[Store, str, str], Manifest | None] = find_manifest
) -> dict[str, tuple[Address, Manifest]]:
    """The stages of a run whose artifacts are in the store, from the first on, up to one that is not there.

    Asks for manifests alone, and looks at no source: for whoever watches a run from outside its pods. `find` is for
    one who asks often, and keeps what was found.
    """
    done: dict[str, tuple[Address, Manifest]] = {}
    for stage in until(None):
        spec = getattr(run.spec, stage.name)
        if spec is None:
            break
        inputs = {name: done[name][0].digest for name in stage.needs}
        answered = _answered(run, store, stage, spec, inputs)
        if answered is None and stage.name == "ingest":
            break
        inputs = inputs | outside_inputs(spec) if answered is None else answered.inputs
        address = Address(stage, spec, artifact_digest(stage, spec, inputs), inputs)
        try:
            manifest = find(store, stage.name, address.digest)
        except CorruptManifest:  # the stage's own pods mend it, when they are run again
            break
        if manifest is None:
            break
        done[stage.name] = address, manifest
    return done


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
        case TrainSpec() if spec.init_from and Path(spec.init_from).exists():
            return {"init_from": _fingerprint([spec.init_from])}
    return {}


def make_plan(run: BrickRun, store: Store, stop_after: str | None = None, *, thorough: bool = False) -> list[Step]:
    """What is there, what is to be done, and why. Reads the store, changes nothing."""
    steps = []
    reruns: dict[str, str] = {}
    for address in addresses(run, store, stop_after):
        name = address.stage.name
        step = _step(run, store, address, thorough)
        if step.state != "cached":
            causes = [f"{need} runs again" for need in address.stage.needs if need in reruns]
            why = step.why or causes or ["no artifact at this address"]
            step = Step(address, step.state, why, step.manifest, step.num_parts, step.wrong)
            reruns[name] = step.state
        steps.append(step)
    return steps


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The fields in which two specs differ, each as 'path: before → after'."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}.{place}")
    elif before != after:
        yield f"{path}: {_short(before)} → {_short(after)}"


def _step(run: BrickRun, store: Store, address: Address, thorough: bool) -> Step:
    name = address.stage.name
    try:
        manifest = find_manifest(store, name, address.digest)
    except CorruptManifest as error:
        return Step(address, "broken", [str(error)], wrong=[error])
    if manifest is not None:
        wrong = problems(store, manifest, thorough=thorough)
        if not wrong:
            return Step(address, "cached", [], manifest)
        return Step(address, "broken", [str(each) for each in wrong], manifest, wrong=list(wrong))
    num_parts = sum(1 for _ in store.list(address.prefix + "parts/"))
    before = read_pointer(store, run.name, name)
    why = _changes(before, address) if before else ["first time"]
    return Step(address, "to run", why, num_parts=num_parts)


def _changes(before: Pointer, address: Address) -> list[str]:
    """What differs between the artifact a run had and the one it needs, in what the stage itself is given."""
    name = address.stage.name
    why = [f"{name}.{each}" for each in differences(before.spec, address.spec.model_dump(mode="json"))]
    outside = address.inputs.keys() - set(address.stage.needs)
    why += [f"{each} changed" for each in sorted(outside) if before.inputs.get(each) != address.inputs[each]]
    if not why and before.inputs == address.inputs:
        why = ["not finished yet"] if before.digest == address.digest else [f"{name} is at a new version"]
    return why


def _answered(run: BrickRun, store: Store, stage: Stage, spec: Strict, inputs: dict[str, str]) -> Pointer | None:
    """The pointer of the run, or of the run it goes on from, to an artifact that answers this question as far as the
    store is concerned."""
    wanted = spec.model_dump(mode="json")
    for name in filter(None, (run.name, run.spec.inputs_of)):
        pointer = read_pointer(store, name, stage.name)
        if pointer is None or pointer.spec != wanted:
            continue
        if {need: pointer.inputs.get(need) for need in stage.needs} == inputs:
            return pointer
    return None


def _fingerprint(paths: Any) -> str:
    """One fingerprint of everything below some paths, or named in a table there: names, sizes and contents."""
    listing = [[path, file.name, file.size_bytes, file.fingerprint()] for path in paths for file in listed(path)]
    return hashlib.sha256(canonical_json(listing)).hexdigest()[:32]


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
