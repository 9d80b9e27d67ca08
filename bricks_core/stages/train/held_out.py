"""The loss that tells: on clips kept from training, at fixed timesteps, with fixed noise, for raw and EMA weights.

The training loss says little: it depends far more on which timesteps were drawn than on what was learnt. Here nothing
is drawn, so two numbers of the same bucket and bin differ by the weights alone.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.noise_schedule import NUM_TIMESTEPS
from bricks_core.spec.latents import Latent
from bricks_core.spec.strict import Strict
from bricks_core.spec.train import IMAGE_FPS, ClipLossRow, HeldOutRow, HeldOutSpec, TrainBucket, TrainSpec
from bricks_core.stages.train.dataloader import (
    Purpose,
    Sample,
    collate,
    num_begins,
    number_of,
    randomness,
    usable,
)
from bricks_core.stages.train.parallel import Processes
from bricks_core.storage.shards import Packs

log = logging.getLogger("bricks")


@dataclass(frozen=True)
class Bin:
    """A stretch of timesteps, and those of it that are asked about."""

    first: int
    end: int
    timesteps: list[int]


def bins(spec: HeldOutSpec) -> list[Bin]:
    """All 1000 timesteps in stretches as equal as can be, each asked about at evenly spaced places."""
    edges = [round(NUM_TIMESTEPS * place / spec.num_timestep_bins) for place in range(spec.num_timestep_bins + 1)]
    made = []
    for first, end in itertools.pairwise(edges):
        places = [(place + 0.5) / spec.timesteps_per_bin for place in range(spec.timesteps_per_bin)]
        made.append(Bin(first, end, [first + int(place * (end - first)) for place in places]))
    return made


class Measured(Strict):
    """The held-out losses of a state in one bucket: the answer of an item of kind held_out."""

    rows: list[HeldOutRow]
    clips: list[ClipLossRow] = []


class Asked(NamedTuple):
    """A clip that is measured, and the clip whose noise it gets."""

    row: Latent
    noise_of: Latent


class HeldOut:
    """Measures a network on held-out clips of every distinct bucket of a run, and on as many that it learns from."""

    def __init__(self, spec: TrainSpec, rows: Sequence[Latent], packs: Packs, everyone: Processes):
        self._spec, self._packs, self._everyone = spec, packs, everyone
        self._family = family_of(spec.model)
        self._bins = bins(spec.held_out)
        self._clips: dict[str, list[Latent]] = {}
        self._learnt: dict[str, list[Latent]] = {}
        self._knows_images = any(bucket.num_frames == 1 for phase in spec.phases for bucket in phase.buckets)
        self._buckets = {bucket.name: bucket for phase in spec.phases for bucket in phase.buckets}
        for name, bucket in self._buckets.items():
            self._clips[name] = _chosen(rows, bucket, "held_out", spec.held_out.num_samples)
            self._learnt[name] = _chosen(rows, bucket, "train", len(self._clips[name]))
            if not self._clips[name] and everyone.is_first:
                log.warning("train: no held-out clip fits bucket %s, so it has no held-out loss.", name)

    @property
    def num_clips(self) -> dict[str, int]:
        """How many clips each bucket is measured on."""
        return {name: len(clips) for name, clips in self._clips.items()}

    @torch.no_grad()
    def measure(
        self, model: nn.Module, weights: Literal["raw", "ema"], step: int, buckets: Collection[str]
    ) -> Measured:
        """The losses of a network, by bucket and bin, over all processes; each measures its share of the batches."""
        rows: list[HeldOutRow] = []
        by_clip: list[ClipLossRow] = []
        for name, clips in self._clips.items():
            if not clips or name not in buckets:
                continue
            bucket = self._buckets[name]
            # Of the weights that count: each costs as much again. What shrinks time has no latents of single frames.
            counts = weights == "ema"
            alone = counts and bucket.num_frames > 1 and clips[0].time_stride == 1
            cells = self._cells(model, bucket, [Asked(clip, clip) for clip in clips], alone)
            rows += self._rows(name, cells, weights, step)
            by_clip += _by_clip(name, clips, cells, weights, step)
            if counts and (learnt := self._learnt[name]):
                asked = [Asked(*pair) for pair in zip(learnt, clips, strict=False)]
                by_clip += _by_clip(name, learnt, self._cells(model, bucket, asked, alone=False), weights, step)
        return Measured(rows=rows, clips=by_clip)

    def _cells(self, model: nn.Module, bucket: TrainBucket, asked: Sequence[Asked], alone: bool) -> Tensor:
        """loss, mse, vb, and mse of frames alone, of every clip in every bin.  -> (clips, bins, 4) float64"""
        device = self._everyone.device
        sums = torch.zeros((len(asked) * len(self._bins), 5), dtype=torch.float64, device=device)
        for number, (places, batch) in enumerate(self._batches(bucket, asked)):
            if number % self._everyone.world_size == self._everyone.rank:
                there = batch().to(device)
                losses = self._family.loss(model, there, self._spec.precision)
                by_itself = self._alone(model, there, bucket) if alone else torch.zeros_like(losses.mse)
                each = torch.stack([losses.loss, losses.mse, losses.vb, by_itself, torch.ones_like(losses.loss)], dim=1)
                sums.index_add_(0, torch.tensor(places, device=device), each.double())
        sums = self._everyone.summed(sums).cpu().reshape(len(asked), len(self._bins), 5)
        return sums[..., :4] / sums[..., 4:]

    def _alone(self, model: nn.Module, batch: MicroBatch, bucket: TrainBucket) -> Tensor:
        """mse of every sample's frames, each by itself: what the network knows without its neighbours.  -> (B,)"""
        # As an image, where it has learnt what images are; else as a clip that has one frame.
        told = {"num_frames": 1.0, "fps": IMAGE_FPS} if self._knows_images else {"num_frames": 1.0}
        frames = [batch.alone(frame, told) for frame in range(bucket.num_frames)]
        return torch.stack([self._family.loss(model, each, self._spec.precision).mse for each in frames]).mean(dim=0)

    def _batches(self, bucket: TrainBucket, asked: Sequence[Asked]) -> Iterator[tuple[list[int], _Batch]]:
        """The cells (clip x bins + bin) of a batch's samples, and what makes the batch: only who needs it reads it."""
        by_shape: dict[tuple[int, ...], list[tuple[int, Asked, int]]] = defaultdict(list)
        for number, each in enumerate(asked):
            for place, stretch in enumerate(self._bins):
                for timestep in stretch.timesteps:
                    row = each.row
                    by_shape[row.height_px, row.width_px, row.latent_height].append(
                        (number * len(self._bins) + place, each, timestep)
                    )
        size = self._spec.held_out.batch_size
        for shape in sorted(by_shape):
            for first in range(0, len(by_shape[shape]), size):
                chosen = by_shape[shape][first : first + size]
                samples = [(each, timestep) for _, each, timestep in chosen]
                yield [place for place, _, _ in chosen], _Batch(self._spec.seed, bucket, samples, self._packs)

    def _rows(self, bucket: str, cells: Tensor, weights: Literal["raw", "ema"], step: int) -> Iterator[HeldOutRow]:
        for each, (loss, mse, vb, alone) in zip(self._bins, cells.mean(dim=0).tolist(), strict=True):
            yield HeldOutRow(
                id=f"{step:08d}/{bucket}/{weights}/{each.first:03d}",
                step=step,
                weights=weights,
                bucket=bucket,
                first_timestep=each.first,
                end_timestep=each.end,
                loss=loss,
                mse=mse,
                vb=vb,
                num_samples=len(cells),
                mse_alone=alone,
            )


def _chosen(
    rows: Sequence[Latent], bucket: TrainBucket, split: Literal["train", "held_out"], at_most: int
) -> list[Latent]:
    """Clips of a side that fit a bucket, by a hash: one more clip in the data changes one of these at most."""
    fitting = [row for row in rows if row.split == split and usable(row, bucket)]
    return sorted(fitting, key=lambda row: number_of(row.id))[:at_most]


def _by_clip(
    bucket: str, clips: Sequence[Latent], cells: Tensor, weights: Literal["raw", "ema"], step: int
) -> Iterator[ClipLossRow]:
    for clip, (loss, mse, _, _) in zip(clips, cells.mean(dim=1).tolist(), strict=False):
        yield ClipLossRow(
            id=f"{step:08d}/{bucket}/{weights}/{clip.id}",
            step=step,
            weights=weights,
            bucket=bucket,
            split=clip.split,
            clip_id=clip.clip_id,
            video_id=clip.video_id,
            loss=loss,
            mse=mse,
        )


@dataclass(frozen=True)
class _Batch:
    """A batch that is read when it is called."""

    seed: int
    bucket: TrainBucket
    samples: Sequence[tuple[Asked, int]]
    packs: Packs

    def __call__(self) -> MicroBatch:
        return collate(0, self.bucket, [self._sample(*each) for each in self.samples], self.packs, pin=False)

    def _sample(self, asked: Asked, timestep: int) -> Sample:
        """The middle window of a clip, with the noise that it (or another clip) has at this timestep, always."""
        noise = randomness(self.seed, Purpose.HELD_OUT, step=timestep, sample=number_of(asked.noise_of.id))
        begin = (num_begins(asked.row, self.bucket) - 1) // 2
        return Sample(asked.row, begin, timestep, drop=False, frame_mask=None, noise=noise)


def neighbours_gain(rows: Sequence[HeldOutRow], first: int = 0, end: int = NUM_TIMESTEPS) -> float | None:
    """How much easier frames are together than alone, as a share of their loss alone: 0 is no use of neighbours.

    The mean over bins within [first, end) and over buckets, of the rows of one measurement. None: not measured.
    """
    pairs = [
        (row.mse, row.mse_alone)
        for row in rows
        if row.mse_alone > 0 and first <= row.first_timestep and row.end_timestep <= end
    ]
    alone = sum(each for _, each in pairs)
    return 1 - sum(mse for mse, _ in pairs) / alone if alone > 0 else None


def mean_loss(rows: Sequence[HeldOutRow], weights: Literal["raw", "ema"]) -> float | None:
    """One number of a measurement: the mean over bins, then over buckets. None when nothing was measured."""
    by_bucket: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.weights == weights:
            by_bucket[row.bucket].append(row.loss)
    means = [sum(losses) / len(losses) for losses in by_bucket.values()]
    return sum(means) / len(means) if means else None
