"""Small films of every awkward kind, written on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

WriteFilm = Callable[..., Path]


def texture(seed: int, height: int = 96, width: int = 160) -> np.ndarray:
    """(height, width, 3): a soft coloured pattern, different for every seed."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (height // 24, width // 24, 3)).astype(np.float32)
    soft = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 100 * soft, 0, 255).astype(np.uint8)


def numbered(num_frames: int, height: int = 96, width: int = 160) -> np.ndarray:
    """(num_frames, height, width, 3): frame i is grey of brightness 40 + 4 * i, so that a frame tells its number."""
    levels = (40 + 4 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def number_of(picture: np.ndarray) -> int:
    """The number that `numbered` wrote into a picture."""
    return round((float(picture.mean()) - 40) / 4)


def write_film(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 25,
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    colour: dict[str, int] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write RGB pictures as they are, without the product's own writer."""
    with av.open(str(path), "w", options=container or {}) as film:
        stream: Any = None
        for index, picture in enumerate(pictures):
            if stream is None:
                stream = film.add_stream(codec, rate=rate, options=options or {})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pix_fmt
                if time_base:
                    stream.time_base = stream.codec_context.time_base = time_base
                for name, value in (colour or {}).items():
                    setattr(stream.codec_context, name, value)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = pts[index] if pts else index
            frame.time_base = time_base or Fraction(1, 1) / Fraction(rate)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


def turn_by_90(film: Path) -> Path:
    """Say in the display matrix (ISO/IEC 14496-12 section 8.3.2) that the picture is to be turned counter-clockwise."""
    data = bytearray(film.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    for place, value in enumerate((0, -0x10000, 0, 0x10000, 0, 0, 0, 0, 0x40000000)):
        data[matrix + 4 * place : matrix + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    film.write_bytes(data)
    return film


class Films:
    """The functions of this file, since test files cannot import it."""

    texture = staticmethod(texture)
    numbered = staticmethod(numbered)
    number_of = staticmethod(number_of)
    write = staticmethod(write_film)
    turn_by_90 = staticmethod(turn_by_90)


@pytest.fixture(scope="session")
def films() -> type[Films]:
    return Films
