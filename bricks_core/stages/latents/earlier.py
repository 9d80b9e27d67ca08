"""Items of what a latents artifact of schema 1 holds: latents and features of texts, in packs of both."""

from __future__ import annotations

from collections.abc import Iterator

from bricks_core.spec.latents import LatentAnswer, LatentsSpec, TextAnswer
from bricks_core.spec.manifest import StoredObject, content_id
from bricks_core.stages.latents.sources import Recipes, Source
from bricks_core.storage.earlier import Cut, Derived, Earlier, Left
from bricks_core.video.buckets import Size

_COLUMNS = [
    *("id", "kind", "resolution", "aspect", "height_px", "width_px", "num_frames", "time_stride", "latent_channels"),
    *("latent_height", "latent_width", "pack", "latents_offset_bytes", "text_offset_bytes", "num_tokens", "text_width"),
    *("empty_text_offset_bytes", "num_empty_tokens", "caption", "codec", "text_encoder"),
]


def derived(earlier: Earlier) -> Iterator[Derived | Left]:
    """Latents and features, each where it lies in its pack."""
    spec = LatentsSpec.model_validate(earlier.spec)
    recipes = Recipes.of(spec, earlier.fingerprints)
    clips = earlier.needs["clip"].cuts if "clip" in earlier.needs else {}
    cuts = {content_id("latent", name, each): cut for name, cut in clips.items() for each in spec.resolutions}
    texts = set()
    for row in earlier.rows("latents", _COLUMNS):
        pack, cut = earlier.file(row["pack"]), cuts.get(row["id"])
        if pack is None:
            yield Left("latent", "its pack is gone")
            continue
        if cut is None:
            yield Left("latent", "the clip is not known any more")
        else:
            size = Size(row["aspect"], row["height_px"], row["width_px"])
            answer = LatentAnswer(
                offset_bytes=row["latents_offset_bytes"],
                num_frames=row["num_frames"],
                time_stride=row["time_stride"],
                channels=row["latent_channels"],
                height=row["latent_height"],
                width=row["latent_width"],
                codec=row["codec"],
            )
            yield Derived(recipes.latent(_source(cut), size), answer.model_dump(), (pack,), by=row["codec"])
        for text, offset, num_tokens in (
            (row["caption"], row["text_offset_bytes"], row["num_tokens"]),
            ("", row["empty_text_offset_bytes"], row["num_empty_tokens"]),
        ):
            if text not in texts:
                texts.add(text)
                yield _text(text, offset, num_tokens, row["text_width"], row["text_encoder"], recipes, pack)


def _text(
    text: str, offset: int, num_tokens: int, width: int, encoder: str, recipes: Recipes, pack: StoredObject
) -> Derived:
    answer = TextAnswer(offset_bytes=offset, num_tokens=num_tokens, width=width, encoder=encoder)
    return Derived(recipes.text(text), answer.model_dump(), (pack,), by=encoder)


def _source(cut: Cut) -> Source:
    """As far as the key of its latents depends on it."""
    return Source(
        id="",
        clip_id="",
        video_id="",
        key=cut.file.key,
        sha256=cut.file.sha256,
        item=cut.item,
        num_frames=cut.num_frames,
        height_px=0,
        width_px=0,
        fps=cut.fps,
        text="",
        kind=cut.kind,
        split="train",
    )
