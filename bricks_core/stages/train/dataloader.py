"""Which samples a step takes, what is random about each, and the batches made of them.

Everything is a function of (run seed, step, data), never of what happened before: a resumed run needs to know its step
and nothing else, and one process or two take the same samples with the same noise. Two kinds of randomness:

- which clips: every bucket goes through its clips in epochs, in an order drawn per epoch. A batch has one shape, so a
  bucket with clips of several aspects draws one per step, as often as it has clips.
- what is done with a sample (window, timestep, caption dropout, frame mask, noise): a counter-based generator keyed by
  the sample's place. The place differs between ranks and threads by construction, so their streams do too; the
  reference gave every rank and loader the same seed.

A thread makes the batches ahead of the step that needs them. A thread, not worker processes: latents come from a memory
map, and handing them over between processes takes most of the time that making them does (benchmarks/train_steps.py).
"""

from __future__ import annotations

import enum
import functools
import hashlib
import queue
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import numpy as np
import torch

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.loss import draw_frame_mask
from bricks_core.diffusion.noise_schedule import NUM_TIMESTEPS
from bricks_core.errors import DataError, SpecError
from bricks_core.spec.latents import Latent
from bricks_core.spec.train import IMAGE_FPS, MaskRatios, Phase, TrainBucket, TrainSpec
from bricks_core.storage.shards import Packs

PREFETCHED_STEPS = 2
# Neither names nor captions change which samples a step takes: rows go by their ids, which are made of content.
_UNREAD = ("caption", "caption_by", "item", "text_item")
_REPEATED = ("video_id", "pack", "text_pack", "empty_text_pack", "codec", "text_encoder")

# ---------------------------------------------------------------------------------------------------------- randomness


class Purpose(enum.IntEnum):
    """What random numbers are for. Another purpose is another stream."""

    SHAPES = 1
    ORDER = 2
    SAMPLE = 3
    HELD_OUT = 4


def randomness(
    seed: int, purpose: Purpose, *, phase: int = 0, bucket: int = 0, step: int = 0, sample: int = 0
) -> np.random.Generator:
    """The random numbers of one place, which is a counter, no history: Philox (Salmon et al., SC 2011, section 3)."""
    place = np.array([0, sample, step, phase << 32 | bucket], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, purpose], dtype=np.uint64), counter=place))


# ---------------------------------------------------------------------------------------------------------- which clips


def usable(row: Latent, bucket: TrainBucket) -> bool:
    """Whether a bucket can take a clip or image."""
    kind = "image" if bucket.num_frames == 1 else "video"
    return row.kind == kind and row.resolution == bucket.resolution and row.num_frames >= bucket.num_frames_spanned


def num_begins(row: Latent, bucket: TrainBucket) -> int:
    """At how many frames of a clip a window may begin: the first alone, where latents tell of frames before them."""
    return 1 if row.time_stride > 1 else row.num_frames - bucket.num_frames_spanned + 1


def latent_shape(row: Latent, bucket: TrainBucket) -> tuple[int, int, int, int]:
    """What a bucket takes of a clip.  -> channels, latents in time, height, width"""
    return row.latent_channels, 1 + (bucket.num_frames - 1) // row.time_stride, row.latent_height, row.latent_width


def slim(rows: Iterable[Latent]) -> Iterator[Latent]:
    """Rows without what training does not read, and with one copy of what all repeat: a kilobyte for each."""
    for row in rows:
        repeated = {name: sys.intern(getattr(row, name)) for name in _REPEATED}
        yield row.model_copy(update={**dict.fromkeys(_UNREAD, ""), **repeated})


class BucketOrder:
    """The order in which one bucket of one phase takes its clips."""

    def __init__(self, rows: Iterable[Latent], batch_size: int, num_steps: int, seed: int, phase: int, bucket: int):
        self._batch_size, self._place = batch_size, {"seed": seed, "phase": phase, "bucket": bucket}
        by_shape: dict[tuple[int, ...], list[Latent]] = defaultdict(list)
        for row in sorted(rows, key=lambda each: each.id):
            by_shape[row.height_px, row.width_px, row.latent_height, row.latent_width].append(row)
        self._shapes = [by_shape[shape] for shape in sorted(by_shape)]
        # The shape of every step, and how often it had its turn before: what makes a batch a function of its step.
        share = np.cumsum([len(rows) for rows in self._shapes]) / sum(map(len, self._shapes))
        drawn = randomness(purpose=Purpose.SHAPES, **self._place).random(num_steps)
        self._shape = np.minimum(np.searchsorted(share, drawn, side="right"), len(self._shapes) - 1)
        self._turn = np.zeros(num_steps, dtype=np.int64)
        for shape in range(len(self._shapes)):
            mine = self._shape == shape
            self._turn[mine] = np.arange(mine.sum())
        self._epoch_order = functools.lru_cache(maxsize=4 * len(self._shapes))(self._draw_epoch_order)

    def batch(self, step: int) -> list[Latent]:
        """The clips of a step of the phase, all of one shape."""
        shape = int(self._shape[step])
        rows = self._shapes[shape]
        first = int(self._turn[step]) * self._batch_size
        places = (divmod(place, len(rows)) for place in range(first, first + self._batch_size))
        return [rows[self._epoch_order(shape, epoch)[place]] for epoch, place in places]

    def _draw_epoch_order(self, shape: int, epoch: int) -> np.ndarray:
        rng = randomness(purpose=Purpose.ORDER, step=epoch, sample=shape, **self._place)
        return rng.permutation(len(self._shapes[shape]))


class Plan:
    """Which clips every step of a run takes."""

    def __init__(self, spec: TrainSpec, rows: Sequence[Latent]):
        """`rows`: all of the index; those held out are left out here.

        Raises SpecError: a bucket has no clip.
        """
        self.spec = spec
        self.num_usable: dict[str, int] = {}
        train = [row for row in rows if row.split == "train"]
        self._orders = []
        for phase_index, phase in enumerate(spec.phases):
            orders = []
            for bucket_index, bucket in enumerate(phase.buckets):
                fitting = [row for row in train if usable(row, bucket)]
                if not fitting:
                    raise SpecError(_nothing_fits(f"train.phases.{phase_index}.buckets.{bucket_index}", bucket, train))
                self.num_usable[bucket.name] = len(fitting)
                orders.append(
                    BucketOrder(fitting, bucket.batch_size, phase.steps, spec.seed, phase_index, bucket_index)
                )
            self._orders.append(orders)

    def place(self, step: int) -> tuple[int, int]:
        """A step's phase, and its number in it."""
        for index, phase in enumerate(self.spec.phases):
            if step < phase.steps:
                return index, step
            step -= phase.steps
        raise IndexError("the run has no such step")

    def phases(self) -> Iterator[tuple[int, Phase]]:
        """The phases, each with the steps before it."""
        begin = 0
        for phase in self.spec.phases:
            yield begin, phase
            begin += phase.steps

    def samples(self, step: int) -> list[list[Sample]]:
        """The samples of a step over all processes, for every bucket of its phase."""
        phase, step_in_phase = self.place(step)
        return [
            [self._sample(row, phase, bucket, step, sample) for sample, row in enumerate(order.batch(step_in_phase))]
            for bucket, order in enumerate(self._orders[phase])
        ]

    def _sample(self, row: Latent, phase: int, bucket: int, step: int, sample: int) -> Sample:
        rng = randomness(self.spec.seed, Purpose.SAMPLE, phase=phase, bucket=bucket, step=step, sample=sample)
        return draw_sample(row, self.spec.phases[phase].buckets[bucket], rng, self.spec)


def _nothing_fits(place: str, bucket: TrainBucket, train: Sequence[Latent]) -> str:
    kind = "image" if bucket.num_frames == 1 else "video"
    plural = "images" if kind == "image" else "clips"
    rows = [row for row in train if row.kind == kind]
    resolutions = sorted({row.resolution for row in rows})
    all_clips = {row.clip_id for row in rows}
    of_size = {row.clip_id for row in rows if row.resolution == bucket.resolution}
    short = {row.clip_id for row in rows if row.resolution == bucket.resolution and not usable(row, bucket)}
    words = f"{place} ({bucket.name}): no {plural} to train on fit it."
    if not rows:
        mend = "set latents.images to true" if kind == "image" else "give more videos, or keep more of their clips"
        return f"{words} There are none at all: {mend}."
    return (
        f"{words} Of {len(all_clips)}, {len(short)} are shorter than the {bucket.num_frames_spanned} frames it needs, "
        f"{len(all_clips) - len(of_size)} have no latents of {bucket.resolution} (there is {', '.join(resolutions)}). "
        "Take fewer num_frames, a smaller frame_interval, or another resolution."
    )


# ------------------------------------------------------------------------------------------------------ what is random


@dataclass(frozen=True)
class Sample:
    """A clip, and what is random about its use in one step."""

    row: Latent
    begin: int
    """First frame of the window."""
    timestep: int
    drop: bool
    """Whether its caption becomes the null caption."""
    frame_mask: list[bool] | None
    """False: the frame is given clean. (T,)"""
    noise: np.random.Generator
    """Where its noise comes from; good for one use."""


def draw_sample(row: Latent, bucket: TrainBucket, rng: np.random.Generator, spec: TrainSpec) -> Sample:
    """Draw all but the noise, in the order in which the fields stand."""
    begin = int(rng.integers(num_begins(row, bucket)))
    timestep = int(rng.integers(NUM_TIMESTEPS))
    drop = float(rng.random()) < spec.caption_dropout
    dice = random.Random(int(rng.integers(2**63)))
    # An image has nothing to be given; without ratios the network gets no mask at all.
    masked = spec.mask_ratios is not None and bucket.num_frames > 1
    mask = draw_frame_mask(strategies(spec.mask_ratios), bucket.num_frames, dice) if masked else None
    return Sample(row, begin, timestep, drop, mask, rng)


@functools.lru_cache(maxsize=8)
def strategies(ratios: MaskRatios | None) -> Mapping[str, float]:
    """The table that a frame mask is drawn from; what the ratios leave over has none.  [13]"""
    named = {f"mask_{name}": ratio for name, ratio in (ratios.model_dump() if ratios else {}).items()}
    return {"mask_no": max(0.0, 1.0 - sum(named.values())), **named}


# -------------------------------------------------------------------------------------------------------------- batches


def collate(bucket_index: int, bucket: TrainBucket, samples: Sequence[Sample], packs: Packs, pin: bool) -> MicroBatch:
    """Read the samples' windows and captions into one batch. All must have one shape.

    Buffers are torch's own, aligned as its kernels want: from differently aligned memory, sums may round differently.
    """
    rows = [sample.row for sample in samples]
    batch, frames, first = len(rows), bucket.num_frames, rows[0]
    channels, num_latents, height, width = latent_shape(first, bucket)
    num_tokens = max(row.num_tokens for row in rows)

    latents = torch.empty((batch, num_latents, channels, height, width), dtype=torch.float16, pin_memory=pin)
    noise = torch.empty((batch, channels, num_latents, height, width), pin_memory=pin)
    text = torch.zeros((batch, num_tokens, first.text_width), dtype=torch.float16, pin_memory=pin)
    text_mask = torch.zeros((batch, num_tokens), dtype=torch.bool, pin_memory=pin)
    empty_text = torch.empty((first.num_empty_tokens, first.text_width), dtype=torch.float16, pin_memory=pin)
    packs.empty_text(first, out=empty_text.numpy())
    for place, sample in enumerate(samples):
        row = sample.row
        packs.window(row, sample.begin, frames, bucket.frame_interval, out=latents[place].numpy())
        sample.noise.standard_normal(dtype=np.float32, out=noise[place].numpy())
        packs.text(row, out=text[place, : row.num_tokens].numpy())
        text_mask[place, : row.num_tokens] = True

    masks = [sample.frame_mask for sample in samples if sample.frame_mask is not None]
    is_image = bucket.num_frames == 1
    sizes = {
        "num_frames": [float(frames)] * batch,
        "height": [float(row.height_px) for row in rows],
        "width": [float(row.width_px) for row in rows],
        "ar": [row.height_px / row.width_px for row in rows],
        "fps": [IMAGE_FPS if is_image else row.fps / bucket.frame_interval for row in rows],
    }
    return MicroBatch(
        bucket=bucket_index,
        latents=latents,
        noise=noise,
        text=text,
        text_mask=text_mask,
        timestep=torch.tensor([sample.timestep for sample in samples]),
        drop=torch.tensor([sample.drop for sample in samples]),
        frame_mask=None if all(map(all, masks)) else torch.tensor(masks),
        sizes={name: torch.tensor(values, dtype=torch.float32) for name, values in sizes.items()},
        empty_text=empty_text,
    )


class Loader:
    """One process's share of every step, as micro-batches."""

    def __init__(self, plan: Plan, packs: Packs, *, rank: int = 0, world_size: int = 1, pin: bool = False):
        """Raises SpecError: a batch_size does not divide by the number of processes."""
        self._plan, self._packs, self._pin = plan, packs, pin
        self._rank, self._world_size = rank, world_size
        for phase_index, phase in enumerate(plan.spec.phases):
            for bucket_index, bucket in enumerate(phase.buckets):
                if bucket.batch_size % world_size:
                    raise SpecError(
                        f"train.phases.{phase_index}.buckets.{bucket_index}.batch_size is {bucket.batch_size}, which "
                        f"does not divide by {world_size} processes: choose a multiple of {world_size}, or another "
                        "number of processes."
                    )

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This process's samples of a step. All processes have as many batches, of the same shapes."""
        phase, _ = self._plan.place(step)
        made = []
        for index, samples in enumerate(self._plan.samples(step)):
            bucket = self._plan.spec.phases[phase].buckets[index]
            mine = samples[self._rank :: self._world_size]
            size = min(bucket.micro_batch_size or len(mine), len(mine))
            made += [
                collate(index, bucket, mine[first : first + size], self._packs, self._pin)
                for first in range(0, len(mine), size)
            ]
        return made

    def prefetched(self, begin: int, end: int, depth: int = PREFETCHED_STEPS) -> Prefetched[list[MicroBatch]]:
        """The micro-batches of steps begin to end - 1, made ahead in a thread. Use it as a context."""
        return Prefetched(self.micro_batches, range(begin, end), depth)


T = TypeVar("T")


class Prefetched(Generic[T]):
    """What `make` makes of each number, in order, made ahead by a thread. A context and an iterator."""

    def __init__(self, make: Callable[[int], T], numbers: range, depth: int):
        self._make, self._numbers = make, numbers
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._num_taken = 0
        self.waited_s = 0.0
        """How long the taker has waited in all."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._num_taken == len(self._numbers):
            raise StopIteration
        began_s = time.perf_counter()
        made, error = self._made.get()
        self.waited_s += time.perf_counter() - began_s
        if error is not None:
            raise error
        self._num_taken += 1
        assert made is not None
        return made

    def _work(self) -> None:
        for number in self._numbers:
            try:
                self._put((self._make(number), None))
            except BaseException as error:  # handed to the taker, who is the one to fail
                self._put((None, error))
                return
            if self._stopped.is_set():
                return

    def _put(self, item: tuple[T | None, BaseException | None]) -> None:
        while not self._stopped.is_set():
            try:
                return self._made.put(item, timeout=0.1)
            except queue.Full:
                continue
        return None


def check_text_width(rows: Sequence[Latent]) -> int:
    """The width of all captions' features.

    Raises DataError: they differ, or there are no rows.
    """
    widths = {row.text_width for row in rows}
    if len(widths) != 1:
        raise DataError(f"Caption features have {len(widths)} widths ({sorted(widths)}): run the latents stage again.")
    return widths.pop()


def number_of(word: str) -> int:
    """63 bits that stand for a word, to key randomness by it."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1
