"""Sizes that clips are brought to, and which clips a training bucket can use. Open-Sora 1.1's resolution classes.

A resolution is a class such as 360p, with a table of sizes by aspect ratio (height / width), or one explicit size such
as 96x160 (height x width, in pixels). aspect_ratios.json holds the tables; their order decides ties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple, Protocol

import numpy as np

from bricks_core.errors import SpecError, nearest

VAE_STRIDE = 8


class Size(NamedTuple):
    """A size that frames are brought to."""

    aspect: str
    """The ratio's key within its class, or the size itself."""
    height_px: int
    width_px: int

    @property
    def latent_height(self) -> int:
        """The VAE rounds down: 426 wide becomes 53 latents, which decode to 424."""
        return self.height_px // VAE_STRIDE

    @property
    def latent_width(self) -> int:
        return self.width_px // VAE_STRIDE


@dataclass(frozen=True)
class Resolution:
    """A class of sizes of about the same number of pixels."""

    name: str
    num_pixels: int
    sizes: tuple[Size, ...]

    def size_for(self, height_px: int, width_px: int) -> Size:
        """The size whose ratio key is nearest to height / width; the first of equals."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        ratio = height_px / width_px
        return min(self.sizes, key=lambda size: abs(ratio - float(size.aspect)))

    def is_large_enough(self, height_px: int, width_px: int, min_scale: float = 0.8) -> bool:
        """Whether a picture has at least that share of this class's pixels."""
        return height_px * width_px >= min_scale * self.num_pixels


class TrainingBucket(Protocol):
    """What is asked of a bucket here: spec.train.TrainBucket is one."""

    @property
    def num_frames(self) -> int: ...
    @property
    def resolution(self) -> str: ...
    @property
    def frame_interval(self) -> int: ...


class ClipSize(NamedTuple):
    """What decides whether a clip fits a bucket."""

    num_frames: int
    height_px: int
    width_px: int


@dataclass(frozen=True)
class BucketCoverage:
    """How many of some clips one training bucket can use; each clip is counted once."""

    num_frames: int
    resolution: str
    frame_interval: int
    num_usable: int = 0
    num_too_short: int = 0
    """Also those that are too small as well."""
    num_too_small: int = 0
    """Long enough, but with too few pixels."""


@dataclass(frozen=True)
class Coverage:
    """Which clips the buckets of a run can use."""

    buckets: tuple[BucketCoverage, ...]
    num_clips: int
    num_unused: int
    """Fit no bucket at all: too short for each, or too small, or the one here and the other there."""
    num_unused_too_short: int
    """Of these: too short for every bucket."""
    num_unused_too_small: int
    """Of these: too small for every bucket."""


@cache
def resolution(name: str) -> Resolution:
    """The resolution of that name: a class of the table, or HxW.

    Raises:
        SpecError: there is none.
    """
    if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name):
        height_px, width_px = int(match[1]), int(match[2])
        if min(height_px, width_px) < 2 * VAE_STRIDE:
            raise SpecError(f"Resolution {name} is too small: both sides need at least {2 * VAE_STRIDE} pixels.")
        return Resolution(name, height_px * width_px, (Size(name, height_px, width_px),))
    table = _table()
    if name not in table:
        raise SpecError(
            f'There is no resolution "{name}"{nearest(name, table)}: {" ".join(table)}, or a size such as 96x160 '
            "(height x width in pixels)."
        )
    return table[name]


def usable(num_frames: int, bucket_frames: int, frame_interval: int) -> bool:
    """Whether a clip has `bucket_frames` frames at that interval: the first, and each next `frame_interval` on."""
    return num_frames >= span(bucket_frames, frame_interval)


def span(bucket_frames: int, frame_interval: int) -> int:
    """Frames of a clip from the first one taken to the last one, both included."""
    return (bucket_frames - 1) * frame_interval + 1


def num_begins(num_frames: int, bucket_frames: int, frame_interval: int) -> int:
    """In how many places a clip's sample can begin; 0 when the clip is too short."""
    return max(0, num_frames - span(bucket_frames, frame_interval) + 1)


def frame_indices(begin: int, bucket_frames: int, frame_interval: int) -> list[int]:
    """The frames of a sample: begin, begin + k, begin + 2k, ... Evenly spaced, so that the told fps is true."""
    return [begin + index * frame_interval for index in range(bucket_frames)]


def coverage(clips: Iterable[ClipSize], buckets: Sequence[TrainingBucket], *, min_scale: float = 0.8) -> Coverage:
    """How many clips each bucket can use, and how many none can. `clips` may be a stream."""
    classes = [resolution(bucket.resolution) for bucket in buckets]
    counts = np.zeros((len(buckets), 3), int)
    num_clips = num_unused = num_unused_short = num_unused_small = 0
    for clip in clips:
        short = [not usable(clip.num_frames, bucket.num_frames, bucket.frame_interval) for bucket in buckets]
        small = [not each.is_large_enough(clip.height_px, clip.width_px, min_scale) for each in classes]
        for place in range(len(buckets)):
            counts[place, 1 if short[place] else 2 if small[place] else 0] += 1
        num_clips += 1
        if all(a or b for a, b in zip(short, small, strict=True)):
            num_unused += 1
            num_unused_short += all(short)
            num_unused_small += all(small)
    rows = tuple(
        BucketCoverage(each.num_frames, each.resolution, each.frame_interval, *map(int, row))
        for each, row in zip(buckets, counts, strict=True)
    )
    return Coverage(rows, num_clips, num_unused, num_unused_short, num_unused_small)


@cache
def _table() -> dict[str, Resolution]:
    data = json.loads(files("bricks_core.video").joinpath("aspect_ratios.json").read_text(encoding="utf-8"))
    return {
        name: Resolution(name, entry["pixels"], tuple(Size(key, *size) for key, size in entry["ratios"].items()))
        for name, entry in data.items()
    }
