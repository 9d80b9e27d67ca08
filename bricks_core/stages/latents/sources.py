"""What is to be encoded: each clip and image that was kept, at every size that it is large enough for; and each text.

Latents are made of a clip, its frames, a size and a codec; features of a text and an encoder. Names of resolutions,
sides of the split, ids and (for latents) captions are in neither key, so none of them has anything encoded again.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.score import Score
from bricks_core.spec.strict import what_of
from bricks_core.spec.train import IMAGE_FPS
from bricks_core.video.buckets import Size, resolution

LATENT_CHANNELS, FLOAT_BYTES, TEXT_WIDTH = 4, 2, 4096
TOKENS_PER_WORD = 1.5  # T5 needs about 1.3 for English; only the size of packs hangs on it

Kind = Literal["video", "image"]
Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Recipes:
    """The keys of latents and of features under one run's settings."""

    codec: dict[str, Any]
    """What tells the codec from others."""
    encoder: dict[str, Any]
    """What tells the text encoder from others."""
    time_stride: int

    @classmethod
    def of(cls, spec: LatentsSpec, fingerprints: Mapping[str, str]) -> Self:
        """`fingerprints`: of weights that lie in folders, by setting."""

        def named(name: str, settings: dict[str, Any]) -> dict[str, Any]:
            weights = fingerprints.get(f"{name}.model")
            return settings if weights is None else settings | {"weights": weights}

        return cls(named("codec", what_of(spec.codec)), named("text", what_of(spec.text)), spec.codec.time_stride)

    def latent(self, source: Source, size: Size) -> Recipe:
        """Of a clip's or image's latents."""
        return recipe(
            "latent",
            of=[source.item] if source.kind == "video" else [source.item, "image"],
            num_frames=self.whole_frames(source.num_frames),
            height_px=size.height_px,
            width_px=size.width_px,
            codec=self.codec,
        )

    def text(self, text: str) -> Recipe:
        """Of a caption's features."""
        return recipe("text", text=text, encoder=self.encoder)

    def whole_frames(self, num_frames: int) -> int:
        """As many frames as make whole latents."""
        return 1 + max(num_frames - 1, 0) // self.time_stride * self.time_stride


class Source(NamedTuple):
    """A clip or an image that was kept and has a caption."""

    id: str
    clip_id: str
    video_id: str
    key: str
    """Its file."""
    sha256: str
    item: str
    """What it was made as: see the clip's row."""
    num_frames: int
    height_px: int
    width_px: int
    fps: float
    text: str
    """Key of its caption's features."""
    kind: Kind
    split: Split


@dataclass(frozen=True, slots=True)
class LatentTask:
    """One clip or image to be encoded at one size."""

    key: ItemKey
    source: Source
    size: Size

    @property
    def id(self) -> str:
        return _task_id(self.key)

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (self.key,)

    def num_bytes(self, spec: LatentsSpec) -> int:
        """What its latents take in a pack."""
        stride = spec.codec.time_stride
        # The codec that shrinks time by four has four times the channels.
        num_latents, channels = 1 + (self.source.num_frames - 1) // stride, LATENT_CHANNELS * stride
        return num_latents * channels * self.size.latent_height * self.size.latent_width * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class TextTask:
    """One text to be encoded."""

    key: ItemKey
    caption_id: str
    """One of the captions that say it; empty: the empty caption."""
    num_words: int

    @property
    def id(self) -> str:
        return _task_id(self.key)

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (self.key,)

    def num_bytes(self, spec: LatentsSpec) -> int:
        """About what its features take in a pack."""
        return min(spec.text.max_tokens, 1 + round(TOKENS_PER_WORD * self.num_words)) * TEXT_WIDTH * FLOAT_BYTES


def batch_number(key: ItemKey) -> int:
    """The batch that an item is claimed with, one of 256. Whole batches go to a shard, so that shards never meet.

    Coarser than usual: a pack takes items of many batches, all of which are claimed until it is in the store.
    """
    return int(key.key[:2], 16)


def _task_id(key: ItemKey) -> str:
    return f"{batch_number(key):08x}{key.key}"


class Captions:
    """The accepted captions, by the ids of their clips and images. On disk: memory does not grow with them."""

    def __init__(self, rows: Iterable[Caption], recipes: Recipes):
        """Looks at every row once."""
        self.num_refused = 0
        # No name: SQLite's file of its own, which grows on disk and is gone when closed.
        self._table = sqlite3.connect("", check_same_thread=False)
        self._table.execute(
            "CREATE TABLE captions (id TEXT PRIMARY KEY, key TEXT, words INTEGER, text TEXT, author TEXT) WITHOUT ROWID"
        )
        accepted = (row for row in rows if self._is_accepted(row))
        self._table.executemany(
            "INSERT INTO captions VALUES (?, ?, ?, ?, ?)",
            ((row.id, recipes.text(row.text).key.key, row.num_words, row.text, row.by) for row in accepted),
        )

    def close(self) -> None:
        """Take them off the disk."""
        self._table.close()

    def text_key(self, caption_id: str) -> str | None:
        """The key of a caption's features; None: no such caption was accepted."""
        found = self._row("key", caption_id)
        return None if found is None else str(found[0])

    def num_words(self, caption_id: str) -> int:
        found = self._row("words", caption_id)
        return 0 if found is None else int(found[0])

    def text(self, caption_id: str) -> tuple[str, str]:
        """What a caption says, and who wrote it. Of no caption: nothing, and nobody."""
        found = self._row("text, author", caption_id)
        return ("", "") if found is None else (found[0], found[1])

    def _row(self, columns: str, caption_id: str) -> Any:
        return self._table.execute(f"SELECT {columns} FROM captions WHERE id = ?", (caption_id,)).fetchone()

    def _is_accepted(self, row: Caption) -> bool:
        if row.status != "ok":
            self.num_refused += 1
        return row.status == "ok"


def splits_of(scores: Iterable[Score]) -> dict[str, Split]:
    """The side of the split of every clip that the filter kept."""
    return {score.id: score.split for score in scores if score.state == "kept"}


def sources_of(
    clips: Iterable[Clip], images: Iterable[Image], splits: Mapping[str, Split], captions: Captions
) -> Iterator[Source]:
    """Clips that were kept, and their images; of each what has an accepted caption."""
    for row in clips:
        if row.id in splits and (text := captions.text_key(row.id)) is not None:
            yield _source(row, "video", row.id, splits[row.id], text, row.num_frames, row.fps)
    for image in images:
        if image.clip_id in splits and (text := captions.text_key(image.id)) is not None:
            yield _source(image, "image", image.clip_id, splits[image.clip_id], text, 1, IMAGE_FPS)


def _source(
    row: Clip | Image, kind: Kind, clip_id: str, split: Split, text: str, num_frames: int, fps: float
) -> Source:
    return Source(
        id=row.id,
        clip_id=clip_id,
        video_id=row.video_id,
        key=row.key,
        sha256=row.sha256,
        item=row.item,
        num_frames=num_frames,
        height_px=row.height_px,
        width_px=row.width_px,
        fps=fps,
        text=text,
        kind=kind,
        split=split,
    )


class Sized(NamedTuple):
    """A source at one of the resolutions that it is large enough for."""

    source: Source
    resolution: str
    size: Size
    key: ItemKey
    """Of its latents."""


@dataclass(frozen=True)
class Plan:
    """All that is to be encoded under some settings."""

    sized: list[Sized]
    num_sources: int
    num_too_small: Counter[str] = field(default_factory=Counter)
    """Sources that are too small, by resolution."""

    @classmethod
    def of(cls, sources: Iterable[Source], spec: LatentsSpec, recipes: Recipes) -> Self:
        """Every source once for each resolution that it is large enough for.

        Raises:
            SpecError: there is no such resolution.
        """
        classes = [resolution(name) for name in dict.fromkeys(spec.resolutions)]
        sized: list[Sized] = []
        num_sources, num_too_small = 0, Counter({each.name: 0 for each in classes})
        for source in sources:
            num_sources += 1
            for each in classes:
                if each.is_large_enough(source.height_px, source.width_px, spec.min_scale):
                    size = each.size_for(source.height_px, source.width_px)
                    sized.append(Sized(source, each.name, size, recipes.latent(source, size).key))
                else:
                    num_too_small[each.name] += 1
        return cls(sized, num_sources, num_too_small)

    def tasks(self, captions: Captions, recipes: Recipes) -> Iterator[LatentTask | TextTask]:
        """One for each latents and each text, the empty one too: what has several names comes once."""
        latents = {each.key: each for each in reversed(self.sized)}
        yield from (LatentTask(key, each.source, each.size) for key, each in sorted(latents.items()))
        said_by = {each.source.text: each.source.id for each in self.sized} | {recipes.text("").key.key: ""}
        for key, caption_id in sorted(said_by.items()):
            yield TextTask(ItemKey("text", key), caption_id, captions.num_words(caption_id))
