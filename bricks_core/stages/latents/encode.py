"""Clips become latents, and captions features: decoded, brought to size, encoded and written as a stream of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from bricks_core.errors import DataError
from bricks_core.models.text_encoder import TextEncoder
from bricks_core.models.vae import LatentCodec
from bricks_core.spec.latents import LatentAnswer, TextAnswer
from bricks_core.stages.latents.sources import Source
from bricks_core.storage.in_threads import num_cores
from bricks_core.storage.shards import PackWriter
from bricks_core.video.buckets import Size
from bricks_core.video.read import Pixels, frames
from bricks_core.video.resize import fit

CAPTIONS_AT_ONCE = 16
CHUNKS_AHEAD = 2
MAX_THREADS = 8

T = TypeVar("T")
Locate = Callable[[Source], AbstractContextManager[Path]]


def encode_latents(
    sources: Sequence[Source], size: Size, codec: LatentCodec, locate: Locate, file: Path
) -> list[LatentAnswer]:
    """Write the latents of clips or images to a pack; memory is that of a few chunks, however many there are.

    `locate` gives a source's file. What is left is one answer a source, in their order.

    Raises:
        DataError: a clip has another number of frames than its row says, or the encoder overflowed.
    """
    answers = []
    chunked = _chunked(_all_frames(sources, size, locate), [source.num_frames for source in sources], codec)
    height, width = size.height_px // codec.space_stride, size.width_px // codec.space_stride
    with PackWriter(file) as pack, closing(_ahead(chunked)) as chunks:
        latents = _latents(chunks, codec)
        for source in sources:
            kept = codec.whole_frames(source.num_frames)
            num_latents = codec.num_latents(kept)
            offset = pack.add_latents(islice(latents, num_latents), num_latents, height, width, codec.channels)
            answers.append(
                LatentAnswer(
                    offset_bytes=offset,
                    num_frames=kept,
                    time_stride=codec.time_stride,
                    channels=codec.channels,
                    height=height,
                    width=width,
                    codec=codec.id,
                )
            )
        next(latents, None)  # the last clip, too, may have more frames than its row says
    return answers


def encode_texts(texts: Iterable[str], encoder: TextEncoder, file: Path) -> Iterator[TextAnswer]:
    """Write the features of texts to a pack, which is whole when the last answer was given; a few are in memory.

    Raises:
        DataError: the encoder overflowed.
    """
    coming = iter(texts)
    with PackWriter(file) as pack:
        while some := list(islice(coming, CAPTIONS_AT_ONCE)):
            encoded = iter(encoder.encode([text for text in some if text]))
            for text in some:
                # By itself, as whoever compares with it encodes it: in company, its last digits may be others.
                features = next(encoded) if text else encoder.encode([""])[0]
                yield TextAnswer(
                    offset_bytes=pack.add_text(features),
                    num_tokens=len(features),
                    width=encoder.width,
                    encoder=encoder.id,
                )


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
        with locate(source) as path:
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


def _chunked(
    pixels: Generator[Pixels, None, None], num_frames: Sequence[int], codec: LatentCodec
) -> Generator[Pixels, None, None]:
    """Every clip's frames by themselves, the last few left out that make no whole latent: (at most a chunk, h, w, 3).

    No chunk has frames of two clips: their number in a call changes the last digits, and latents are to be the same in
    any company. A codec that shrinks time takes a clip at once.
    """
    with closing(pixels):
        for all_of_them in num_frames:
            kept = codec.whole_frames(all_of_them)
            chunk = codec.chunk_frames if codec.time_stride == 1 else kept
            for first in range(0, kept, chunk):
                yield np.stack(list(islice(pixels, min(chunk, kept - first))))
            for _ in islice(pixels, all_of_them - kept):
                pass
        next(pixels, None)  # complains if there are more


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
