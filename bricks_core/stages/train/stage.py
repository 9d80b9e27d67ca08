"""Train: from latents to a fine-tuned network, in phases, with checkpoints that a killed run continues from.

run     all the steps, from the newest checkpoint on (torchrun starts it in several processes, or one does it all)
join    the tables, from the rows that checkpoints keep
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.families import family_of
from bricks_core.errors import DataError, SpecError, Stopped
from bricks_core.models.weights import find_weights, load_weights
from bricks_core.spec.latents import Latent, LatentsSpec
from bricks_core.spec.strict import Row
from bricks_core.spec.train import BucketLossRow, CheckpointRow, HeldOutRow, StepRow, TrainBucket, TrainSpec
from bricks_core.stages.train.checkpoint import (
    Checkpoints,
    Rows,
    State,
    seed_global_generators,
)
from bricks_core.stages.train.dataloader import Loader, Plan, check_text_width, latent_shape, slim, usable
from bricks_core.stages.train.held_out import HeldOut, mean_loss
from bricks_core.stages.train.optimizer import learning_rate
from bricks_core.stages.train.parallel import Processes, processes
from bricks_core.stages.train.speed import Speed
from bricks_core.stages.train.step import Tally, Trainer
from bricks_core.storage.shards import Packs, one_encoder
from bricks_core.storage.work import Joined, Work
from bricks_core.tracking import Tracker, open_tracker, tracking_folder

log = logging.getLogger("bricks")

SPLIT_WORDS = {"train": "to train on", "held_out": "held out"}


def run(spec: TrainSpec, work: Work) -> None:
    """Train to the last step, from the newest whole checkpoint on.

    Raises SpecError: a bucket has no clips, or the weights to begin with do not fit; DataError: the loss is no number;
    Stopped: a signal came; the step was finished and a checkpoint written.
    """
    with processes() as everyone:
        checkpoints = Checkpoints(work, spec)
        if everyone.told_by_first(everyone.is_first and checkpoints.is_complete()):
            if everyone.is_first:
                checkpoints.tidy()
            return
        with _deterministic(everyone.device), StopRequest() as stop, contextlib.ExitStack() as stack:
            Training(spec, work, everyone, checkpoints, stop, stack).run()
        everyone.wait_for_all()


def join(spec: TrainSpec, work: Work) -> Joined:
    """The tables, from what the checkpoints keep."""
    checkpoints = Checkpoints(work, spec)
    records = checkpoints.planned()
    rows = Rows()
    for record in records:
        rows.add(checkpoints.rows(record))
    tables: dict[str, Iterable[Row]] = {
        "steps": rows.steps,
        "bucket_losses": rows.bucket_losses,
        "held_out": sorted(rows.held_out, key=lambda row: row.id),
        "checkpoints": [
            CheckpointRow(
                id=record.folder.rstrip("/"),
                step=record.step,
                phase=record.phase,
                weights_key=record.folder + "weights.safetensors",
                ema_key=record.folder + "ema.safetensors",
                state_key=record.folder + "state.json",
            )
            for record in records
        ],
    }
    counts = {
        "steps": spec.num_steps,
        "samples": sum(phase.steps * bucket.batch_size for phase in spec.phases for bucket in phase.buckets),
        "checkpoints": len(records),
    }
    buckets = _buckets(spec)
    counts |= {f"{words} in {bucket.name}": 0 for bucket in buckets for words in SPLIT_WORDS.values()}
    for row in work.rows("latents", "latents", Latent):
        for bucket in buckets:
            if usable(row, bucket):
                counts[f"{SPLIT_WORDS[row.split]} in {bucket.name}"] += 1
    return Joined(tables, objects=checkpoints.objects(), counts=counts)


def _buckets(spec: TrainSpec) -> list[TrainBucket]:
    """The distinct buckets of a run, whatever their batches."""
    return list({bucket.name: bucket for phase in spec.phases for bucket in phase.buckets}.values())


class Training:
    """One process's part in a training run."""

    def __init__(
        self,
        spec: TrainSpec,
        work: Work,
        everyone: Processes,
        checkpoints: Checkpoints,
        stop: StopRequest,
        stack: contextlib.ExitStack,
    ):
        self.spec, self.work, self.everyone = spec, work, everyone
        self.checkpoints, self.stop = checkpoints, stop
        clips = list(slim(work.rows("latents", "latents", Latent)))
        self.plan = Plan(spec, clips)
        codec, text_encoder = one_encoder(clips)
        packs = Packs(opened_once(work, stack), codec, text_encoder)
        pin = everyone.device.type == "cuda"
        self.loader = Loader(self.plan, packs, rank=everyone.rank, world_size=everyone.world_size, pin=pin)
        self.held_out = HeldOut(spec, clips, packs, everyone)
        self.trainer = Trainer(spec, make_network(spec, work, clips), everyone)
        self.tracker = Tracker()
        if everyone.is_first and work.run is not None:
            folder = tracking_folder(work.store.uri)
            self.tracker = open_tracker(work.run, work.stage.name, folder, digest=work.digest)
            stack.callback(self.tracker.finish)
        self.rows = Rows()
        self.speed = Speed()
        self.loss = self.held_out_loss = float("nan")

    def run(self) -> None:
        """All steps that are left."""
        begin, settled = self._resume()
        if self.everyone.is_first:
            self.work.progress.begin(self.spec.num_steps, done=begin, unit="steps")
        with self.loader.prefetched(begin, self.spec.num_steps) as ahead:
            for step in range(begin, self.spec.num_steps + 1):
                if signal_number := self.everyone.any(self.stop.signal_number):
                    self._stop(step, settled, signal_number)
                if not settled:
                    self._settle(step)
                settled = False
                if step < self.spec.num_steps:
                    self.speed.begin()
                    micro_batches = next(ahead)
                    self.speed.data_is_there()
                    self._step(step, micro_batches)
        if self.everyone.is_first:
            log.info("train: %s", self.speed.words())

    def _resume(self) -> tuple[int, bool]:
        """Put everything back to the newest checkpoint. -> steps done, and whether what is due then was done"""
        seed_global_generators(self.spec.seed, self.everyone.rank)
        record = self.everyone.told_by_first(self.checkpoints.newest() if self.everyone.is_first else None)
        if record is None:
            return 0, False
        state, self.rows = self.checkpoints.load(record, self.trainer, with_randomness=self.everyone.is_first)
        if self.everyone.is_first:
            log.info("train: continuing from %s", record.folder.rstrip("/"))
            if state.num_processes != self.everyone.world_size:
                log.warning(
                    "train: %d processes before, %d now: same samples and noise, but sums round differently.",
                    state.num_processes,
                    self.everyone.world_size,
                )
        return state.step, state.settled

    def _step(self, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        index, step_in_phase = self.plan.place(step)
        phase = self.spec.phases[index]
        num_samples = sum(bucket.batch_size for bucket in phase.buckets)
        rate = learning_rate(phase.schedule, step_in_phase)
        self.trainer.step(micro_batches, num_samples, len(phase.buckets), rate)
        if step == 0 or (step + 1) % self.spec.log_every_steps == 0 or step_in_phase == phase.steps - 1:
            self.trainer.check_finite()
            self._log(step, phase.name, [bucket.name for bucket in phase.buckets], rate)
        tokens = sum(batch.num_tokens for batch in micro_batches) * self.everyone.world_size
        self.speed.end(num_samples, tokens)
        if self.everyone.is_first:
            self.work.progress.advance(note=self._note())

    def _log(self, step: int, phase: str, buckets: list[str], rate: float) -> None:
        tally = self.trainer.tally(empty=True)
        count = sum(tally.num_samples)
        row = StepRow(
            id=f"{step:08d}",
            step=step,
            phase=phase,
            loss=sum(tally.loss) / count,
            mse=sum(tally.mse) / count,
            vb=sum(tally.vb) / count,
            learning_rate=rate,
            gradient_norm=float(self.trainer.gradient_norm),
            num_samples=count,
        )
        by_bucket = [
            BucketLossRow(id=f"{step:08d}/{bucket}", step=step, bucket=bucket, loss=loss / num)
            for bucket, loss, num in sorted(zip(buckets, tally.loss, tally.num_samples, strict=True))
        ]
        self.rows.add(Rows(steps=[row], bucket_losses=by_bucket))
        self.loss = row.loss
        numbers = row.model_dump(exclude={"id", "step", "phase"})
        self.tracker.log(
            step,
            {f"train/{name}": value for name, value in numbers.items()}
            | {f"train/loss/{each.bucket}": each.loss for each in by_bucket}
            | {f"speed/{name}": value for name, value in self.speed.recent().items()},
        )

    def _settle(self, step: int) -> None:
        """Do what is due when `step` steps are done: measure on held-out clips, write a checkpoint."""
        if step % self.spec.held_out.every_steps == 0 or step == self.spec.num_steps:
            self.trainer.check_finite()
            rows = self.held_out.measure(self.trainer.model, "raw", step)
            rows += self.held_out.measure(self.trainer.ema.model, "ema", step)
            _check_finite(rows)
            self.rows.add(Rows(held_out=rows))
            self.held_out_loss = mean_loss(rows, "raw") or float("nan")
            self.tracker.log(
                step, {f"held_out/{row.weights}/{row.bucket}/t{row.first_timestep:03d}": row.loss for row in rows}
            )
        if self.checkpoints.is_planned(step):
            self._save(step, planned=True, settled=True)
            self.rows = Rows()

    def _save(self, step: int, *, planned: bool, settled: bool) -> None:
        self.trainer.check_finite()
        tally = self.trainer.tally(empty=False)
        # In one process now and after a resume alike, so that both add up what follows in the same order.
        self.trainer.put_back(tally)
        if self.everyone.is_first:
            state = self._state(step, settled, tally)
            self.checkpoints.save(self.trainer, state, self.rows, planned=planned)
        self.everyone.wait_for_all()

    def _state(self, step: int, settled: bool, tally: Tally) -> State:
        index, last_in_phase = self.plan.place(max(step - 1, 0))
        phase = self.spec.phases[index]
        earlier = [self.plan.place(each)[0] for each in range(step)]
        samples = [sum(bucket.batch_size for bucket in each.buckets) for each in self.spec.phases]
        return State(
            step=step,
            phase=phase.name,
            step_in_phase=last_in_phase + 1 if step else 0,
            learning_rate=learning_rate(phase.schedule, last_in_phase),
            samples_seen=sum(samples[each] for each in earlier),
            settled=settled,
            tally=tally,
            digest=self.work.digest,
            num_processes=self.everyone.world_size,
        )

    def _stop(self, step: int, settled: bool, signal_number: int) -> None:
        # Already settled: nothing was done since the checkpoint that this run continued from.
        if not settled:
            self._save(step, planned=False, settled=False)
        raise Stopped(signal_number)

    def _note(self) -> str:
        words = [f"loss {self.loss:.3f}"]
        if math.isfinite(self.held_out_loss):
            words.append(f"held-out {self.held_out_loss:.3f}")
        return ", ".join(words)


def _check_finite(rows: Sequence[HeldOutRow]) -> None:
    """Raise DataError if a held-out loss is no number: the weights of that checkpoint would be of no use."""
    for row in rows:
        if not math.isfinite(row.loss):
            raise DataError(
                f"Training broke down before step {row.step}: the held-out loss of {row.bucket} with {row.weights} "
                "weights is not a finite number. The checkpoint before is whole, but the same settings will end here "
                "again: lower the learning rate, or set precision to float32."
            )


def make_network(spec: TrainSpec, work: Work, clips: Sequence[Latent]) -> ModelMixin:
    """The network to begin with, in every process the same: given weights, or random ones of the run's seed.

    Raises SpecError: the weights are not there, or of another size, or the network cannot learn from these latents.
    """
    latents = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
    family = family_of(spec.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = family.build(
            spec.model,
            text_width=check_text_width(clips),
            max_tokens=latents.text.max_tokens,
            caption_dropout=spec.caption_dropout,
        )
    buckets = _buckets(spec)
    for channels, *size in sorted({latent_shape(row, each) for row in clips for each in buckets if usable(row, each)}):
        family.check(model, channels, (size[0], size[1], size[2]))
    if spec.init_from:
        with _weights_to_begin_with(spec.init_from, work) as file:
            load_weights(model, file)
    return model


@contextlib.contextmanager
def _weights_to_begin_with(place: str, work: Work) -> Iterator[Path]:
    if Path(place).exists():
        yield find_weights(Path(place))
        return
    keys = [place, f"{place.rstrip('/')}/model.safetensors", f"{place.rstrip('/')}/weights.safetensors"]
    found = [] if place.startswith(("/", ".", "~")) else [key for key in keys if work.store.head(key)]
    if not found:
        raise SpecError(
            f"train.init_from is {place}, which is neither a file or folder here nor a key in {work.store.uri}: write "
            "where the safetensors file is, or leave it empty for random weights."
        )
    with work.store.local(found[0]) as file:
        yield file


def opened_once(work: Work, stack: contextlib.ExitStack) -> Callable[[str], Path]:
    """Gives the local files of packs, each fetched when it is first asked for and kept until the stage ends."""
    files: dict[str, Path] = {}
    lock = threading.Lock()

    def locate(key: str) -> Path:
        with lock:
            if key not in files:
                files[key] = stack.enter_context(work.local("latents", key))
            return files[key]

    return locate


class StopRequest:
    """Notes that a signal asks us to stop, so that the step in hand can be finished. A second one is not waited for."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, signal_number: int, frame: Any) -> None:
        self.signal_number = signal_number
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, the same sums in the same order, which costs nothing there. On a GPU it would cost a lot: there the
    data and all randomness are the same in every try, and only rounding differs."""
    if device.type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # it would write over every new buffer, to find bugs that are not ours
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
