"""Real clips as a sample could at best look like: at its size, length and rate, through the run's codec and an mp4.

Their files are read, not their packs: some hundred clips of a large data set would lie in all of its packs. Encoded and
decoded again they are what their latents decode to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from bricks_core.models.vae import LatentCodec
from bricks_core.spec.clip import Clip
from bricks_core.spec.evaluate import EvaluateSpec
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import content_id
from bricks_core.stages.evaluate.samples import to_pixels
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Work
from bricks_core.video.buckets import Size
from bricks_core.video.read import Pixels, read_rgb
from bricks_core.video.resize import fit
from bricks_core.video.write import write_mp4

Split = Literal["train", "held_out"]
_MAX_STRETCHES = 3


@dataclass(frozen=True)
class Stretch:
    """Frames of a clip, as many and as far apart as those of a sample."""

    clip_id: str
    video_id: str
    num_frames: int
    """Of the clip."""
    fps: float
    """Of the clip."""
    begin: int
    interval: int

    @property
    def shown_fps(self) -> float:
        return self.fps / self.interval


@dataclass(frozen=True)
class RealClips:
    """The stretches to look at, and how many clips there are to choose from."""

    stretches: list[Stretch]
    num_clips: int
    """Chosen."""
    of: int
    too_short: int


def choose(spec: EvaluateSpec, work: Work, codec: LatentCodec, split: Split, at_most: int) -> RealClips:
    """Clips of one side, spread over its films; which ones follows from their ids alone.

    Of a held-out clip the middle. Of a training clip as many stretches as it takes for every moment to be near to the
    middle of one: copies are found when they begin a quarter of a sample earlier or later.
    """
    rows = _rows(spec, work, split)
    span = {row.clip_id: 1 + (spec.num_frames - 1) * _interval(spec, row) for row in rows}
    long_enough = [row for row in rows if row.num_frames >= span[row.clip_id]]
    found: list[Stretch] = []
    clips: set[str] = set()
    for row in _spread(long_enough):
        begins = _begins(row.num_frames, span[row.clip_id], codec, split)
        if len(found) + len(begins) > at_most:
            break
        clips.add(row.clip_id)
        found += [
            Stretch(row.clip_id, row.video_id, row.num_frames, row.fps, begin, _interval(spec, row)) for begin in begins
        ]
    return RealClips(found, len(clips), len(rows), len(rows) - len(long_enough))


def decoded_clips(
    spec: EvaluateSpec, size: Size, work: Work, codec: LatentCodec, stretches: Iterable[Stretch]
) -> Iterator[Pixels]:
    """Each stretch's frames, (num_frames, height, width, 3)."""
    stretches = list(stretches)
    wanted = {each.clip_id for each in stretches}
    clips = {clip.id: clip for clip in work.rows("clip", "clips", Clip) if clip.id in wanted}
    for each in stretches:
        clip = clips[each.clip_id]
        first, places = _frames_to_encode(each, spec.num_frames, codec)
        with work.local("clip", clip.key, sha256=clip.sha256) as file:
            pictures = fit(read_rgb(file, first), size.height_px, size.width_px)
        pixels = codec.decode(codec.encode(pictures))[places]
        yield _as_a_sample(to_pixels(pixels), spec.fps)


def _rows(spec: EvaluateSpec, work: Work, split: Split) -> list[Latent]:
    """A row for each clip of that side: of the resolution that is sampled, where it has one."""
    by_clip: dict[str, Latent] = {}
    for row in work.rows("latents", "latents", Latent):
        if row.kind != "video" or row.split != split:
            continue
        if row.clip_id not in by_clip or row.resolution == spec.resolution:
            by_clip[row.clip_id] = row
    return list(by_clip.values())


def _interval(spec: EvaluateSpec, row: Latent) -> int:
    """Frames of the clip to one of a sample, as near to its rate as whole frames come."""
    return max(1, round(row.fps / spec.fps))


def _spread(rows: Iterable[Latent]) -> list[Latent]:
    """One of each film, then a second of each, and so on."""
    films: dict[str, list[Latent]] = defaultdict(list)
    for row in rows:
        films[row.video_id].append(row)
    turns = []
    for film in films.values():
        film.sort(key=lambda row: content_id("measured", row.clip_id))
        turns += [(turn, content_id("measured", row.video_id), row) for turn, row in enumerate(film)]
    return [row for _, _, row in sorted(turns, key=lambda each: each[:2])]


def _begins(num_frames: int, span: int, codec: LatentCodec, split: Split) -> list[int]:
    if codec.time_stride > 1:  # training, too, reads such clips from their first frame on
        return [0]
    slack = num_frames - span
    if split == "held_out":
        return [slack // 2]
    num = min(_MAX_STRETCHES, 1 + math.ceil(max(0.0, 2 * slack / span - 1)))
    return [
        round(slack * (place + 0.5) / num) if num == 1 else round(slack * place / (num - 1)) for place in range(num)
    ]


def _frames_to_encode(stretch: Stretch, num_frames: int, codec: LatentCodec) -> tuple[list[int], list[int]]:
    """Which frames of the clip the codec is given, and which of those that it gives back are looked at."""
    shown = [stretch.begin + place * stretch.interval for place in range(num_frames)]
    if codec.time_stride == 1:
        return shown, list(range(num_frames))
    whole = codec.whole_frames(shown[-1] + codec.time_stride)
    return list(range(whole)), shown


def _as_a_sample(pictures: Pixels, fps: float) -> Pixels:
    """The same, through a file such as samples lie in."""
    with scratch() as folder:
        write_mp4(folder / "clip.mp4", pictures, fps)
        return read_rgb(folder / "clip.mp4")
