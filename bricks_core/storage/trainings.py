"""Trainings in the store: trajectories of committed states, and which of them a run has begun.

    trainings/<key>/step-000250-<rates>/    a state: everything that a training needs to go on from there
        weights.safetensors                 names as in the published checkpoint, so that any tool for those reads it
        ema.safetensors                     the same names
        config.json                         the network's shape
        optimizer.safetensors               both moments of every weight, and the random generators' states
        state.json                          step, phase, schedule position, what it goes with
        losses.safetensors                  losses and gradient norms of every step so far
        checkpoint.json                     written last: the other files with their sha256
    runs/<run>/trainings.json               the trainings that a run has begun, the newest last

A state is a function of what was trained up to its step, and of nothing that comes later. So the key of a phase's
states leaves out how many steps the phase has, and their names tell the learning rates of the steps done instead of the
schedule that gave them: a longer phase, a further one, or a schedule that differs only in what comes finds them.
Intervals (of logs, checkpoints, measurements) are in no key either: a run only says which steps it wants. Held-out
losses of a state are items of their own (kind `held_out`).
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

from pydantic import Field, ValidationError

from bricks_core.errors import DataError, NoSuchObject, SpecError
from bricks_core.spec.items import Recipe, recipe
from bricks_core.spec.manifest import Manifest, StoredObject, canonical_json
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Strict, what_of
from bricks_core.spec.train import Phase, TrainBucket, TrainSpec
from bricks_core.storage.store import Store

log = logging.getLogger("bricks")

ROOT = "trainings/"
COMMIT = "checkpoint.json"
WEIGHTS, EMA, OPTIMIZER = "weights.safetensors", "ema.safetensors", "optimizer.safetensors"
_FOLDER = re.compile(r"trainings/[0-9a-f]{32}/step-[0-9]{6,}-[0-9a-f]{8}/")
_MAX_BEGUN = 100
# Phases are in the key one by one; what is gone on from is there as a state, whatever it was called.
_NOT_TRAINED_WITH = ("phases", "continue_from", "held_out")


class Record(Strict):
    """checkpoint.json of a state."""

    step: int = Field(ge=0)
    phase: str
    folder: str = Field(pattern=_FOLDER.pattern)
    """From the store's root."""
    is_wanted: bool
    """By a run, for its tables; else it is there because a signal stopped the training."""
    ends_phase: bool = False
    """Of the run that made it: its optimizer is kept for good, so that a longer run goes on from here."""
    files: list[StoredObject]
    """Keys from the store's root."""

    @property
    def is_full(self) -> bool:
        """Whether training can go on from it."""
        return any(file.key == self.folder + OPTIMIZER for file in self.files)

    def file(self, name: str) -> StoredObject:
        return next(file for file in self.files if file.key == self.folder + name)


@dataclass(frozen=True)
class _Stretch:
    """A phase's part of a trajectory."""

    phase: Phase
    key: str
    begin: int
    """Steps done before it."""
    rates: list[str]
    """After so many steps of it: a hash of their learning rates."""

    @property
    def end(self) -> int:
        return self.begin + self.phase.steps


class Trajectory:
    """The states that a training with these settings goes through, whether they are there or not."""

    def __init__(self, spec: TrainSpec, inputs: Mapping[str, str], *, version: int | None = None):
        """`inputs`: what is read of the latents, and fingerprints of what lies outside the store (see `keyed`).
        `version`: of the stage; None: this code's."""
        self.spec = spec
        version = version or STAGES["train"].version
        base = {name: each for name, each in what_of(spec).items() if name not in _NOT_TRAINED_WITH}
        before: list[Any] = []
        self._stretches: list[_Stretch] = []
        begin = 0
        for phase in spec.phases:
            what = {name: each for name, each in what_of(phase).items() if name not in ("steps", "schedule")}
            whole = {
                "version": version or STAGES["train"].version,
                "settings": base,
                "inputs": dict(inputs),
                "phase": what,
            }
            key = hashlib.sha256(canonical_json(whole | {"before": before})).hexdigest()[:32]
            rates = list(_hashes(phase))
            self._stretches.append(_Stretch(phase, key, begin, rates))
            before = [*before, {"phase": what, "steps": phase.steps, "rates": rates[-1]}]
            begin += phase.steps

    @cached_property
    def batch(self) -> str:
        """What is claimed by whoever is at it: of trainings that differ in what comes later, one at a time."""
        first = self._stretches[0]
        name = canonical_json([first.key, what_of(first.phase)["schedule"]])
        return f"train/{hashlib.sha256(name).hexdigest()[:32]}"

    def folder(self, step: int) -> str:
        """Where the state after `step` steps lies or would lie."""
        stretch = self._stretch(step)
        return f"{ROOT}{stretch.key}/step-{step:06d}-{stretch.rates[step - stretch.begin]}/"

    def ends_phase(self, step: int) -> bool:
        return any(step == stretch.end for stretch in self._stretches)

    def wanted(self) -> list[int]:
        """Steps of the checkpoints that tables name: every so many, before the first and after the last of a phase."""
        every, ends = self.spec.checkpoint_every_steps, {stretch.end for stretch in self._stretches}
        return sorted({*range(0, self.spec.num_steps + 1, every), *ends})

    def measured(self) -> list[int]:
        """Steps at which the held-out loss is wanted."""
        return sorted({*range(0, self.spec.num_steps + 1, self.spec.held_out.every_steps), self.spec.num_steps})

    def measure(self, step: int, bucket: TrainBucket) -> Recipe:
        """The key of the held-out losses of a state in one bucket."""
        asked = what_of(bucket, "num_frames", "resolution", "frame_interval")
        return recipe("held_out", state=self.folder(step), bucket=asked, settings=what_of(self.spec.held_out))

    def records(self, store: Store) -> dict[int, Record]:
        """The committed states of it, by step, the first step first."""
        found: dict[int, Record] = {}
        for stretch in self._stretches:
            keys = (entry.key for entry in store.list(f"{ROOT}{stretch.key}/") if entry.key.endswith(f"/{COMMIT}"))
            for key, data in store.get_many(keys):
                if (record := _opened(key, data)) is not None:
                    on_path = record.step <= self.spec.num_steps and self._stretch(record.step) is stretch
                    if on_path and record.folder == self.folder(record.step):
                        found[record.step] = record
        return dict(sorted(found.items()))

    def prefixes(self) -> list[str]:
        """Where its states lie, among others that differ from it in what comes later."""
        return [f"{ROOT}{stretch.key}/" for stretch in self._stretches]

    def _stretch(self, step: int) -> _Stretch:
        return next(stretch for stretch in self._stretches if step <= stretch.end)


def _hashes(phase: Phase) -> Iterator[str]:
    """A hash of the learning rates of no step, of one, of two, …"""
    rates = hashlib.sha256()
    yield rates.hexdigest()[:8]
    for step in range(phase.steps):
        rates.update(struct.pack("<d", phase.schedule.rate(step)))
        yield rates.hexdigest()[:8]


def _opened(key: str, data: bytes | None) -> Record | None:
    folder = key.removesuffix(COMMIT)
    try:
        record = None if data is None else Record.model_validate_json(data)
    except ValidationError:
        record = None
    if record is None or record.folder != folder or any(not file.key.startswith(folder) for file in record.files):
        log.warning("train: %s is no record of a checkpoint, so that checkpoint is not used.", key)
        return None
    return record


# ------------------------------------------------------------------------------------------- what a run has begun


class Begun(Strict):
    """A training that a run has begun."""

    spec: dict[str, Any]
    inputs: dict[str, str]
    """What its trajectory's key is made of beside the settings."""
    latents: str = Field(pattern="^[0-9a-f]+$")
    """Digest of the artifact that it reads."""
    places: list[str]
    """What the keys of its states begin with."""
    version: int
    """Of the stage."""
    at: datetime

    def trajectory(self) -> Trajectory | None:
        """None: this version of Bricks cannot read its settings."""
        try:
            return Trajectory(TrainSpec.model_validate(self.spec), self.inputs, version=self.version)
        except ValidationError:
            return None


class _AllBegun(Strict):
    trainings: list[Begun] = Field(default=[], max_length=_MAX_BEGUN)


@dataclass(frozen=True)
class Training:
    """A training that a run has begun, and the states that it has."""

    begun: Begun
    trajectory: Trajectory
    records: dict[int, Record]

    @property
    def is_finished(self) -> bool:
        return self.trajectory.spec.num_steps in self.records

    @property
    def newest(self) -> int:
        """Steps done in the newest state that can be gone on from; 0: there is none."""
        return max((step for step, record in self.records.items() if record.is_full), default=0)


def sampling_batch(weights: str) -> str:
    """What is claimed by whoever samples from a file of weights, named by its key."""
    return f"sample/{hashlib.sha256(weights.encode()).hexdigest()[:32]}"


def keyed(latents: Manifest, outside: Mapping[str, str]) -> dict[str, str]:
    """What a trajectory's key is made of beside the settings: what training reads of the latents, and fingerprints of
    what lies outside the store."""
    return {"latents": latents.read_as.get("train", latents.digest)} | dict(outside)


def trainings_key(run: str) -> str:
    return f"runs/{run}/trainings.json"


def begun(store: Store, run: str) -> list[Begun]:
    """The trainings that a run has begun, the newest last; none where that cannot be read."""
    try:
        return _AllBegun.model_validate_json(store.get(trainings_key(run))).trainings
    except (NoSuchObject, ValidationError):
        return []


def begin(store: Store, run: str, spec: TrainSpec, inputs: Mapping[str, str], latents: str) -> None:
    """Keep that a run has begun a training. Written only where it is another than the last."""
    version = STAGES["train"].version
    new = Begun(
        spec=spec.model_dump(mode="json"),
        inputs=dict(inputs),
        latents=latents,
        places=Trajectory(spec, inputs).prefixes(),
        version=version,
        at=datetime.now(UTC),
    )
    before = begun(store, run)
    if before and before[-1].model_copy(update={"at": new.at}) == new:
        return
    kept = [each for each in before if each.model_copy(update={"at": new.at}) != new]
    data = _AllBegun(trainings=[*kept, new][-_MAX_BEGUN:]).model_dump_json(indent=1)
    store.put(trainings_key(run), data.encode())


def trainings_of(store: Store, run: str) -> Iterator[Training]:
    """The trainings that a run has begun, the newest first, with the states that are there.

    Those whose settings this version of Bricks cannot read are left out.
    """
    for each in reversed(begun(store, run)):
        if (trajectory := each.trajectory()) is not None:
            yield Training(each, trajectory, trajectory.records(store))


def begun_by_another_version(store: Store, run: str, spec: TrainSpec, inputs: Mapping[str, str]) -> Training | None:
    """The run's last training, where it is this very one, another version of the stage has begun it, and it is not
    finished: what comes of its states in this version is not what they promise."""
    last = next(trainings_of(store, run), None)
    if last is None or last.begun.version == STAGES["train"].version or last.is_finished or not last.newest:
        return None
    same = what_of(last.trajectory.spec) == what_of(spec) and last.begun.inputs == dict(inputs)
    return last if same else None


def forget(store: Store, run: str) -> None:
    """Let a run have begun no training of another version. The states stay, for whoever names them."""
    kept = [each for each in begun(store, run) if each.version == STAGES["train"].version]
    if kept != begun(store, run):
        store.put(trainings_key(run), _AllBegun(trainings=kept).model_dump_json(indent=1).encode())


def forget_places(store: Store, run: str, places: Collection[str]) -> None:
    """Let a run have begun no training whose states lie in one of these places."""
    before = begun(store, run)
    kept = [each for each in before if not set(each.places) & set(places)]
    if kept != before:
        store.put(trainings_key(run), _AllBegun(trainings=kept).model_dump_json(indent=1).encode())


# ---------------------------------------------------------------------------------------------- going on from another


@dataclass(frozen=True)
class Reference:
    """A state of a run's training, as RUN or RUN@STEP."""

    run: str
    step: int | None

    @classmethod
    def of(cls, text: str) -> Self:
        """Raises SpecError: it is neither."""
        match = re.fullmatch(r"([^@/]+)(?:@(\d+))?", text)
        if match is None:
            raise SpecError(f"train.continue_from is {text!r}: write RUN or RUN@STEP, such as first@4000.")
        return cls(match[1], int(match[2]) if match[2] else None)


def continued(store: Store, run: str, spec: TrainSpec) -> str:
    """The folder of the state that a run's training goes on from.

    What it has begun from stays what it goes on from, though the other run goes on too.

    Raises:
        SpecError: there is no such state.
    """
    for each in reversed(begun(store, run)):
        if "continue_from" in each.inputs and _begins_the_same(each.spec, spec):
            return each.inputs["continue_from"]
    wanted = Reference.of(spec.continue_from)
    seen: Sequence[int] = ()
    for training in trainings_of(store, wanted.run):
        full = [step for step, record in training.records.items() if record.is_full]
        step = max(full, default=None) if wanted.step is None else wanted.step if wanted.step in full else None
        if step is not None:
            return training.records[step].folder
        seen = seen or full
    have = f"has those after steps {', '.join(map(str, seen))}: name one of these" if seen else "has none"
    raise SpecError(
        f"train.continue_from is {spec.continue_from}, and {store.uri} has no such state of run {wanted.run} with its "
        f"optimizer; it {have}, or leave continue_from out to begin from the start."
    )


def state_at(store: Store, folder: str) -> Record | None:
    """The state in a folder; None where it is gone. It may have no optimizer any more."""
    key = folder + COMMIT
    ((_, data),) = store.get_many([key])
    return None if data is None else _opened(key, data)


def record_at(store: Store, folder: str) -> Record:
    """The state in a folder, to go on from.

    Raises:
        DataError: it is gone.
    """
    record = state_at(store, folder)
    if record is None or not record.is_full:
        raise DataError(f"{folder} is gone, or has no optimizer any more: the training cannot go on from it.")
    return record


def _begins_the_same(before: dict[str, Any], spec: TrainSpec) -> bool:
    """Whether two trainings differ at most in how long their phases are, and in which come later."""
    try:
        was = TrainSpec.model_validate(before)
    except ValidationError:
        return False
    return _beginning(was) == _beginning(spec)


def _beginning(spec: TrainSpec) -> list[Any]:
    base = {name: each for name, each in what_of(spec).items() if name != "phases"}
    return [base, {name: each for name, each in what_of(spec.phases[0]).items() if name != "steps"}]
