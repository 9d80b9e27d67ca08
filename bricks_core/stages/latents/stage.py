"""Clips and captions are encoded once, into packs that training reads windows of.

A task is one clip or image at one size, or one text. What is pending is encoded in groups of one shape, as many as fill
a pack; the index that joins latents, texts and the sides of the split is made when the stage is committed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache

import cv2
import torch

from bricks_core.errors import DataError
from bricks_core.models.text_encoder import load_text_encoder
from bricks_core.models.vae import load_codec
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.items import ItemKey
from bricks_core.spec.latents import Latent, LatentAnswer, LatentsSpec, TextAnswer
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Score
from bricks_core.stages.latents.encode import encode_latents, encode_texts
from bricks_core.stages.latents.packing import packs, store_pack
from bricks_core.stages.latents.sources import (
    Captions,
    LatentTask,
    Plan,
    Recipes,
    Sized,
    Split,
    TextTask,
    sources_of,
    splits_of,
)
from bricks_core.storage.items import digest_of
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Joined, Work


def tasks(spec: LatentsSpec, work: Work) -> Iterator[LatentTask | TextTask]:
    """All latents and texts. Raises DataError: nothing is left to encode."""
    recipes = Recipes.of(spec, work.fingerprints)
    with closing(_captions(work, recipes)) as captions:
        yield from _plan(spec, work, recipes, captions).tasks(captions, recipes)


def run(spec: LatentsSpec, work: Work) -> None:
    """Encode what is pending of this shard, a pack after the other, while threads decode ahead."""
    cv2.setNumThreads(1)  # frames are brought to size in parallel; the library's own threads would only be in the way
    recipes = Recipes.of(spec, work.fingerprints)
    with closing(_captions(work, recipes)) as captions:
        everything = _plan(spec, work, recipes, captions).tasks(captions, recipes)
        pending = work.todo(everything, unit="latents and texts")
        latents = [each for each in pending if isinstance(each, LatentTask)]
        texts = [each for each in pending if isinstance(each, TextTask)]
        # One after the other: while one encoder works, the other's weights need no memory.
        with _threads(1 if spec.codec.kind == "patch-dct" else torch.get_num_threads()):
            _encode_latents(latents, recipes, spec, work)
        _encode_texts(texts, captions, recipes, spec, work)


def join(spec: LatentsSpec, work: Work) -> Joined:
    """The index of all latents, and what is in it."""
    recipes = Recipes.of(spec, work.fingerprints)
    captions = _captions(work, recipes)
    plan = _plan(spec, work, recipes, captions)
    index = _Index.of(plan.sized, recipes, work.items.real)
    work.items.load(index.keys())
    return Joined(
        {"latents": index.rows(captions, work)},
        items=index.keys(),
        counts=index.counts() | {f"too small for {name}": num for name, num in plan.num_too_small.items() if num},
        read_as={"train": digest_of(index.lines())},
    )


def _encode_latents(pending: Sequence[LatentTask], recipes: Recipes, spec: LatentsSpec, work: Work) -> None:
    # Only when there is a pack to fill: weights of many gigabytes are not loaded to find that all is done.
    codec = cache(lambda: load_codec(spec.codec, _device()))
    filled = packs(work, pending, spec, lambda task: (task.source.kind, task.size.height_px, task.size.width_px))
    with closing(filled):
        for pack in filled:
            start_s = time.monotonic()
            sources = [task.source for task in pack]
            with scratch() as folder:
                file = folder / "pack.bin"
                answers = encode_latents(
                    sources, pack[0].size, codec(), lambda each: work.local("clip", each.key, sha256=each.sha256), file
                )
                made = (
                    (recipes.latent(task.source, task.size), answer) for task, answer in zip(pack, answers, strict=True)
                )
                took_s = time.monotonic() - start_s
                rate = sum(source.num_frames for source in sources) / max(took_s, 1e-9)
                store_pack(
                    work, file, [task.key for task in pack], made, codec().id, took_s, note=f"{rate:.0f} frames/s"
                )


def _encode_texts(
    pending: Sequence[TextTask], captions: Captions, recipes: Recipes, spec: LatentsSpec, work: Work
) -> None:
    encoder = cache(lambda: load_text_encoder(spec.text, _device()))
    filled = packs(work, pending, spec, lambda task: None)
    with closing(filled):
        for pack in filled:
            start_s = time.monotonic()
            with scratch() as folder:
                file = folder / "pack.bin"
                answers = list(encode_texts((captions.text(task.caption_id)[0] for task in pack), encoder(), file))
                took_s = time.monotonic() - start_s
                made = (
                    (recipes.text(captions.text(task.caption_id)[0]), answer)
                    for task, answer in zip(pack, answers, strict=True)
                )
                store_pack(work, file, [task.key for task in pack], made, encoder().id, took_s)


def _device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Let torch use `num` threads for a while.

    The built-in codec is so little work that torch's threads, meeting decoders on every core, spend their time waiting
    for each other: with two cores busy it was 14 times as fast on one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _captions(work: Work, recipes: Recipes) -> Captions:
    return Captions(work.rows("caption", "captions", Caption), recipes)


def _plan(spec: LatentsSpec, work: Work, recipes: Recipes, captions: Captions) -> Plan:
    splits = splits_of(work.rows("score", "scores", Score))
    images = work.rows("clip", "images", Image) if spec.images else ()
    sources = sources_of(work.rows("clip", "clips", Clip), images, splits, captions)
    plan = Plan.of(sources, spec, recipes)
    if not plan.sized:
        small = ", ".join(f"{num} too small for {name}" for name, num in plan.num_too_small.items())
        raise DataError(
            f"No clip is left to encode: {len(splits)} clips were kept by the filter, {captions.num_refused} captions "
            f"were not accepted, and of the {plan.num_sources} clips and images that have both, {small}. "
            "Loosen score.filter, look at the caption table's reasons, or add a smaller one to latents.resolutions."
        )
    return plan


@dataclass(frozen=True)
class _Index:
    """The rows of the table to be, by id. An id is made of content alone, so that training takes the same clips in the
    same order however they are called."""

    entries: dict[str, tuple[Sized, Split]]
    empty_text: ItemKey

    @classmethod
    def of(cls, sized: Sequence[Sized], recipes: Recipes, real: Callable[[ItemKey], ItemKey]) -> _Index:
        """`real`: the item that answers for a key (see `Items.real`): it is what a training is made of."""
        entries: dict[str, tuple[Sized, Split]] = {}
        for asked in sized:
            text = real(ItemKey("text", asked.source.text)).key
            each = asked._replace(source=asked.source._replace(text=text), key=real(asked.key))
            name = content_id("latent", each.key.key, each.source.text, each.resolution)
            if name not in entries:
                entries[name] = each, each.source.split
            elif each.source.split == "held_out":  # given twice: what is to be measured on is not to be trained on
                entries[name] = entries[name][0], "held_out"
        return cls(dict(sorted(entries.items())), real(recipes.text("").key))

    def keys(self) -> list[ItemKey]:
        """The items that the rows are made from."""
        texts = dict.fromkeys(ItemKey("text", each.source.text) for each, _ in self.entries.values())
        return [*dict.fromkeys(each.key for each, _ in self.entries.values()), *texts, self.empty_text]

    def lines(self) -> Iterator[str]:
        """What of the table changes a training."""
        for each, split in self.entries.values():
            yield f"{each.key.key} {each.source.text} {each.resolution} {split}"

    def counts(self) -> dict[str, int]:
        """What a person wants to know first. Not how many packs there are: that depends on what was encoded before."""
        counts: Counter[str] = Counter()
        for each, split in self.entries.values():
            things = "clips" if each.source.kind == "video" else "images"
            counts[f"{things} of {each.resolution}, {split.replace('_', ' ')}"] += 1
            counts["frames"] += each.source.num_frames
        return dict(counts)

    def rows(self, captions: Captions, work: Work) -> Iterator[Latent]:
        """In the order of their ids, one at a time."""
        with closing(captions):
            empty_pack, empty = _text(self.empty_text, work)
            for name, (each, split) in self.entries.items():
                source, text_key = each.source, ItemKey("text", each.source.text)
                item = work.items.need(each.key)
                latents = work.items.answer(each.key, LatentAnswer)
                text_pack, text = _text(text_key, work)
                caption, author = captions.text(source.id)
                yield Latent(
                    id=name,
                    clip_id=source.clip_id,
                    video_id=source.video_id,
                    kind=source.kind,
                    split=split,
                    resolution=each.resolution,
                    aspect=each.size.aspect,
                    height_px=each.size.height_px,
                    width_px=each.size.width_px,
                    num_frames=latents.num_frames,
                    time_stride=latents.time_stride,
                    latent_channels=latents.channels,
                    latent_height=latents.height,
                    latent_width=latents.width,
                    fps=source.fps,
                    item=each.key.key,
                    text_item=text_key.key,
                    pack=item.objects[0].key,
                    latents_offset_bytes=latents.offset_bytes,
                    text_pack=text_pack,
                    text_offset_bytes=text.offset_bytes,
                    num_tokens=text.num_tokens,
                    empty_text_pack=empty_pack,
                    empty_text_offset_bytes=empty.offset_bytes,
                    num_empty_tokens=empty.num_tokens,
                    text_width=text.width,
                    caption=caption,
                    caption_by=author,
                    codec=latents.codec,
                    text_encoder=text.encoder,
                )


def _text(key: ItemKey, work: Work) -> tuple[str, TextAnswer]:
    """The pack of a text's features, and where in it they lie."""
    return work.items.need(key).objects[0].key, work.items.answer(key, TextAnswer)
