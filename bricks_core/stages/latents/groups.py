"""What is encoded together: clips and images of one shape and one side of the split, as many as fill a pack.

A group is decided by the rows alone, and its id is made of what is in it: every shard plans the same groups, and a clip
more or less changes the groups of its own shape, no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Score
from bricks_core.spec.train import IMAGE_FPS
from bricks_core.video.buckets import Size, resolution

LATENT_CHANNELS, FLOAT_BYTES, TEXT_WIDTH = 4, 2, 4096
TOKENS_PER_WORD = 1.5  # T5 needs about 1.3 for English; only the size of packs hangs on it

Kind = Literal["video", "image"]
Split = Literal["train", "held_out"]


class Source(NamedTuple):
    """A clip or an image that was kept and has a caption."""

    id: str
    clip_id: str
    video_id: str
    key: str
    """Its file in the clip artifact."""
    num_frames: int
    height_px: int
    width_px: int
    fps: float
    num_words: int
    """Of its caption."""
    kind: Kind
    split: Split


class Shape(NamedTuple):
    """What all of a pack's clips have in common."""

    resolution: str
    size: Size
    kind: Kind
    split: Split


@dataclass(frozen=True)
class Group:
    """The clips or images of one pack."""

    id: str
    shape: Shape
    sources: tuple[Source, ...]

    @property
    def num_frames(self) -> int:
        return sum(source.num_frames for source in self.sources)


@dataclass
class Captions:
    """What grouping needs to know of the captions: accepted ones' lengths, and how many were not accepted."""

    num_words: dict[str, int] = field(default_factory=dict)
    num_refused: int = 0

    @classmethod
    def of(cls, rows: Iterable[Caption]) -> Captions:
        """Look at every caption once."""
        captions = cls()
        for row in rows:
            if row.status == "ok":
                captions.num_words[row.id] = row.num_words
            else:
                captions.num_refused += 1
        return captions


def splits_of(scores: Iterable[Score]) -> dict[str, Split]:
    """The side of the split of every clip that the filter kept."""
    return {score.id: score.split for score in scores if score.state == "kept"}


def sources_of(
    clips: Iterable[Clip], images: Iterable[Image], splits: Mapping[str, Split], captions: Captions
) -> Iterator[Source]:
    """Clips that were kept, and their images; of each what has an accepted caption."""
    for clip in clips:
        if clip.id in splits and clip.id in captions.num_words:
            yield Source(
                id=clip.id,
                clip_id=clip.id,
                video_id=clip.video_id,
                key=clip.key,
                num_frames=clip.num_frames,
                height_px=clip.height_px,
                width_px=clip.width_px,
                fps=clip.fps,
                num_words=captions.num_words[clip.id],
                kind="video",
                split=splits[clip.id],
            )
    for image in images:
        if image.clip_id in splits and image.id in captions.num_words:
            yield Source(
                id=image.id,
                clip_id=image.clip_id,
                video_id=image.video_id,
                key=image.key,
                num_frames=1,
                height_px=image.height_px,
                width_px=image.width_px,
                fps=IMAGE_FPS,
                num_words=captions.num_words[image.id],
                kind="image",
                split=splits[image.clip_id],
            )


@dataclass(frozen=True)
class Grouping:
    """All groups, and how many sources are too small for each resolution."""

    groups: list[Group]
    num_sources: int
    num_too_small: Counter[str]


def group(sources: Iterable[Source], spec: LatentsSpec) -> Grouping:
    """Every source once for each resolution that it is large enough for, in packs of at most `pack_bytes`.

    A source that is larger than a pack has one to itself. Raises SpecError: there is no such resolution.
    """
    by_shape: dict[Shape, list[Source]] = {}
    classes = [resolution(name) for name in dict.fromkeys(spec.resolutions)]
    num_sources, num_too_small = 0, Counter({each.name: 0 for each in classes})
    for source in sources:
        num_sources += 1
        for each in classes:
            if not each.is_large_enough(source.height_px, source.width_px, spec.min_scale):
                num_too_small[each.name] += 1
                continue
            size = each.size_for(source.height_px, source.width_px)
            by_shape.setdefault(Shape(each.name, size, source.kind, source.split), []).append(source)
    groups = [
        Group(
            content_id("latents", *shape[2:], shape.resolution, *shape.size, *(each.id for each in pack)), shape, pack
        )
        for shape, members in sorted(by_shape.items())
        for pack in _packs(sorted(members), shape.size, spec)
    ]
    return Grouping(groups, num_sources, num_too_small)


def _packs(sources: Iterable[Source], size: Size, spec: LatentsSpec) -> Iterator[tuple[Source, ...]]:
    """Cut a list where a pack is full."""
    pack: list[Source] = []
    pack_bytes = 0
    for source in sources:
        num_bytes = _num_bytes(source, size, spec)
        if pack and pack_bytes + num_bytes > spec.pack_bytes:
            yield tuple(pack)
            pack, pack_bytes = [], 0
        pack.append(source)
        pack_bytes += num_bytes
    if pack:
        yield tuple(pack)


def _num_bytes(source: Source, size: Size, spec: LatentsSpec) -> int:
    """What a source takes in a pack, its text estimated."""
    stride = spec.codec.time_stride
    # The codec that shrinks time by four has four times the channels.
    num_latents, channels = 1 + (source.num_frames - 1) // stride, LATENT_CHANNELS * stride
    latents = num_latents * channels * size.latent_height * size.latent_width
    text = min(spec.text.max_tokens, 1 + round(TOKENS_PER_WORD * source.num_words)) * TEXT_WIDTH
    return (latents + text) * FLOAT_BYTES
