"""What Open-Sora 1.1 does with a table of clips: which bucket a clip gets, which frames, in which batches.

For running side by side with it, and for telling its users what their bucket configuration does to a table. Our own
training takes every clip for every bucket it fits, and frames evenly (buckets.py). Numbers in brackets are sections of
the specification, docs/stdit2.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bricks_core.errors import SpecError
from bricks_core.video.buckets import ClipSize, Size, resolution

BucketConfig = Mapping[str, Mapping[int, tuple[float, int | None]]]
"""Resolution -> frames -> (probability to keep a clip, batch size). (0.0, None) sends clips to the next resolution."""


class Bucket(NamedTuple):
    """A shape of samples. Those of one batch have the same."""

    resolution: str
    num_frames: int
    size: Size
    batch_size: int


# -------------------------------------------------------------------------------------------------------------- frames


def begins(total_frames: int, num_frames: int, frame_interval: int) -> range:
    """Where the frames of a sample may begin; one place is drawn of these.  [14]"""
    return range(max(0, total_frames - num_frames * frame_interval - 1) + 1)


def frames_from(begin: int, total_frames: int, num_frames: int, frame_interval: int) -> list[int]:
    """The frames taken: so many points of linspace(begin, end - 1), truncated; their stride is not quite k.  [14]

    Raises:
        ValueError: fewer than `num_frames` frames are left.
    """
    end = min(begin + num_frames * frame_interval, total_frames)
    if end - begin < num_frames:
        raise ValueError(f"{total_frames} frames from {begin} on are too few for {num_frames}.")
    return [int(each) for each in np.linspace(begin, end - 1, num_frames, dtype=int)]


# ------------------------------------------------------------------------------------------------------------- buckets


class Buckets:
    """The buckets of a configuration, and which of them a clip gets: large resolutions first, each by chance.  [15]

    Raises:
        SpecError: a resolution that there is not, a probability that is none, or clips kept without a batch size.
    """

    def __init__(self, config: BucketConfig, frame_interval: int = 1):
        self.frame_interval = frame_interval
        self.lengths = {
            each: dict(sorted(config[each.name].items(), reverse=True))
            for each in sorted(map(resolution, config), key=lambda each: -each.num_pixels)
        }
        """Resolution -> frames -> (probability, batch size): most pixels first, then most frames."""
        pairs = [(each.name, num_frames) for each, lengths in self.lengths.items() for num_frames in lengths]
        self.number = {pair: number for number, pair in enumerate(pairs)}
        """(resolution, frames) -> its number in that order. A chance is drawn from a clip's seed and this."""
        self.num_buckets = sum(len(each.sizes) * len(lengths) for each, lengths in self.lengths.items())
        """How many (resolution, frames, ratio) there are."""
        for name, num_frames in pairs:
            probability, batch_size = config[name][num_frames]
            if not 0 <= probability <= 1 or (probability > 0 and not batch_size):
                raise SpecError(
                    f"The bucket of {num_frames} frames at {name} is ({probability}, {batch_size}): it needs the "
                    "probability to keep a clip, from 0 to 1, and unless that is 0 a batch size."
                )

    def of(self, clip: ClipSize, seed: int) -> Bucket | None:
        """The bucket that a clip gets with that seed, or None."""
        for each, lengths in self.lengths.items():
            if not each.is_large_enough(clip.height_px, clip.width_px):
                continue
            num_frames = self._longest(clip.num_frames, lengths)
            if num_frames is None:
                continue
            probability, batch_size = lengths[num_frames]
            chance = seed + self.number[each.name, num_frames]
            if batch_size and (probability == 1 or np.random.default_rng(chance).random() < probability):
                return Bucket(each.name, num_frames, each.size_for(clip.height_px, clip.width_px), batch_size)
        return None

    def of_table(self, clips: Iterable[ClipSize], seed: int, epoch: int = 0) -> list[Bucket | None]:
        """The bucket of every row in one epoch. A row's chance depends on its number, and on no other row."""
        return [self.of(clip, seed + epoch + row * self.num_buckets) for row, clip in enumerate(clips)]

    def _longest(self, clip_frames: int, lengths: Iterable[int]) -> int | None:
        """An image fits 1 frame; a video the largest length of which it has more than length x interval frames."""
        if clip_frames == 1:
            return 1 if 1 in lengths else None
        fitting = (each for each in lengths if each != 1 and clip_frames > each * self.frame_interval)
        return max(fitting, default=None)


# ------------------------------------------------------------------------------------------------------------- batches


class BatchSampler:
    """The batches of one rank in one epoch after the other, each a list of "row-frames-height-width".  [16]

    A batch sampler for torch's DataLoader. Every rank draws the same order and takes its share; ranks may have
    different shapes in one step. A state goes on in the middle of an epoch, with any number of ranks.
    """

    def __init__(
        self,
        clips: Sequence[ClipSize],
        buckets: Buckets,
        *,
        seed: int = 42,
        rank: int = 0,
        num_ranks: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
    ):
        self.clips, self.buckets = clips, buckets
        self.seed, self.rank, self.num_ranks = seed, rank, num_ranks
        self.shuffle, self.drop_last = shuffle, drop_last
        self.epoch = 0
        self.first_entry = 0

    def __iter__(self) -> Iterator[list[str]]:
        """The rest of this epoch; after it, the next epoch's turn has come."""
        rows, order = self._drawn()
        taken = dict.fromkeys(rows, 0)
        first_step = self.first_entry // self.num_ranks
        for place, bucket in enumerate(order[: len(order) // self.num_ranks * self.num_ranks]):
            begin = taken[bucket]
            taken[bucket] += bucket.batch_size
            step, rank = divmod(place, self.num_ranks)
            if step >= first_step and rank == self.rank:
                # An entry added to fill the last step finds its bucket's rows taken: its batch is empty, as theirs.
                height_px, width_px = bucket.size.height_px, bucket.size.width_px
                of_batch = rows[bucket][begin : taken[bucket]]
                yield [f"{row}-{bucket.num_frames}-{height_px}-{width_px}" for row in of_batch]
        self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        """Steps of the whole epoch."""
        return len(self._drawn()[1]) // self.num_ranks

    def set_epoch(self, epoch: int) -> None:
        """Begin that epoch."""
        self.epoch, self.first_entry = epoch, 0

    def state_dict(self, num_steps: int) -> dict[str, int]:
        """Where this epoch is after that many steps. In upstream's words, as its checkpoints hold it (`sampler`)."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "last_micro_batch_access_index": num_steps * self.num_ranks,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there: at the last step that this number of ranks has whole."""
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.first_entry = state["last_micro_batch_access_index"]

    def _drawn(self) -> tuple[dict[Bucket, list[int]], list[Bucket]]:
        """Each bucket's rows, and the buckets in the order in which they give a batch each, of all ranks."""
        import torch

        generator = torch.Generator().manual_seed(self.seed + self.epoch)

        def permuted(entries: list) -> list:
            if not self.shuffle:
                return entries
            return [entries[place] for place in torch.randperm(len(entries), generator=generator).tolist()]

        rows: dict[Bucket, list[int]] = {}
        for row, bucket in enumerate(self.buckets.of_table(self.clips, self.seed, self.epoch)):
            if bucket is not None:
                rows.setdefault(bucket, []).append(row)
        rows = {bucket: permuted(self._in_wholes(of_it, bucket.batch_size)) for bucket, of_it in rows.items()}
        order = permuted([bucket for bucket, of_it in rows.items() for _ in range(len(of_it) // bucket.batch_size)])
        return rows, self._in_wholes(order, self.num_ranks)

    def _in_wholes(self, entries: list, size: int) -> list:
        """Cut to a multiple of `size`, or extended by the first entries towards one."""
        left = len(entries) % size
        if self.drop_last:
            return entries[: len(entries) - left]
        return entries + (entries[: size - left] if left else [])


# --------------------------------------------------------------------------------------------------------- for a person


class BucketTally(NamedTuple):
    """How many clips of a table one bucket gets."""

    bucket: Bucket
    num_clips: int

    @property
    def num_batches(self) -> int:
        """Whole ones; the rest of the clips waits for another epoch's order."""
        return self.num_clips // self.bucket.batch_size


@dataclass(frozen=True)
class Tally:
    """What a bucket configuration does to a table of clips in one epoch."""

    buckets: tuple[BucketTally, ...]
    """Those that get a clip, in visiting order, then by the ratio's place in its table."""
    num_clips: int
    num_unused: int
    """Clips that fit no bucket, or that chance left out."""

    @property
    def num_batches(self) -> int:
        return sum(each.num_batches for each in self.buckets)


def tally(clips: Iterable[ClipSize], buckets: Buckets, *, seed: int = 42, epoch: int = 0) -> Tally:
    """How many clips of a table each bucket gets in one epoch, and how many get none."""
    assigned = buckets.of_table(clips, seed, epoch)
    counts = Counter(bucket for bucket in assigned if bucket is not None)

    def place(bucket: Bucket) -> tuple[int, int]:
        sizes = resolution(bucket.resolution).sizes
        return buckets.number[bucket.resolution, bucket.num_frames], sizes.index(bucket.size)

    return Tally(
        buckets=tuple(BucketTally(bucket, counts[bucket]) for bucket in sorted(counts, key=place)),
        num_clips=len(assigned),
        num_unused=len(assigned) - counts.total(),
    )
