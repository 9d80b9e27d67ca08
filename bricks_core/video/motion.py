"""What moves between two frames, and how far: measured on small pictures, apart from exposure and a shaking camera.

Pictures are brought to about 320x180 first (`small_size`), so that the numbers mean the same for every film.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SMALL_AREA_PX = 320 * 180
BLOCK_PX = 16
SHAKE_PX = 1.5
"""A small picture shifted by at most this was shaken, not panned, unless it goes on in one direction."""
NOISE = 1.0
"""Block changes up to this are compression: every key frame of a poor encoding differs by about that."""
MOVING_LEVELS = 14
"""A pixel that changes by more than this, beyond exposure and shake, belongs to something that moves."""
_MAX_GAIN = 1.6
_MIN_RESPONSE = 0.05
_DRIFT_PX = 0.2
_DOUBTFUL_PX = 0.3
_TEXTURE = 1.5

LEAST_SIDE_PX = 32
"""OpenCV 5.0's optical flow (DIS) ends the process on pictures that are lower than this and 100 pixels wide or more."""


def small_size(width_px: int, height_px: int) -> tuple[int, int]:
    """(width, height) of a picture of the same shape with about 320x180 pixels, even and at least LEAST_SIDE_PX."""
    scale = math.sqrt(SMALL_AREA_PX / (width_px * height_px))
    width, height = (max(LEAST_SIDE_PX, round(side * scale / 2) * 2) for side in (width_px, height_px))
    return width, height


def exposure_gain(before: Pixels, after: Pixels) -> float:
    """By how much the light changed: the median over blocks of after / before, which things that move do not sway.

    (height, width) each, luma.
    """
    a, b = _block_means(before.astype(np.float32)), _block_means(after.astype(np.float32))
    gain = float(np.median((b + 1) / (a + 1)))
    return min(max(gain, 1 / _MAX_GAIN), _MAX_GAIN)


def block_change(before: Pixels | Floats, after: Pixels | Floats) -> float:
    """The largest mean |difference| of a 16x16 block, in levels of 255: large for a small thing that moves.

    A mean over the picture cannot tell a small figure from a flickering still.
    """
    return float(_block_means(cv2.absdiff(before.astype(np.float32), after.astype(np.float32))).max())


def shift_of(before: Pixels, after: Pixels) -> tuple[float, float]:
    """How far the whole picture moved, (right, down) in pixels, by phase correlation; (0, 0) where none stands out."""
    height, width = before.shape
    a, b = before.astype(np.float32), after.astype(np.float32)
    (x, y), response = cv2.phaseCorrelate(a, b, _window(width, height))
    if response < _MIN_RESPONSE or abs(x) > width / 3 or abs(y) > height / 3:
        return 0.0, 0.0
    if math.hypot(x, y) > _DOUBTFUL_PX and not _all_over(a, b, (x, y)):
        return 0.0, 0.0
    return float(x), float(y)


def shifted(picture: Floats, x: float, y: float) -> Floats:
    """The picture moved right and down; edges are repeated."""
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    size = (picture.shape[1], picture.shape[0])
    moved = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def steady_change(before: Pixels, after: Pixels, shift: tuple[float, float]) -> tuple[float, Floats]:
    """What changed beyond exposure and a shift: the largest block's mean, and every pixel's change (height, width)."""
    expected = shifted(before.astype(np.float32), *shift) * exposure_gain(before, after)
    change = np.asarray(cv2.absdiff(np.clip(expected, 0, 255), after.astype(np.float32)), np.float32)
    # What a shift uncovers at the edges is not known: it must not count.
    margin_x, margin_y = (math.ceil(abs(each)) + 1 for each in shift)
    change[:margin_y], change[-margin_y:], change[:, :margin_x], change[:, -margin_x:] = 0, 0, 0, 0
    return float(_block_means(change).max()), change


@dataclass(frozen=True)
class Motion:
    """A clip's motion."""

    change: float
    """90th percentile over neighbouring frames of the largest block change, beyond exposure and shake (of 255)."""
    picture_fps: float
    duplicate_share: float
    """Share of frames that show what the one before showed."""
    things_x: float
    """Mean displacement of what moves by itself, in widths per second, right is positive."""
    things_y: float
    """In heights per second, down is positive."""
    sway_x: float
    """As things_x, but way and way back add up instead of cancelling."""
    sway_y: float
    camera_x: float
    """Of the camera's view over what it sees, in widths per second: positive when it pans or travels right."""
    camera_y: float


@dataclass
class MotionMeter:
    """Takes a clip's small luma pictures in order; holds one of them at a time."""

    _before: Pixels | None = None
    _raw: list[float] = field(default_factory=list)
    _steady: list[float] = field(default_factory=list)
    _shifts: list[tuple[float, float]] = field(default_factory=list)
    _flows: list[tuple[float, float]] = field(default_factory=list)
    _size: tuple[int, int] = (1, 1)
    _flow: cv2.DISOpticalFlow = field(
        default_factory=lambda: cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    )

    def add(self, luma: Pixels) -> float:
        """The next frame, (height, width). Returns the largest block change against the one before, as it is."""
        before, self._before = self._before, luma
        if before is None:
            self._size = (luma.shape[1], luma.shape[0])
            return math.inf
        raw = block_change(before, luma)
        self._raw.append(raw)
        if raw <= NOISE:  # a held picture: half of all pairs in stop motion, and nothing to measure
            self._steady.append(raw)
            self._shifts.append((0.0, 0.0))
            self._flows.append((0.0, 0.0))
            return raw
        shift = shift_of(before, luma)
        steady, change = steady_change(before, luma, shift)
        self._steady.append(steady if math.hypot(*shift) <= SHAKE_PX else raw)
        self._shifts.append(shift)
        self._flows.append(self._flow_of_things(before, luma, change, shift))
        return raw

    def result(self, fps: float) -> Motion:
        """The motion of a clip of that rate; of a clip of one frame, none."""
        if not self._raw:
            return Motion(0.0, fps, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # one picture, and new
        raw, shifts, flows = np.array(self._raw), np.array(self._shifts), np.array(self._flows)
        new = raw > max(NOISE, 0.12 * float(np.percentile(raw, 90)))
        shifts[~new], flows[~new] = 0, 0
        change = raw if _drifts(shifts[new]) else np.array(self._steady)
        new_share = (1 + int(new.sum())) / (1 + len(raw))  # the first picture is new as well
        per_s = fps / len(raw) / np.array(self._size)
        things_x, things_y = (flows.sum(axis=0) * per_s).tolist()
        sway_x, sway_y = (np.abs(flows).sum(axis=0) * per_s).tolist()
        # The median picture's shift: a few pictures in which many things together look like the camera do not count.
        camera_x, camera_y = (-np.median(shifts[new], axis=0) * new.sum() * per_s).tolist() if new.any() else (0.0, 0.0)
        return Motion(
            change=float(np.percentile(change, 90)),
            picture_fps=fps * new_share,
            duplicate_share=1.0 - new_share,
            things_x=things_x,
            things_y=things_y,
            sway_x=sway_x,
            sway_y=sway_y,
            camera_x=camera_x + 0.0,
            camera_y=camera_y + 0.0,
        )

    def _flow_between(self, before: Pixels, after: Pixels) -> Floats:
        """(height, width, 2): how far each pixel moved right and down. Kroeger et al., arXiv:1603.03590."""
        return np.asarray(self._flow.calc(before, after, np.zeros((*before.shape, 2), np.float32)), np.float32)

    def _flow_of_things(
        self, before: Pixels, after: Pixels, change: Floats, shift: tuple[float, float]
    ) -> tuple[float, float]:
        moving = change > MOVING_LEVELS
        if not moving.any():
            return 0.0, 0.0
        flow = self._flow_between(before, after)[moving] - np.array(shift, np.float32)
        flow = flow[np.abs(flow).max(axis=1) > _DOUBTFUL_PX]  # what a thing uncovers has changed, but stands
        if not len(flow):
            return 0.0, 0.0
        x, y = flow.mean(axis=0).tolist()
        return x, y


@cache
def _window(width: int, height: int) -> Floats:
    return np.asarray(cv2.createHanningWindow((width, height), cv2.CV_32F))


def _all_over(before: Floats, after: Floats, shift: tuple[float, float]) -> bool:
    """Whether a shift is the picture's and not that of a large thing in it.

    Every block with something to see in it says whether it moved so or stood still; most must have moved in at least
    three quarters of the picture (a thing leaves two alone).
    """
    still = _block_means(cv2.absdiff(before, after))
    moved = _block_means(cv2.absdiff(shifted(before, *shift), after))
    detail = _block_means(cv2.absdiff(after, cv2.blur(after, (9, 9))))
    votes = np.where(detail > _TEXTURE, np.sign(still - moved), 0)
    rows, columns = (side // 2 for side in votes.shape)
    corners = (votes[:rows, :columns], votes[:rows, columns:], votes[rows:, :columns], votes[rows:, columns:])
    return sum(corner.sum() > 0 for corner in corners) >= 3


def _drifts(shifts: npt.NDArray[np.float64]) -> bool:
    """Whether the camera goes somewhere rather than shakes: its shifts add up instead of cancelling."""
    if not len(shifts):
        return False
    length = float(np.hypot(*shifts.T).sum())
    drift = float(np.hypot(*shifts.sum(axis=0)))
    return drift > 0.5 * length and drift / len(shifts) > _DRIFT_PX


def _block_means(values: npt.NDArray[Any]) -> Floats:
    height, width = (side // BLOCK_PX * BLOCK_PX for side in values.shape)
    size = (width // BLOCK_PX, height // BLOCK_PX)
    return np.asarray(cv2.resize(values[:height, :width], size, interpolation=cv2.INTER_AREA))
