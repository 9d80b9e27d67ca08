"""What a run would do, and why: for every stage whether its artifact is there, and what has changed if it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from bricks_core.errors import AlteredObject, CorruptManifest
from bricks_core.pipeline.began import earlier_versions, in_words, mixed_in_words
from bricks_core.pipeline.points import Pointer, read_pointer, read_points
from bricks_core.pipeline.resolve import Address, Found, Resolver, changed_limits, pending_again
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, Stage, until
from bricks_core.spec.strict import Strict, mark_of
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import problems
from bricks_core.storage.earlier import began_before, trained_before
from bricks_core.storage.store import Store
from bricks_core.storage.takedowns import Takedowns
from bricks_core.storage.trainings import Trajectory, begun_by_another_version, keyed, trainings_of

State = Literal["cached", "to run", "broken"]


@dataclass(frozen=True)
class Step:
    """One stage of a plan."""

    stage: Stage
    state: State
    why: list[str]
    address: Address | None = None
    """None: it depends on a stage that is to run."""
    manifest: Manifest | None = None
    wrong: list[AlteredObject | CorruptManifest] = field(default_factory=list)


def make_plan(run: BrickRun, store: Store, stop_after: str | None = None, *, thorough: bool = False) -> list[Step]:
    """What is there, what is to be done, and why. Reads manifests and looks at tables, and changes nothing.

    `thorough` reads every object to check it.
    """
    resolver, found = Resolver(run, store), Found()
    steps: list[Step] = []
    for stage in until(stop_after):
        if any(step.state != "cached" for step in steps):
            step = _later_step(run, store, stage, [step.stage.name for step in steps if step.state != "cached"])
        else:
            step = plan_stage(run, store, resolver, stage, found, items=False, thorough=thorough)
        if step.state == "cached" and step.address is not None and step.manifest is not None:
            found[stage.name] = step.address, step.manifest
        steps.append(step)
    return steps


def plan_stage(
    run: BrickRun,
    store: Store,
    resolver: Resolver,
    stage: Stage,
    found: Found,
    *,
    items: bool = True,
    thorough: bool = False,
    kept: bool = True,
) -> Step:
    """A stage whose inputs are found: whether its artifact is there. `items`: the files of its items are looked at, too
    (listed, not read). `kept`: see `Resolver.address`."""
    address = resolver.address(stage, found, kept=kept)
    try:
        manifest = resolver.find(address)
    except CorruptManifest as error:
        return Step(stage, "broken", [str(error)], address, wrong=[error])
    if manifest is None:
        why = _why(run, store, address, kept=kept)
        if isinstance(address.spec, TrainSpec):
            why += _where_training_begins(run, store, address.spec, address, found["latents"][1])
        if kept:
            why += in_words(earlier_versions(store, run.name, stage))
        return Step(stage, "to run", why, address)
    again = pending_again(run, manifest)
    if again:
        limits = "; ".join(dict.fromkeys(change for each in again for change in changed_limits(run, each)))
        if address.made_by:  # what is made now lies where this version looks for it
            address = resolver.address(stage, found, kept=False)
        return Step(stage, "to run", [f"{limits}: {len(again)} refused for it are tried again"], address)
    wrong = problems(store, manifest, items=items, thorough=thorough)
    if wrong:
        return Step(stage, "broken", [str(each) for each in wrong], address, manifest, list(wrong))
    renewed = [f"{address.made_by} since it was finished: --renew makes it anew"] if address.made_by else []
    older = [f"{each}: --renew makes the older ones anew" for each in mixed_in_words(manifest)]
    return Step(stage, "cached", renewed or older, address, manifest)


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


def _where_training_begins(
    run: BrickRun, store: Store, spec: TrainSpec, address: Address, latents: Manifest
) -> list[str]:
    """From which state a training goes on; and what the run had begun before, if it goes on from nothing of that."""
    outside = {name: each for name, each in address.inputs.items() if name not in STAGES}
    training = Trajectory(spec, keyed(latents, outside))
    other = begun_by_another_version(store, run.name, spec, keyed(latents, outside))
    if other is not None:
        return [
            f"{other.newest:,} of {spec.num_steps:,} steps were done by another version (train {other.begun.version}, "
            f"here {STAGES['train'].version}): train.continue_from: {run.name}@{other.newest}, or --renew"
        ]
    records = training.records(store)
    full = [step for step, record in records.items() if record.is_full and step]
    missing = [step for step in training.wanted() if step not in records]
    if full and missing and missing[0] > full[-1]:
        return [f"goes on from step {full[-1]:,} of {spec.num_steps:,}"]
    if full and missing:
        nearest = max((step for step in full if step <= missing[0]), default=0)
        return [f"checkpoints after {len(missing)} more steps, from {missing[0]:,} on, made from step {nearest:,}"]
    if full:
        return ["all its checkpoints are there"]
    if "continue_from" in outside:
        return [f"begins with {outside['continue_from'].rstrip('/')}"]
    before = next((each for each in trainings_of(store, run.name) if each.newest), None)
    if before is None:
        pointer = read_pointer(store, run.name, "train")
        digests = [address.cache_key, *([pointer.digest] if pointer else [])]
        earlier = "" if spec.init_from else trained_before(store, run.name, digests)
        return [earlier] if earlier else []
    begins = f"begins at step 0: with these settings, data or version the {before.newest:,} steps done"
    if any("train" in mark.latents.get(before.begun.latents, ()) for mark in Takedowns.of(store).marks.values()):
        return [f"{begins} would have been others, and they learnt from what was taken down"]
    return [
        f"{begins} would have been others; train.continue_from: {run.name}@{before.newest} takes what they have learnt"
    ]


def _later_step(run: BrickRun, store: Store, stage: Stage, pending: list[str]) -> Step:
    """A stage after one that is to run: its inputs are not known yet. If the same come out, it is found
    done, and if not, only what is missing is made."""
    before = read_pointer(store, run.name, stage.name)
    own = _settings_changed(before, stage.name, run.stage_spec(stage.name)) if before else []
    return Step(stage, "to run", own or [f"{need} may change" for need in stage.needs if need in pending])


def _why(run: BrickRun, store: Store, address: Address, *, kept: bool) -> list[str]:
    """What differs between the artifact a run had and the one it needs."""
    before, name = read_pointer(store, run.name, address.stage.name), address.stage.name
    if before is None:
        if not read_points(store, run.name).stages and began_before(store, run.name, name):
            return ["done by an earlier version of Bricks: bricks store upgrade, before this run, makes use of that"]
        return ["first time"]
    why = _settings_changed(before, name, address.spec)
    outside = address.inputs.keys() - set(STAGES)
    why += [f"{each} changed" for each in sorted(outside) if before.inputs.get(each) != address.inputs[each]]
    if not why:
        needs = address.stage.needs
        why = [f"{need} has changed" for need in needs if before.inputs.get(need) != address.inputs[need]]
    if not why and isinstance(address.spec, TrainSpec):
        was = TrainSpec.model_validate(before.spec).shown
        why = [f"{name}.{each}" for each in differences(was, address.spec.shown)]
    if not why:
        unfinished = "not finished yet" if kept else "what earlier versions have made of it is made anew"
        why = [unfinished] if before.cache_key == address.cache_key else [f"{name} is at a new version"]
    return why


def _settings_changed(before: Pointer, name: str, spec: Strict) -> list[str]:
    """The settings that differ from those before. Only *what*: no *how* is a reason to run."""
    try:
        was = type(spec).model_validate(before.spec)
    except ValidationError:  # as an earlier version understood it
        return [f"{name}.{each}" for each in differences(before.spec, spec.model_dump(mode="json"))]
    return [f"{name}.{each}" for each in differences(_what(was), _what(spec))]


def _what(value: Any) -> Any:
    """All settings that change the answer, those at their defaults, too, as JSON values."""
    if isinstance(value, Strict):
        marks = {name: mark_of(field) for name, field in type(value).model_fields.items()}
        return {name: _what(getattr(value, name)) for name, mark in marks.items() if mark and mark.word == "what"}
    if isinstance(value, list | tuple):
        return [_what(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _what(each) for name, each in value.items()}
    return to_jsonable_python(value)


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
