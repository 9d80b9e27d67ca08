"""A group of clips becomes a pack: decoded, brought to size, encoded and written as a stream of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from bricks_core.errors import DataError
from bricks_core.models.text_encoder import TextEncoder
from bricks_core.models.vae import LatentCodec
from bricks_core.spec.caption import Caption
from bricks_core.spec.latents import Latent
from bricks_core.spec.manifest import content_id
from bricks_core.stages.latents.groups import Group, Source
from bricks_core.storage.in_threads import num_cores
from bricks_core.storage.shards import PackWriter
from bricks_core.video.buckets import Size
from bricks_core.video.read import Pixels, frames
from bricks_core.video.resize import fit

CAPTIONS_AT_ONCE = 16
CHUNKS_AHEAD = 2
MAX_THREADS = 8

T = TypeVar("T")
Locate = Callable[[str], AbstractContextManager[Path]]


@dataclass(frozen=True)
class Encoders:
    """The two that make a pack."""

    codec: LatentCodec
    text: TextEncoder


def encode_group(
    group: Group, captions: Mapping[str, Caption], encoders: Encoders, locate: Locate, file: Path, key: str
) -> list[Latent]:
    """Write a group's pack to `file` and return its index; memory is that of a few chunks, whatever the group's size.

    `captions` by source id; `locate` gives a source's file; `key` is what the pack will be called. Raises DataError: a
    clip has another number of frames than its row says, or an encoder overflowed.
    """
    rows = []
    size = group.shape.size
    codec = encoders.codec
    num_frames = [codec.whole_frames(source.num_frames) for source in group.sources]
    pixels = _all_frames(group.sources, size, locate)
    if codec.time_stride == 1:
        # Frames of different clips share chunks: all have one size, and an image costs no more than a frame.
        chunked = _chunked(pixels, codec.chunk_frames)
    else:
        chunked = _by_clip(pixels, [source.num_frames for source in group.sources], num_frames)
    with PackWriter(file) as pack, closing(_ahead(chunked)) as chunks:
        latents = _latents(chunks, codec)
        texts = _texts([captions[source.id].text for source in group.sources], encoders.text, pack)
        empty = encoders.text.encode([""])[0]
        for source, frames_kept in zip(group.sources, num_frames, strict=True):
            num_latents = codec.num_latents(frames_kept)
            shape = (num_latents, size.height_px // codec.space_stride, size.width_px // codec.space_stride)
            offset = pack.add_latents(islice(latents, num_latents), *shape, codec.channels)
            text_offset, num_tokens = next(texts)
            caption = captions[source.id]
            rows.append(
                Latent(
                    id=content_id("latent", source.id, group.shape.resolution),
                    clip_id=source.clip_id,
                    video_id=source.video_id,
                    kind=source.kind,
                    split=source.split,
                    resolution=group.shape.resolution,
                    aspect=size.aspect,
                    height_px=size.height_px,
                    width_px=size.width_px,
                    num_frames=frames_kept,
                    time_stride=codec.time_stride,
                    latent_channels=codec.channels,
                    latent_height=shape[1],
                    latent_width=shape[2],
                    fps=source.fps,
                    pack=key,
                    latents_offset_bytes=offset,
                    text_offset_bytes=text_offset,
                    num_tokens=num_tokens,
                    empty_text_offset_bytes=pack.add_text(empty),
                    num_empty_tokens=len(empty),
                    text_width=encoders.text.width,
                    caption=caption.text,
                    caption_by=caption.by,
                    codec=codec.id,
                    text_encoder=encoders.text.id,
                )
            )
    return rows


def read_image(path: Path) -> Pixels:
    """(height, width, 3) in 0..255, of a JPEG or PNG. Raises DataError: it is none."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise DataError(f"{path.name} is no picture that can be read.")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _all_frames(sources: Iterable[Source], size: Size, locate: Locate) -> Generator[Pixels, None, None]:
    """Every frame of every source in turn, brought to size: (height_px, width_px, 3).

    One thread decodes, as many as there are cores bring to size: converting and shrinking take twice as long.
    """

    def fitted(picture: Callable[[], Pixels]) -> Pixels:
        return fit(picture()[None], size.height_px, size.width_px)[0]

    num_threads = min(MAX_THREADS, num_cores())
    with closing(_all_pictures(sources, locate)) as pictures, ThreadPoolExecutor(num_threads) as pool:
        coming: deque[Future[Pixels]] = deque()
        for picture in pictures:
            coming.append(pool.submit(fitted, picture))
            if len(coming) >= 2 * num_threads:
                yield coming.popleft().result()
        yield from (each.result() for each in coming)


def _all_pictures(sources: Iterable[Source], locate: Locate) -> Generator[Callable[[], Pixels], None, None]:
    """Every frame of every source in turn, decoded and not yet converted."""
    for source in sources:
        num_frames = 0
        with locate(source.key) as path:
            if source.kind == "image":
                yield partial(np.asarray, read_image(path))
                continue
            with closing(frames(path)) as film:
                for frame in film:
                    num_frames += 1
                    yield frame.rgb
        if num_frames != source.num_frames:
            raise DataError(
                f"Clip {source.id} has {num_frames} frames, its row says {source.num_frames}: its file is not the one "
                "that was cut. Run the clip stage again."
            )


def _chunked(pixels: Generator[Pixels, None, None], num_frames: int) -> Generator[Pixels, None, None]:
    with closing(pixels):
        while chunk := list(islice(pixels, num_frames)):
            yield np.stack(chunk)


def _by_clip(
    pixels: Generator[Pixels, None, None], num_frames: Sequence[int], num_kept: Sequence[int]
) -> Generator[Pixels, None, None]:
    """Every clip's frames by themselves, the last few left out that make no whole latent: (kept, height, width, 3)."""
    with closing(pixels):
        for all_of_them, kept in zip(num_frames, num_kept, strict=True):
            yield np.stack(list(islice(pixels, all_of_them))[:kept])
        next(pixels, None)  # the last clip, too, may have more frames than its row says


def _ahead(chunks: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same chunks, made in a thread while the last one is used: decoding and encoding overlap."""
    with closing(chunks), ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        coming: deque[Future[T | None]] = deque(pool.submit(next, chunks, None) for _ in range(CHUNKS_AHEAD))
        while (chunk := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, chunks, None))
            yield chunk


def _latents(chunks: Iterator[Pixels], codec: LatentCodec) -> Iterator[np.ndarray]:
    """One after the other, (1, channels, latent height, latent width)."""
    for chunk in chunks:
        for frame in codec.encode(chunk).cpu().numpy():
            yield frame[None]


def _texts(captions: list[str], encoder: TextEncoder, pack: PackWriter) -> Iterator[tuple[int, int]]:
    """Where each caption's features begin in the pack, and how many rows they have; equal captions are encoded once."""
    places: dict[str, tuple[int, int]] = {}
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        some = captions[start : start + CAPTIONS_AT_ONCE]
        new = [caption for caption in dict.fromkeys(some) if caption not in places]
        for caption, features in zip(new, encoder.encode(new), strict=True):
            places[caption] = pack.add_text(features), len(features)
        yield from (places[caption] for caption in some)
