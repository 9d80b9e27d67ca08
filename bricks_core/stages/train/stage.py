"""Train: from latents to a fine-tuned network, in phases, with checkpoints that a killed run continues from.

run     all the steps, from the nearest checkpoints on (torchrun starts it in several processes, or one does it all)
join    the tables, from the losses that checkpoints keep
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.families import family_of
from bricks_core.errors import DataError, SpecError, Stopped
from bricks_core.models.weights import find_weights, load_weights
from bricks_core.spec.items import ItemKey
from bricks_core.spec.latents import Encoders, Latent, LatentsSpec
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Row
from bricks_core.spec.train import BucketLossRow, CheckpointRow, HeldOutRow, StepRow, TrainBucket, TrainSpec
from bricks_core.stages.train.checkpoint import STATE, Checkpoints, State, Stretch, seed_global_generators
from bricks_core.stages.train.dataloader import Loader, Plan, check_text_width, latent_shape, slim, usable
from bricks_core.stages.train.held_out import HeldOut, Measured, mean_loss
from bricks_core.stages.train.losses import History, Losses, is_logged, joined, logged
from bricks_core.stages.train.parallel import Processes, processes
from bricks_core.stages.train.speed import Speed
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.earlier import trained_before
from bricks_core.storage.shards import Packs, one_encoder
from bricks_core.storage.trainings import EMA, OPTIMIZER, WEIGHTS, Record, begin, begun_by_another_version
from bricks_core.storage.work import Joined, Work
from bricks_core.tracking import Tracker, open_tracker, tracking_folder

log = logging.getLogger("bricks")

SPLIT_WORDS = {"train": "to train on", "held_out": "held out"}


def run(spec: TrainSpec, work: Work) -> None:
    """Make all states and held-out losses that the run wants, each from the nearest state before it.

    Raises SpecError: a bucket has no clips, or the weights to begin with do not fit; DataError: the loss is no number;
    Stopped: a signal came; the step was finished and a checkpoint written.
    """
    with processes() as everyone:
        clips = list(slim(work.rows("latents", "latents", Latent)))
        checkpoints = Checkpoints(work, spec, _measured_buckets(spec, clips))
        stretches = everyone.told_by_first(checkpoints.stretches() if everyone.is_first else None)
        if everyone.is_first and work.run is not None:
            is_new = not (spec.init_from or spec.continue_from) and any(each.begin is None for each in stretches or ())
            if is_new and (earlier := trained_before(work.store, work.run.metadata.name, [work.digest])):
                log.warning("train: %s.", earlier)
            _refuse_another_version(spec, work, checkpoints)
            begin(work.store, work.run.metadata.name, spec, checkpoints.inputs, work.input_digests["latents"])
        if stretches:
            with _deterministic(everyone.device), StopRequest() as stop, contextlib.ExitStack() as stack:
                Training(spec, work, everyone, checkpoints, clips, stop, stack).run(stretches)
            everyone.wait_for_all()
        if everyone.is_first:
            checkpoints.tidy()


def join(spec: TrainSpec, work: Work) -> Joined:
    """The tables: of what the last state keeps, and what was measured, as much as the run wants."""
    clips = list(slim(work.rows("latents", "latents", Latent)))
    checkpoints = Checkpoints(work, spec, _measured_buckets(spec, clips))
    measures = [each.key for each in checkpoints.measures()]
    work.items.load(measures)
    return _joined(spec, work, clips, checkpoints.wanted(), checkpoints.history(), measures)


def join_so_far(spec: TrainSpec, work: Work, only: Collection[int] | None = None) -> Joined:
    """The same of a training that is stopped or under way: tables of the checkpoints that there are.

    The artifact lies at an address of its own, so that it never stands for the finished one. `only`: as if there were
    none but those after so many steps.

    Raises DataError: no step has been done that a checkpoint keeps.
    """
    clips = list(slim(work.rows("latents", "latents", Latent)))
    checkpoints = Checkpoints(work, spec, _measured_buckets(spec, clips))
    records, history = checkpoints.so_far(only)
    num_steps = records[-1].step
    wanted = {each.key: step for step, each in checkpoints.measures_by_step() if step <= num_steps}
    there = work.items.load(wanted)
    measures = [key for key in wanted if key in there]
    so_far = {"states": [each.step for each in records], "measured": sorted({wanted[key] for key in measures})}
    done = spec.up_to(num_steps)
    joined = _joined(spec, work, clips, records, history, measures, done)
    return replace(joined, depends_on=joined.depends_on | {"so far": so_far})


def _joined(
    spec: TrainSpec,
    work: Work,
    clips: Sequence[Latent],
    records: Sequence[Record],
    history: History,
    measures: Sequence[ItemKey],
    done: TrainSpec | None = None,
) -> Joined:
    """`done`: what of it is done, where that is not all."""
    done = done or spec
    steps: list[StepRow] = []
    bucket_losses: list[BucketLossRow] = []
    for row, by_bucket in history.rows(spec):
        steps.append(row)
        bucket_losses += by_bucket
    measured = [work.items.answer(key, Measured) for key in measures]
    held_out = [row for each in measured for row in each.rows]
    clip_losses = [row for each in measured for row in each.clips]
    tables: dict[str, Iterable[Row]] = {
        "steps": steps,
        "bucket_losses": bucket_losses,
        "held_out": sorted(held_out, key=lambda row: row.id),
        "clip_losses": sorted(clip_losses, key=lambda row: row.id),
        "checkpoints": [
            CheckpointRow(
                id=f"step-{record.step:06d}",
                step=record.step,
                phase=record.phase,
                weights_key=record.folder + WEIGHTS,
                ema_key=record.folder + EMA,
                state_key=record.folder + STATE,
            )
            for record in records
        ],
    }
    counts = {
        "steps": done.num_steps,
        "samples": sum(phase.steps * bucket.batch_size for phase in done.phases for bucket in phase.buckets),
        "checkpoints": len(records),
    }
    buckets = _buckets(spec)
    counts |= {f"{words} in {bucket.name}": 0 for bucket in buckets for words in SPLIT_WORDS.values()}
    for clip in clips:
        for bucket in buckets:
            if usable(clip, bucket):
                counts[f"{SPLIT_WORDS[clip.split]} in {bucket.name}"] += 1
    objects = [file for record in records for file in record.files if done is spec or not file.key.endswith(OPTIMIZER)]
    return Joined(tables, items=measures, objects=objects, counts=counts, depends_on=spec.shown)


def _refuse_another_version(spec: TrainSpec, work: Work, checkpoints: Checkpoints) -> None:
    """Raises SpecError: another version of Bricks has begun this training, and did something otherwise in a step."""
    name = work.run.name if work.run is not None else ""
    other = begun_by_another_version(work.store, name, spec, checkpoints.inputs)
    if other is not None:
        raise SpecError(
            f"Another version of Bricks has begun this training (train {other.begun.version}, here "
            f"{STAGES[work.stage.name].version}) and has done {other.newest:,} of {spec.num_steps:,} steps. Either set "
            f"train.continue_from to {name}@{other.newest}, which takes what they have learnt, or begin from the start "
            "with bricks run --renew. That version itself can finish it."
        )


def _measured_buckets(spec: TrainSpec, clips: Sequence[Latent]) -> list[TrainBucket]:
    """The buckets that a held-out clip fits."""
    held_out = [clip for clip in clips if clip.split == "held_out"]
    return [bucket for bucket in _buckets(spec) if any(usable(clip, bucket) for clip in held_out)]


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
        clips: Sequence[Latent],
        stop: StopRequest,
        stack: contextlib.ExitStack,
    ):
        self.spec, self.work, self.everyone = spec, work, everyone
        self.checkpoints, self.stop = checkpoints, stop
        self.plan = Plan(spec, clips)
        codec, text_encoder = one_encoder(clips)
        made = LatentsSpec.model_validate(work.inputs["latents"].manifest.spec)
        self.encoders = Encoders(codec=made.codec, text=made.text, codec_id=codec, text_id=text_encoder)
        packs = Packs(opened_once(work, stack), codec, text_encoder)
        pin = everyone.device.type == "cuda"
        self.loader = Loader(self.plan, packs, rank=everyone.rank, world_size=everyone.world_size, pin=pin)
        self.held_out = HeldOut(spec, clips, packs, everyone)
        self.trainer = Trainer(spec, make_network(spec, work, clips), everyone)
        checkpoints.begin(self.trainer)
        self.tracker = Tracker()
        if everyone.is_first and work.run is not None:
            folder = tracking_folder(work.store.uri)
            self.tracker = open_tracker(work.run, work.stage.name, folder, digest=work.digest)
            stack.callback(self.tracker.finish)
        self.history = History()
        self.since: list[Losses] = []
        """Since the last logged step."""
        self.speed = Speed()
        self.loss = self.held_out_loss = float("nan")

    def run(self, stretches: Sequence[Stretch]) -> None:
        """All that is missing, in order."""
        seed_global_generators(self.spec.seed, self.everyone.rank)
        trained = [each for each in stretches if not each.only_measured]
        num_steps = sum(each.last - each.first for each in trained)
        if self.everyone.is_first:
            total = max(self.spec.num_steps, num_steps)
            self.work.progress.begin(total, done=total - num_steps, unit="steps")
        for stretch in trained:
            self._begin_at(stretch.begin)
            self._train(stretch)
        for stretch in stretches:
            if stretch.only_measured and stretch.begin is not None:
                self.checkpoints.load_weights(stretch.begin, self.trainer)
                self._measure(stretch.begin.step, stretch.due[stretch.begin.step].buckets)
        if self.everyone.is_first and num_steps:
            log.info("train: %s", self.speed.words())

    def _begin_at(self, record: Record | None) -> None:
        """Put everything back to a state; None: it is at the beginning."""
        self.since = []
        self.trainer.losses()  # of steps that nobody wanted a row of
        if record is None:
            return
        state, self.history = self.checkpoints.load(record, self.trainer, with_randomness=self.everyone.is_first)
        index, place = self.plan.place(state.step - 1) if state.step else (0, -1)
        if state.step:
            self.since = self.history.last(self.spec, index, state.step - 1, place)
        if self.everyone.is_first:
            log.info("train: continuing from step %d, %s", state.step, record.folder.rstrip("/"))
            if state.num_processes != self.everyone.world_size:
                log.warning(
                    "train: %d processes before, %d now: same samples and noise, but sums round differently.",
                    state.num_processes,
                    self.everyone.world_size,
                )

    def _train(self, stretch: Stretch) -> None:
        with self.loader.prefetched(stretch.first, stretch.last) as ahead:
            for step in range(stretch.first, stretch.last + 1):
                is_begin = stretch.begin is not None and step == stretch.first
                if signal_number := self.everyone.any(self.stop.signal_number):
                    if not is_begin:  # else nothing was done since that state
                        self._save(step, is_wanted=False)
                    raise Stopped(signal_number)
                if (due := stretch.due.get(step)) is not None:
                    self._measure(step, due.buckets)
                    if due.checkpoint:
                        self._save(step, is_wanted=True)
                if step < stretch.last:
                    self.speed.begin()
                    micro_batches = next(ahead)
                    self.speed.data_is_there()
                    self._step(step, micro_batches)

    def _step(self, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        index, step_in_phase = self.plan.place(step)
        phase = self.spec.phases[index]
        num_samples = sum(bucket.batch_size for bucket in phase.buckets)
        weight = sum(bucket.batch_size * self.spec.weight(bucket.num_frames) for bucket in phase.buckets)
        self.trainer.step(micro_batches, weight, len(phase.buckets), phase.schedule.rate(step_in_phase))
        if is_logged(self.spec, index, step, step_in_phase):
            self.trainer.check_finite()
            self._remember(index)
            self._log(step, index, step_in_phase)
        tokens = sum(batch.num_tokens for batch in micro_batches) * self.everyone.world_size
        self.speed.end(num_samples, tokens)
        if self.everyone.is_first:
            self.work.progress.advance(note=self._note())

    def _remember(self, phase: int) -> None:
        """Fetch the losses of the steps since this was last called."""
        losses = self.trainer.losses()
        if losses is not None:
            self.history.add(phase, losses)
            self.since.append(losses)

    def _log(self, step: int, phase: int, step_in_phase: int) -> None:
        row, by_bucket = logged(self.spec, phase, step, step_in_phase, joined(self.since))
        self.since = []
        self.loss = row.loss
        numbers = row.model_dump(exclude={"id", "step", "phase"})
        self.tracker.log(
            step,
            {f"train/{name}": value for name, value in numbers.items()}
            | {f"train/loss/{each.bucket}": each.loss for each in by_bucket}
            | {f"speed/{name}": value for name, value in self.speed.recent().items()},
        )

    def _measure(self, step: int, buckets: Sequence[str]) -> None:
        """The held-out losses after `step` steps, in those buckets."""
        if not buckets:
            return
        self.trainer.check_finite()
        raw = self.held_out.measure(self.trainer.model, "raw", step, buckets)
        ema = self.held_out.measure(self.trainer.ema.model, "ema", step, buckets)
        rows, clips = raw.rows + ema.rows, raw.clips + ema.clips
        _check_finite(rows)
        if self.everyone.is_first:
            for bucket in _buckets(self.spec):
                if bucket.name in buckets:
                    measured = Measured(
                        rows=[row for row in rows if row.bucket == bucket.name],
                        clips=[row for row in clips if row.bucket == bucket.name],
                    )
                    self.work.items.put(self.checkpoints.trajectory.measure(step, bucket), measured)
        self.held_out_loss = mean_loss(rows, "raw") or float("nan")
        self.tracker.log(
            step, {f"held_out/{row.weights}/{row.bucket}/t{row.first_timestep:03d}": row.loss for row in rows}
        )

    def _save(self, step: int, *, is_wanted: bool) -> None:
        self.trainer.check_finite()
        index, place = self.plan.place(max(step - 1, 0))
        self._remember(index)
        if self.everyone.is_first:
            self.checkpoints.save(self.trainer, self._state(step, index, place), self.history, is_wanted=is_wanted)
        self.everyone.wait_for_all()

    def _state(self, step: int, index: int, last_in_phase: int) -> State:
        phase = self.spec.phases[index]
        done = [min(max(step - begin, 0), each.steps) for begin, each in self.plan.phases()]
        samples = [sum(bucket.batch_size for bucket in each.buckets) for each in self.spec.phases]
        return State(
            step=step,
            phase=phase.name,
            step_in_phase=last_in_phase + 1 if step else 0,
            learning_rate=phase.schedule.rate(last_in_phase),
            samples_seen=sum(num * each for num, each in zip(done, samples, strict=True)),
            num_updates=self.trainer.num_updates,
            folder=self.checkpoints.trajectory.folder(step),
            num_processes=self.everyone.world_size,
            encoders=self.encoders,
        )

    def _note(self) -> str:
        known = {"loss": self.loss, "held-out": self.held_out_loss}
        return ", ".join(f"{name} {value:.3f}" for name, value in known.items() if math.isfinite(value))


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
