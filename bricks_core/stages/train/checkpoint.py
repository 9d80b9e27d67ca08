"""Checkpoints: everything a training needs to go on as if it had never stopped, in the store.

Where they lie and what is in them: `storage/trainings.py`. A folder without its checkpoint.json, or with a file that is
not what that says, is not used. While a training goes on the two newest keep their optimizer, so that there is one to
go back to; for good, the end of every phase does.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bricks_core.diffusion.families import family_of
from bricks_core.errors import AlteredObject, DataError, NoSuchObject, SpecError, TryLater
from bricks_core.models.tensor_files import read_tensors
from bricks_core.models.weights import save_weights
from bricks_core.spec.items import Recipe
from bricks_core.spec.latents import Encoders
from bricks_core.spec.manifest import StoredObject
from bricks_core.spec.strict import Strict
from bricks_core.spec.train import TrainBucket, TrainSpec
from bricks_core.stages.train.losses import History
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.scratch import scratch
from bricks_core.storage.trainings import COMMIT, EMA, OPTIMIZER, WEIGHTS, Record, Trajectory, keyed, record_at
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")

CONFIG, STATE, LOSSES = "config.json", "state.json", "losses.safetensors"


class State(Strict):
    """Where a training stood."""

    step: int
    """Steps done."""
    phase: str
    """Of the step last done."""
    step_in_phase: int
    """Steps of that phase done: where its learning-rate schedule and its buckets' epochs are."""
    learning_rate: float
    """Of the step last done."""
    samples_seen: int
    num_updates: int
    """Of weights, moments and EMA: more than `step`, where it went on from another training."""
    folder: str
    """The state's own. Another's is never continued."""
    num_processes: int
    encoders: Encoders | None = None
    """What the network goes with, so that its folder alone is enough to make films."""


@dataclass
class Due:
    """What is to be made when so many steps are done."""

    checkpoint: bool
    buckets: list[str]
    """Whose held-out loss is missing."""


@dataclass
class Stretch:
    """Steps to go through, and what is to be made on the way."""

    begin: Record | None
    """The state to begin at; None: the beginning of the training."""
    due: dict[int, Due]
    """By step, the first one first."""
    only_measured: bool = False
    """At this one state, from its weights alone."""

    @property
    def first(self) -> int:
        return self.begin.step if self.begin else 0

    @property
    def last(self) -> int:
        return max(self.due)


class Checkpoints:
    """The states of one training. Only the first process writes."""

    def __init__(self, work: Work, spec: TrainSpec, buckets: list[TrainBucket]):
        """`buckets`: those that have held-out clips."""
        self._work, self._store, self._spec, self._buckets = work, work.store, spec, buckets
        self.inputs = keyed(work.inputs["latents"].manifest, work.fingerprints)
        self.trajectory = Trajectory(spec, self.inputs, version=work.stage.version)

    # ------------------------------------------------------------------------------------------------ what is missing

    def stretches(self) -> list[Stretch]:
        """What is left to be done, every part from the nearest state before it that is whole."""
        wanted = set(self.trajectory.wanted())
        for step, record in self._whole().items():
            if step in wanted and not record.is_wanted:  # where a signal stopped it: from here on one to keep
                self._commit(record.model_copy(update={"is_wanted": True}))
        while True:
            found = self._stretches()
            broken = [each.begin for each in found if each.begin is not None and not self._is_as_recorded(each.begin)]
            if not broken:
                return found
            for record in broken:
                self._take_away(record)

    def _stretches(self) -> list[Stretch]:
        whole = self._whole()
        full = [step for step, record in whole.items() if record.is_full]
        found: list[Stretch] = []
        measured: list[Stretch] = []
        for step, due in self._due(whole).items():
            if not due.checkpoint and step in whole and not whole[step].is_full:
                measured.append(Stretch(whole[step], {step: due}, only_measured=True))
                continue
            nearest = max((each for each in full if each <= step), default=0)
            if found and found[-1].last >= nearest:
                found[-1].due[step] = due
            else:
                found.append(Stretch(whole.get(nearest) if nearest in full else None, {step: due}))
        return found + measured

    def _due(self, whole: dict[int, Record]) -> dict[int, Due]:
        """What is missing, by step."""
        steps = self.trajectory.measured()
        measures = {
            (step, bucket.name): self.trajectory.measure(step, bucket).key for step in steps for bucket in self._buckets
        }
        there = self._work.items.load(measures.values())
        missing: dict[int, Due] = {step: Due(True, []) for step in self.trajectory.wanted() if step not in whole}
        for (step, bucket), key in measures.items():
            if key not in there:
                missing.setdefault(step, Due(False, [])).buckets.append(bucket)
        return dict(sorted(missing.items()))

    def measures(self) -> Iterator[Recipe]:
        """The keys of all held-out losses that are wanted."""
        return (each for _, each in self.measures_by_step())

    def measures_by_step(self) -> Iterator[tuple[int, Recipe]]:
        """The same, each with its step."""
        return (
            (step, self.trajectory.measure(step, bucket))
            for step in self.trajectory.measured()
            for bucket in self._buckets
        )

    # ---------------------------------------------------------------------------------------------- writing and reading

    def save(self, trainer: Trainer, state: State, history: History, *, is_wanted: bool) -> None:
        """Write a state: its files first, then its record, then take away what it makes superfluous.

        Raises TryLater: there is no room to write it.
        """
        folder = state.folder
        writers: dict[str, Callable[[Path], Any]] = {
            WEIGHTS: lambda file: save_weights(trainer.model, file),
            EMA: lambda file: save_weights(trainer.ema.model, file),
            CONFIG: lambda file: family_of(self._spec.model).save_config(trainer.model, file),
            OPTIMIZER: lambda file: save_file(_optimizer_tensors(trainer), file, metadata={"format": "pt"}),
            STATE: lambda file: file.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8"),
            LOSSES: history.save,
        }
        files = []
        with scratch() as place:
            for name, write in writers.items():
                file = place / name
                try:
                    write(file)
                except (OSError, SafetensorError) as error:
                    raise TryLater(
                        f"{folder}{name} cannot be written to {place} ({error}): make room there, or set TMPDIR to "
                        "a disk that has some. Training continues from the checkpoint before."
                    ) from error
                files.append(self._store.put_file(folder + name, file))
                file.unlink()
        ends_phase = self.trajectory.ends_phase(state.step)
        record = Record(
            step=state.step, phase=state.phase, folder=folder, is_wanted=is_wanted, ends_phase=ends_phase, files=files
        )
        self._commit(record)
        self.tidy()

    def load(self, record: Record, trainer: Trainer, *, with_randomness: bool) -> tuple[State, History]:
        """Put a training back to where it stood.

        Raises AlteredObject: a file is not what was recorded.
        """
        state = self._load(record, trainer, with_randomness=with_randomness)
        trainer.num_steps_done = state.step
        return state, self._read(record.file(LOSSES), History.load)

    def load_weights(self, record: Record, trainer: Trainer) -> None:
        """The weights and their average alone, to be measured."""
        trainer.model.load_state_dict(self._read(record.file(WEIGHTS), load_file))
        trainer.ema.model.load_state_dict(self._read(record.file(EMA), load_file))

    def begin(self, trainer: Trainer) -> None:
        """What a training that goes on from another takes of it: weights, their average and the optimizer.

        Raises:
            SpecError: that is another network.
            DataError: the state is gone.
        """
        folder = self.inputs.get("continue_from")
        if folder is None:
            return
        try:
            self._load(record_at(self._store, folder), trainer, with_randomness=False)
        except (RuntimeError, KeyError) as error:
            raise SpecError(
                f"train.continue_from is {self._spec.continue_from}, whose network is another than train.model says: "
                f"give it the same model section. ({str(error).splitlines()[0]})"
            ) from None

    def history(self) -> History:
        """The losses of all steps, once they are done."""
        return self._read(self._whole()[self._spec.num_steps].file(LOSSES), History.load)

    def wanted(self) -> list[Record]:
        """The states that the tables name, the oldest first, once they are there."""
        records = self.trajectory.records(self._store)
        return [records[step] for step in self.trajectory.wanted()]

    def so_far(self, only: Collection[int] | None = None) -> tuple[list[Record], History]:
        """The states that the tables of an unfinished training name, the oldest first, and the losses up to the last.

        Reads only, and no optimizer: whoever trains may be taking some away. `only`: of those after so many steps.

        Raises:
            DataError: no step is done that a state keeps.
            NoSuchObject, AlteredObject: the last state has gone meanwhile, or is damaged.
        """
        records = self.trajectory.records(self._store)
        if only is not None:
            records = {step: record for step, record in records.items() if step in only}
        newest = max(records, default=0)
        if not newest:
            raise DataError("No step is kept of this training yet: wait for its first checkpoint after the beginning.")
        wanted = {*self.trajectory.wanted(), newest}
        history = self._read(records[newest].file(LOSSES), History.load)
        return [each for step, each in records.items() if step in wanted], history

    def tidy(self) -> None:
        """Take away optimizers that nothing needs any more, and states of stops that the training has passed."""
        records = list(self._whole().values())
        full = [record for record in records if record.is_full]
        newest = full[-1].step if full else -1
        keep = full[-1:] if newest == self._spec.num_steps else full[-2:]
        for record in records:
            if not record.is_wanted and not record.ends_phase and record.step < newest:
                self._take_away(record)
            elif record.is_full and not record.ends_phase and record not in keep:
                kept = [file for file in record.files if file.key != record.folder + OPTIMIZER]
                self._commit(record.model_copy(update={"files": kept}))
                self._store.delete([record.folder + OPTIMIZER])

    def _commit(self, record: Record) -> None:
        self._store.put(record.folder + COMMIT, record.model_dump_json(indent=1).encode())

    def _take_away(self, record: Record) -> None:
        self._store.delete([record.folder + COMMIT])
        self._store.delete([file.key for file in record.files])

    def _whole(self) -> dict[int, Record]:
        """States whose files are there, of their size, and not known to be others than were recorded."""
        return {step: each for step, each in self.trajectory.records(self._store).items() if self._seems_whole(each)}

    def _seems_whole(self, record: Record) -> bool:
        entries = {entry.key: entry for entry in self._store.list(record.folder)}
        for file in record.files:
            entry = entries.get(file.key)
            known = self._store.known_sha256(entry) if entry and entry.size_bytes == file.size_bytes else ""
            if known is not None and known != file.sha256:
                log.warning("train: %s is missing or altered, so its checkpoint is not used.", file.key)
                return False
        return True

    def _is_as_recorded(self, record: Record) -> bool:
        """Whether every byte is: read whole."""
        for file in record.files:
            try:
                same = self._store.sha256(file.key) == file.sha256
            except NoSuchObject:
                same = False
            if not same:
                log.warning("train: %s is missing or altered, so its checkpoint is not used.", file.key)
                return False
        return True

    def _load(self, record: Record, trainer: Trainer, *, with_randomness: bool) -> State:
        state = State.model_validate_json(self._read(record.file(STATE), _text))
        if state.folder != record.folder:
            raise AlteredObject(record.folder, f"belongs to another training, {state.folder}. Take it away.")
        self.load_weights(record, trainer)
        _restore_optimizer(trainer, self._read(record.file(OPTIMIZER), read_tensors), with_randomness)
        trainer.num_updates = state.num_updates
        return state

    def _read(self, file: StoredObject, read: Callable[[Path], Any]) -> Any:
        with self._store.local(file.key, sha256=file.sha256) as path:
            return read(path)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- what changes with a step


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Both moments of every weight by its name, the number of updates, and the random generators' states."""
    tensors = {"num_updates": torch.tensor(trainer.num_updates)}
    for name, parameter in trainer.model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            if parameter in trainer.optimizer.state:
                kept = trainer.optimizer.state[parameter][moment]
                tensors[f"{moment}.{name}"] = kept.detach().cpu().contiguous()
    return tensors | _random_states()


def _restore_optimizer(trainer: Trainer, tensors: dict[str, Tensor], with_randomness: bool) -> None:
    num_updates = int(tensors["num_updates"])
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    state = {
        place: {
            "step": torch.tensor(float(num_updates)),
            "exp_avg": tensors[f"exp_avg.{name}"],
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
        }
        for place, name in enumerate(names if num_updates else ())
    }
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if with_randomness:
        _restore_random_states(tensors)


def _random_states() -> dict[str, Tensor]:
    """The states of the global generators. Training draws from none of them, but a layer of tomorrow might.

    Python's own is left out: S3's client draws its pauses from it, so it tells where checkpoints are kept, not what was
    trained.
    """
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "random.torch": torch.get_rng_state(),
        "random.numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "random.gauss": torch.tensor(cached, dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.torch"])
    *keys, position, has_gauss = tensors["random.numpy"].tolist()
    gauss = float(tensors["random.gauss"])
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def seed_global_generators(seed: int, rank: int) -> None:
    """Another stream in every process, for whatever draws from the global generators."""
    own = random.Random(json.dumps(["process", seed, rank])).getrandbits(32)
    torch.manual_seed(own)
    np.random.seed(own)
    random.seed(own)
