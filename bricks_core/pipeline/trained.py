"""What a run has trained, finished or not: the states to make films from, to export and to evaluate.

RUN means the training that it has begun last: once that is finished its artifact, and until then its committed states,
also while more of them come. Whoever uses these says that the training is not finished.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bricks_core.errors import AlteredObject, DataError, NoSuchObject, UsageError, nearest
from bricks_core.models.beside import CONFIG
from bricks_core.pipeline.find import find_artifact
from bricks_core.pipeline.points import read_pointer, run_names
from bricks_core.spec.manifest import StoredObject
from bricks_core.spec.train import CheckpointRow, TrainSpec, Weights
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import COMMIT, EMA, ROOT, WEIGHTS, Record, Training, begun, trainings_of

log = logging.getLogger("bricks")

_COMMIT = re.compile(rf"{ROOT}[0-9a-f]+/step-([0-9]+)-[0-9a-f]+/{re.escape(COMMIT)}")
_MANY = 12
"""More steps than this are not all listed."""


@dataclass(frozen=True)
class TrainedState:
    """The network after so many steps."""

    step: int
    files: Mapping[Weights, StoredObject]
    """Keys from the store's root, here and below."""
    config: StoredObject
    origin: str
    """Where it comes from, as outputs tell it: trainings/KEY, or of an earlier version train/DIGEST."""


@dataclass(frozen=True)
class Trained:
    """A training, and the states that there are of it."""

    name: str
    """As it was asked for."""
    store: Store
    spec: TrainSpec
    latents: str
    """Digest of the artifact that it read."""
    states: dict[int, TrainedState]
    """By step, the first step first."""
    earlier: str = ""
    """A training that the run had finished before this one, as train/DIGEST."""

    @property
    def num_steps(self) -> int:
        """Steps that are done, as far as they are kept."""
        return max(self.states, default=0)

    @property
    def unfinished(self) -> str:
        """That it is not finished, in words; empty: it is."""
        return unfinished(self.num_steps, self.spec.num_steps)

    def state(self, step: int | None = None) -> TrainedState:
        """The state after `step` steps; None: the last one, of an unfinished training the last that is whole.

        Raises:
            UsageError: there is no such state.
            DataError: there is none at all.
        """
        if not self.states:
            raise DataError(f"{self.name} has left no checkpoint: run its training again.")
        if step is not None:
            if step not in self.states:
                raise UsageError(
                    f"{self.name} has no checkpoint of step {step}; it has {', '.join(map(str, self.states))}."
                )
            return self.states[step]
        last = self.states[max(self.states)]
        if not self.unfinished:
            return last
        return next((each for each in reversed(self.states.values()) if self._seems_whole(each)), last)

    @contextmanager
    def local(self, stored: StoredObject) -> Iterator[Path]:
        """A file of a state, to read while in the context.

        Raises:
            AlteredObject: it is missing, or not what was committed.
        """
        try:
            with self.store.local(stored.key, sha256=stored.sha256) as file:
                yield file
        except (NoSuchObject, AlteredObject) as error:
            if error.key != stored.key:
                raise
            what = "is missing" if isinstance(error, NoSuchObject) else "is not what was committed"
            raise AlteredObject(
                stored.key,
                f"{what}, so this checkpoint of {self.name} cannot be used: name another by --step "
                f"({in_words(self.states)}), or let bricks run go on, which mends it.",
            ) from None

    def _seems_whole(self, state: TrainedState) -> bool:
        files = (*state.files.values(), state.config)
        for file, (_, entry) in zip(files, self.store.heads(file.key for file in files), strict=True):
            if entry is None or entry.size_bytes != file.size_bytes:
                log.warning("%s is missing or altered, so the checkpoint before it is taken.", file.key)
                return False
        return True


def unfinished(num_done: int, num_steps: int) -> str:
    """That a training is not finished, in words; empty: it is."""
    return f"not finished: {num_done:,} of {num_steps:,} steps are done" if num_done < num_steps else ""


def in_words(steps: Iterable[int]) -> str:
    """Steps in a row; of many, the first and the last ones."""
    told = [f"{step:,}" for step in sorted(steps)]
    return ", ".join(told if len(told) <= _MANY else [*told[:3], "…", *told[-3:]])


def find_trained(store: Store, wanted: str) -> Trained:
    """What RUN, RUN/train or train/DIGEST has trained.

    Raises:
        DataError: there is nothing of that name, or no state of it yet.
    """
    name = wanted.removeprefix("artifacts/").rstrip("/")
    first, _, second = name.partition("/")
    if first == "train" and second not in ("", "train"):
        return _of_artifact(open_artifact(store, *find_artifact(store, name), earlier=True), wanted)
    pointer = read_pointer(store, first, "train")
    artifact = open_artifact(store, "train", pointer.digest, earlier=True) if pointer is not None else None
    newest = next(trainings_of(store, first), None)
    finished = _of_artifact(artifact, wanted) if artifact is not None else None
    if newest is not None and newest.records:
        so_far = _of_training(store, newest, wanted)
        if finished is None:
            return so_far
        end = newest.trajectory.folder(newest.trajectory.spec.num_steps) + CONFIG
        if all(state.config.key != end for state in finished.states.values()):
            return replace(so_far, earlier=f"train/{pointer.digest[:12]}" if pointer is not None else "")
        # Other runs, or other intervals, may have left more states of the very same training.
        return replace(finished, states=dict(sorted((so_far.states | finished.states).items())))
    if finished is not None:
        return finished
    if newest is not None:
        raise DataError(
            f"Run {first} has begun its training and has no checkpoint of it yet: wait for the first, or look at "
            "bricks status."
        )
    near = "" if first in run_names(store) else nearest(first, run_names(store))
    raise DataError(f"{store.uri} has no run {first} with a training{near}.")


def is_run_with_training(store: Store, run: str) -> bool:
    """Whether a run has finished or begun one."""
    return bool(begun(store, run)) or read_pointer(store, run, "train") is not None


def kept_so_far(store: Store, run: str) -> str:
    """What there is of the training that a run has begun last, in words; empty: it is finished, or none was begun.

    Lists its states and reads none of them.
    """
    last = begun(store, run)[-1:]
    trajectory = last[0].trajectory() if last else None
    if trajectory is None:
        return ""
    num_steps, steps = trajectory.spec.num_steps, []
    for entry in (entry for prefix in trajectory.prefixes() for entry in store.list(prefix)):
        match = _COMMIT.fullmatch(entry.key)
        step = int(match[1]) if match else num_steps + 1
        if step <= num_steps and entry.key == trajectory.folder(step) + COMMIT:
            steps.append(step)
    if num_steps in steps:
        return ""
    kept = f"not finished: {max(steps, default=0):,} of {num_steps:,} steps are kept"
    return f"{kept}, checkpoints {in_words(steps)} can be used" if steps else f"{kept}, no checkpoint yet"


def _of_artifact(artifact: Artifact, name: str) -> Trained:
    manifest = artifact.manifest
    stored = {each.key: each for each in manifest.objects}

    def file(key: str) -> StoredObject:
        if key not in stored:
            raise AlteredObject(artifact.full(key), f"is not in {artifact.prefix}manifest.json.")
        return stored[key].model_copy(update={"key": artifact.full(key)})

    states = {}
    for row in artifact.rows("checkpoints", CheckpointRow):
        config = f"{row.weights_key.rpartition('/')[0]}/{CONFIG}"
        files: dict[Weights, StoredObject] = {"raw": file(row.weights_key), "ema": file(row.ema_key)}
        origin = _origin(row.weights_key) or f"train/{manifest.digest[:12]}"
        states[row.step] = TrainedState(row.step, files, file(config), origin)
    return Trained(
        name,
        artifact.store,
        TrainSpec.model_validate(manifest.spec),
        manifest.inputs.get("latents", ""),
        dict(sorted(states.items())),
    )


def _of_training(store: Store, training: Training, name: str) -> Trained:
    states = {step: _of_record(record) for step, record in training.records.items()}
    return Trained(name, store, training.trajectory.spec, training.begun.latents, states)


def _of_record(record: Record) -> TrainedState:
    files: dict[Weights, StoredObject] = {"raw": record.file(WEIGHTS), "ema": record.file(EMA)}
    return TrainedState(record.step, files, record.file(CONFIG), _origin(record.folder))


def _origin(key: str) -> str:
    """trainings/ and the first digits of the training's key; empty for a key of an earlier version."""
    return key[: len(ROOT) + 12] if key.startswith(ROOT) else ""
