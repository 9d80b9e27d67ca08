"""Checkpoints: everything a run needs to go on as if it had never stopped, in the store.

    checkpoints/step-000250/        one of the plan: every so many steps, before the first and after the last
        weights.safetensors         names as in the published checkpoint, so that any tool for those reads it
        ema.safetensors             the same names
        config.json                 the network's shape
        optimizer.safetensors       both moments of every weight, and the random generators' states
        state.json                  step, phase, schedule position, losses not yet logged
        rows.json                   rows of the tables since the checkpoint before
        checkpoint.json             written last: the other files with their sha256
    checkpoints/stopped-000137/     the same, where a signal stopped the run; gone once the run has passed it

A folder without its checkpoint.json, or with a file that is not what that says, is not used. While the run goes on the
two newest keep their optimizer, so that there is one to go back to; at the end the last one does.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bricks_core.diffusion.families import family_of
from bricks_core.errors import AlteredObject, NoSuchObject, TryLater
from bricks_core.models.weights import save_weights
from bricks_core.spec.manifest import StoredObject
from bricks_core.spec.strict import Strict
from bricks_core.spec.train import BucketLossRow, HeldOutRow, StepRow, TrainSpec
from bricks_core.stages.train.step import Tally, Trainer
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import Entry
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")

FOLDER = "checkpoints/"
COMMIT = "checkpoint.json"
OPTIMIZER = "optimizer.safetensors"


class Rows(Strict):
    """Rows of the stage's tables."""

    steps: list[StepRow] = []
    bucket_losses: list[BucketLossRow] = []
    held_out: list[HeldOutRow] = []

    def add(self, other: Rows) -> None:
        """Take in other rows."""
        self.steps.extend(other.steps)
        self.bucket_losses.extend(other.bucket_losses)
        self.held_out.extend(other.held_out)


class State(Strict):
    """Where a run stood."""

    step: int
    """Steps done."""
    phase: str
    """Of the step last done."""
    step_in_phase: int
    """Steps of that phase done: where its learning-rate schedule and its buckets' epochs are."""
    learning_rate: float
    """Of the step last done."""
    samples_seen: int
    settled: bool
    """Whether what is due at this step (held-out loss, a planned checkpoint) was done."""
    tally: Tally
    """Losses since the last logged step."""
    digest: str
    """The artifact's: spec and data. Another's checkpoint is never continued."""
    num_processes: int


class Record(Strict):
    """checkpoint.json."""

    step: int
    phase: str
    planned: bool
    files: list[StoredObject]
    """Keys relative to the artifact."""

    @property
    def folder(self) -> str:
        return folder_of(self.step, self.planned)

    @property
    def has_optimizer(self) -> bool:
        return any(file.key == self.folder + OPTIMIZER for file in self.files)

    def file(self, name: str) -> StoredObject:
        return next(file for file in self.files if file.key == self.folder + name)


def folder_of(step: int, planned: bool) -> str:
    """Where a checkpoint lies, relative to the artifact."""
    return f"{FOLDER}{'step' if planned else 'stopped'}-{step:06d}/"


class Checkpoints:
    """The checkpoints of one artifact. Only the first process writes."""

    def __init__(self, work: Work, spec: TrainSpec):
        self._work, self._store, self._spec = work, work.store, spec

    def is_planned(self, step: int) -> bool:
        """Whether a checkpoint is due when `step` steps are done."""
        return step % self._spec.checkpoint_every_steps == 0 or step == self._spec.num_steps

    def save(self, trainer: Trainer, state: State, rows: Rows, *, planned: bool) -> None:
        """Write a checkpoint: its files first, then its record, then take away what it makes superfluous.

        Raises TryLater: there is no room to write it.
        """
        folder = folder_of(state.step, planned)
        writers: dict[str, Callable[[Path], Any]] = {
            "weights.safetensors": lambda file: save_weights(trainer.model, file),
            "ema.safetensors": lambda file: save_weights(trainer.ema.model, file),
            "config.json": lambda file: family_of(self._spec.model).save_config(trainer.model, file),
            OPTIMIZER: lambda file: save_file(_optimizer_tensors(trainer), file, metadata={"format": "pt"}),
            "state.json": lambda file: file.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8"),
            "rows.json": lambda file: file.write_text(rows.model_dump_json(indent=1) + "\n", encoding="utf-8"),
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
                files.append(self._work.put_file(folder + name, file))
                file.unlink()
        self._commit(Record(step=state.step, phase=state.phase, planned=planned, files=files))
        self.tidy()

    def records(self) -> list[Record]:
        """All committed checkpoints, the oldest first; at the same step a planned one last."""
        found = []
        for entry in self._store.list(self._work.prefix + FOLDER):
            if entry.key.endswith("/" + COMMIT):
                try:
                    record = Record.model_validate_json(self._store.get(entry.key))
                except (ValidationError, NoSuchObject):
                    log.warning("train: %s is no record of a checkpoint, so that checkpoint is not used.", entry.key)
                    continue
                if entry.key == self._work.prefix + record.folder + COMMIT:
                    found.append(record)
        return sorted(found, key=lambda each: (each.step, each.planned))

    def planned(self) -> list[Record]:
        """The checkpoints of the plan, the oldest first."""
        return [record for record in self.records() if record.planned]

    def is_complete(self) -> bool:
        """Whether every checkpoint of the plan is there, and whole."""
        return len(self._whole_of_plan(self.records())) == len(self._plan())

    def newest(self) -> Record | None:
        """The checkpoint to continue from: the newest that is whole, with all planned ones before it whole too.

        What lies beyond it is taken away. None: begin anew.
        """
        records = self.records()
        whole = self._whole_of_plan(records)
        missing = [step for step in self._plan() if step not in whole]
        for record in reversed(records):
            if (missing and record.step > missing[0]) or not record.has_optimizer:
                continue
            if record.planned and record.step not in whole:
                continue
            if self._is_as_recorded(record):
                self._take_away_beyond(record)
                return record
        if records:
            log.warning("train: none of %d checkpoints can be continued from; beginning anew.", len(records))
        self._take_away_beyond(None)
        return None

    def load(self, record: Record, trainer: Trainer, *, with_randomness: bool) -> tuple[State, Rows]:
        """Put a run back to where it stood. Returns its state, and the rows since the last planned checkpoint.

        Raises AlteredObject: a file is not what was recorded.
        """

        def tensors(name: str) -> dict[str, Tensor]:
            return self._read(record.file(name), load_file)

        state = State.model_validate_json(self._read(record.file("state.json"), Path.read_text))
        rows = Rows.model_validate_json(self._read(record.file("rows.json"), Path.read_text))
        if state.digest != self._work.digest:
            raise AlteredObject(record.folder, f"belongs to another artifact, {state.digest}. Take it away.")
        trainer.model.load_state_dict(tensors("weights.safetensors"))
        trainer.ema.model.load_state_dict(tensors("ema.safetensors"))
        _restore_optimizer(trainer, tensors(OPTIMIZER), with_randomness)
        trainer.num_steps_done = state.step
        trainer.put_back(state.tally)
        return state, Rows() if record.planned else rows

    def rows(self, record: Record) -> Rows:
        """The rows that a planned checkpoint keeps."""
        return Rows.model_validate_json(self._read(record.file("rows.json"), Path.read_text))

    def objects(self) -> Iterator[StoredObject]:
        """Every object of all planned checkpoints, records included."""
        for record in self.planned():
            yield from record.files
            key = record.folder + COMMIT
            data = self._store.get(self._work.prefix + key)
            yield StoredObject(key=key, size_bytes=len(data), sha256=self._store.sha256(self._work.prefix + key))

    def tidy(self) -> None:
        """Take away optimizers that nothing needs any more, and checkpoints of stops that the run has passed."""
        records = self.records()
        planned = [record for record in records if record.planned]
        newest = planned[-1].step if planned else -1
        keep = 1 if newest == self._spec.num_steps else 2
        for record in planned[:-keep]:
            if record.has_optimizer:
                kept = [file for file in record.files if file.key != record.folder + OPTIMIZER]
                self._commit(record.model_copy(update={"files": kept}))
        for record in records:
            if not record.planned and record.step <= newest:
                self._store.delete([self._work.prefix + record.folder + COMMIT])
        self._sweep()

    def _commit(self, record: Record) -> None:
        self._store.put(self._work.prefix + record.folder + COMMIT, record.model_dump_json(indent=1).encode())

    def _take_away_beyond(self, last: Record | None) -> None:
        """What a continued run will make again, or what is broken, must not be found in its stead."""
        for record in self.records():
            if last is None or (record.step, record.planned) > (last.step, last.planned):
                self._store.delete([self._work.prefix + record.folder + COMMIT])
        self._sweep()

    def _sweep(self) -> None:
        """Delete files that no record lists: of a write that was killed, or of a record that was taken away."""
        listed = {file.key for record in self.records() for file in record.files}
        listed |= {record.folder + COMMIT for record in self.records()}
        prefix = self._work.prefix
        found = [entry.key for entry in self._store.list(prefix + FOLDER)]
        self._store.delete([key for key in found if key.removeprefix(prefix) not in listed])

    def _plan(self) -> list[int]:
        return [step for step in range(self._spec.num_steps + 1) if self.is_planned(step)]

    def _whole_of_plan(self, records: list[Record]) -> set[int]:
        """Steps of planned checkpoints whose files are there, of their size, and known to be as recorded."""
        entries = {entry.key: entry for entry in self._store.list(self._work.prefix + FOLDER)}
        return {record.step for record in records if record.planned and self._seems_whole(record, entries)}

    def _seems_whole(self, record: Record, entries: dict[str, Entry]) -> bool:
        for file in record.files:
            entry = entries.get(self._work.prefix + file.key)
            known = self._store.known_sha256(entry) if entry and entry.size_bytes == file.size_bytes else ""
            if known is not None and known != file.sha256:
                log.warning("train: %s is missing or altered, so its checkpoint is not used.", file.key)
                return False
        return True

    def _is_as_recorded(self, record: Record) -> bool:
        """Whether every byte is: read whole."""
        for file in record.files:
            try:
                same = self._store.sha256(self._work.prefix + file.key) == file.sha256
            except NoSuchObject:
                same = False
            if not same:
                log.warning("train: %s is missing or altered, so its checkpoint is not used.", file.key)
                return False
        return True

    def _read(self, file: StoredObject, read: Callable[[Path], Any]) -> Any:
        with self._store.local(self._work.prefix + file.key, sha256=file.sha256) as path:
            return read(path)


# ------------------------------------------------------------------------------------------- what changes with a step


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Both moments of every weight by its name, the number of updates, and the random generators' states."""
    tensors = {"num_updates": torch.tensor(trainer.num_steps_done)}
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
