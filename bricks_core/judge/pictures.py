"""What of a clip is looked at: small pictures over its length, its motion, and which frames stand for it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError
from bricks_core.spec.caption import CaptionStatus
from bricks_core.video.motion import Motion, MotionMeter, shift_of, small_size, steady_change
from bricks_core.video.read import frames
from bricks_core.video.write import jpeg

Pixels = npt.NDArray[np.uint8]

NUM_PICTURES = 32
SAME = 2.0
"""Block change, beyond exposure and shift, up to which two pictures are the same."""
STILL = 4.0
"""Motion up to which nothing moves at all: below what a shaking camera or a key frame does."""
BLACK, WHITE, PLAIN = 8, 247, 4
"""Mean luma below or above which, and its deviation up to which, a picture shows nothing."""
NOTHING = "it is black, white or plain"


@dataclass(frozen=True)
class Seen:
    """A clip as it was seen. Small pictures are (height, width, 3) BGR of about 320x180."""

    small: dict[int, Pixels]
    """By the frame's place in the clip: at most 32, evenly spread, and the chosen ones."""
    chosen: list[int]
    """The frames that stand for the clip."""
    motion: Motion
    status: CaptionStatus
    """What can be told without reading the content: ok, or one of the three answers."""
    reason: str = ""


def see(path: Path, num_frames: int, fps: float, shares: Iterable[float]) -> Seen:
    """Look through a clip once.

    Raises:
        DataError: it cannot be read.
    """
    wanted = _at(shares, num_frames)
    kept = {*np.linspace(0, num_frames - 1, min(NUM_PICTURES, num_frames)).round().astype(int).tolist(), *wanted}
    small: dict[int, Pixels] = {}
    meter = MotionMeter()
    with closing(frames(path)) as film:
        for frame in film:
            picture = frame.small_bgr(*small_size(frame.picture.width, frame.picture.height))
            meter.add(_luma(picture))
            if frame.index in kept:
                small[frame.index] = picture
    return seen(small, [index for index in wanted if index in small], meter.result(fps))


def see_moving(path: Path, num_frames: int, shares: Iterable[float]) -> tuple[list[int], dict[int, Pixels]] | None:
    """Of a clip that is known to move: the frames that `see` would choose, and these in full, (height, width, 3) RGB.

    One pass that ends with the last of them, and measures nothing. None: what to choose takes all of `see`.

    Raises:
        DataError: it cannot be read.
    """
    wanted = _at(shares, num_frames)
    small: dict[int, Pixels] = {}
    pictures: dict[int, Pixels] = {}
    with closing(frames(path)) as film:
        for frame in film:
            if frame.index in wanted:
                small[frame.index] = frame.small_bgr(*small_size(frame.picture.width, frame.picture.height))
                pictures[frame.index] = frame.rgb()
            if frame.index >= max(wanted, default=-1):
                break
    if not wanted or not pictures.keys() >= set(wanted) or all(map(shows_nothing, small.values())):
        return None
    lumas = {index: _luma(picture) for index, picture in small.items()}
    return (wanted, pictures) if _differ(wanted, lumas) else None


def see_picture(path: Path) -> Seen:
    """Look at a picture as at a clip of one frame.

    Raises:
        DataError: it cannot be read.
    """
    picture = read_picture(path)
    height, width = picture.shape[:2]
    small = np.asarray(cv2.resize(picture, small_size(width, height), interpolation=cv2.INTER_AREA), np.uint8)
    meter = MotionMeter()
    meter.add(_luma(small))
    return seen({0: small}, [0], meter.result(0.0))


def see_frames(rgb: Pixels, fps: float) -> Seen:
    """Look at a clip that is in memory, such as a sample: (num_frames, height, width, 3) RGB.

    Raises:
        DataError: it has another shape or type.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 4 or rgb.shape[-1] != 3 or not all(rgb.shape):
        raise DataError(
            f"A clip is uint8 (num_frames, height, width, 3), not {rgb.dtype} {rgb.shape}: bring it to that."
        )
    if not fps > 0:
        raise DataError(f"A clip's rate is {fps} frames a second: give one above 0.")
    num_frames, height, width, _ = rgb.shape
    kept = set(np.linspace(0, num_frames - 1, min(NUM_PICTURES, num_frames)).round().astype(int).tolist())
    small: dict[int, Pixels] = {}
    meter = MotionMeter()
    for index, picture in enumerate(rgb):
        resized = cv2.resize(picture, small_size(width, height), interpolation=cv2.INTER_AREA)
        bgr = np.ascontiguousarray(resized[..., ::-1])
        meter.add(_luma(bgr))
        if index in kept:
            small[index] = bgr
    return seen(small, [sorted(small)[len(small) // 2]], meter.result(fps))


def read_picture(path: Path) -> Pixels:
    """(height, width, 3) BGR.

    Raises:
        DataError: it cannot be read.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise DataError(f"{path.name} cannot be decoded: run the clip stage again.")
    return np.asarray(picture, np.uint8)


def seen(small: dict[int, Pixels], wanted: list[int], motion: Motion) -> Seen:
    """Choose the frames, and answer what needs no reading: which of the three answers holds, if any."""
    lumas = {index: _luma(picture) for index, picture in small.items()}
    if not wanted or all(shows_nothing(small[index]) for index in wanted):
        return Seen(small, wanted, motion, "not_enough_information", NOTHING)
    if motion.change <= STILL and all(_same(lumas[wanted[0]], lumas[index]) for index in small):
        return Seen(small, wanted, motion, "single_image", "all its pictures are the same")
    if motion.change <= STILL:
        return Seen(small, wanted, motion, "no_movement", f"its motion is {motion.change:.1f} of 255")
    return Seen(small, differing(wanted, lumas), motion, "ok")


def differing(wanted: list[int], lumas: dict[int, Pixels]) -> list[int]:
    """The wanted frames; where all show the same pose, one moved to the nearest picture with another.

    A walk can be back at its first pose at 20, 50 and 80 %: one picture three times, of a clip that moves.
    """
    if _differ(wanted, lumas):
        return wanted
    middle = len(wanted) // 2
    after = wanted[middle + 1] if middle + 1 < len(wanted) else max(lumas) + 1
    between = [index for index in lumas if wanted[middle - 1] < index < after]
    for index in sorted(between, key=lambda each: (abs(each - wanted[middle]), each)):
        if not _same(lumas[wanted[0]], lumas[index]):
            return [*wanted[:middle], index, *wanted[middle + 1 :]]
    return wanted


def _at(shares: Iterable[float], num_frames: int) -> list[int]:
    return [round(share * (num_frames - 1)) for share in shares]


def _differ(wanted: list[int], lumas: dict[int, Pixels]) -> bool:
    """Whether the wanted frames are one, or do not all show the same pose."""
    # The last first: of what moves it is the one that is most likely another.
    return len(wanted) < 2 or not all(_same(lumas[wanted[0]], lumas[index]) for index in reversed(wanted[1:]))


def shows_nothing(bgr: Pixels) -> bool:
    """Black, white or of one plain tone."""
    luma = _luma(bgr)
    return not BLACK <= luma.mean() <= WHITE or float(luma.std()) <= PLAIN


def to_jpeg(rgb: Pixels, max_side_px: int) -> bytes:
    """(height, width, 3) as a JPEG whose longer side is at most that."""
    height, width = rgb.shape[:2]
    scale = max_side_px / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    return jpeg(rgb, 90)


def _same(one: Pixels, other: Pixels) -> bool:
    return one is other or steady_change(one, other, shift_of(one, other))[0] < SAME


def _luma(bgr: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))
