"""Clips and captions are encoded once, into packs that training reads windows of.

An item of work is a group: clips, or images, of one shape, as many as fill a pack. A finished one leaves a pack and its
rows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import cv2
import torch

from bricks_core.errors import DataError
from bricks_core.models.text_encoder import load_text_encoder
from bricks_core.models.vae import load_codec
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.latents import Latent, LatentsSpec
from bricks_core.spec.score import Score
from bricks_core.spec.strict import Row
from bricks_core.stages.latents.encode import Encoders, encode_group
from bricks_core.stages.latents.groups import Captions, Group, Grouping, group, sources_of, splits_of
from bricks_core.storage.in_order import in_order
from bricks_core.storage.scratch import scratch
from bricks_core.storage.work import Joined, Work


def items(spec: LatentsSpec, work: Work) -> list[Group]:
    """All groups: see groups.py. Raises DataError: nothing is left to encode."""
    return _grouping(spec, work).groups


def run(spec: LatentsSpec, work: Work) -> None:
    """Encode this shard's groups, one after the other, while threads decode ahead."""
    cv2.setNumThreads(1)  # frames are brought to size in parallel; the library's own threads would only be in the way
    encoders: Encoders | None = None
    with _threads(1 if spec.codec.kind == "patch-dct" else torch.get_num_threads()):
        for each in work.todo(items(spec, work), unit="packs"):
            # Only now: weights of many gigabytes are not loaded to find that all is done.
            encoders = encoders or load_encoders(spec)
            _encode(each, encoders, work)


def join(spec: LatentsSpec, work: Work) -> Joined:
    """The index of all packs, and what is in them."""
    grouping = _grouping(spec, work)
    counts: Counter[str] = Counter(packs=len(grouping.groups))
    for each in grouping.groups:
        things = f"{'clips' if each.shape.kind == 'video' else 'images'} of {each.shape.resolution}"
        counts[f"{things}, {each.shape.split.replace('_', ' ')}"] += len(each.sources)
        counts["frames"] += each.num_frames
    for name, num in grouping.num_too_small.items():
        if num:
            counts[f"too small for {name}"] = num
    return Joined({"latents": in_order(work.part_rows("latents", Latent), Latent)}, counts=dict(counts))


def load_encoders(spec: LatentsSpec) -> Encoders:
    """The two encoders, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Encoders(load_codec(spec.codec, device), load_text_encoder(spec.text, device))


def _encode(each: Group, encoders: Encoders, work: Work) -> None:
    start_s = time.monotonic()
    captions = _captions_of(each, work)
    key = f"packs/{each.id}.bin"
    with scratch() as folder:
        file = folder / "pack.bin"
        rows: list[Row] = [*encode_group(each, captions, encoders, partial(work.local, "clip"), file, key)]
        stored = work.put_file(key, file)
    rate = each.num_frames / max(time.monotonic() - start_s, 1e-9)
    work.done(each.id, {"latents": rows}, [stored], note=f"{rate:.0f} frames/s")


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


def _grouping(spec: LatentsSpec, work: Work) -> Grouping:
    captions = Captions.of(work.rows("caption", "captions", Caption))
    splits = splits_of(work.rows("score", "scores", Score))
    images = work.rows("clip", "images", Image) if spec.images else ()
    grouping = group(sources_of(work.rows("clip", "clips", Clip), images, splits, captions), spec)
    if not grouping.groups:
        small = ", ".join(f"{num} too small for {name}" for name, num in grouping.num_too_small.items())
        raise DataError(
            f"No clip is left to encode: {len(splits)} clips were kept by the filter, {captions.num_refused} captions "
            f"were not accepted, and of the {grouping.num_sources} clips and images that have both, {small}. "
            "Loosen score.filter, look at the caption table's reasons, or add a smaller one to latents.resolutions."
        )
    return grouping


def _captions_of(each: Group, work: Work) -> dict[str, Caption]:
    """The captions of a group: found by reading past the others, so that memory holds those of one group."""
    wanted = {source.id for source in each.sources}
    return {row.id: row for row in work.rows("caption", "captions", Caption) if row.id in wanted}
