"""How a clip moves: how much, how evenly, on ones or on twos, whether it flickers, and how far it drifts as it goes on.

What it measures: `NUMBERS` says of each what it is, its unit and its direction. Most are neither better when more nor
    when less: a brick film flickers and jerks. So samples are compared with the same numbers of real held-out clips,
    of the same rate: `apart` says how far a number is from theirs, in their own spread.
Source: optical flow of Kroeger et al. (arXiv:1603.03590). Smoothness is the second difference of displacements, seen
    from the picture in the middle; held pictures as in bricks_core/video/motion.py; drift is a straight line through
    the medians over 6 x 10 cells of each cell's distance from its own first picture, so that a thing that passes
    through some cells does not count. The rest is ours.
Interval: report/intervals.py `interval` over the values of samples, grouped by prompt; `difference` of two sets of
    `apart`, for two networks.
Validated on: tests/stages/evaluate/measures/test_motion.py: shuffled frames are less smooth, held frames are counted,
    a flicker and a drift that were put in are found again at their strength; blur, noise and blocks leave the others.
Needs: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError
from bricks_core.video.motion import NOISE, block_change

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

AREA_PX = 160 * 96
"""Larger pictures are made as small as this first."""
FILM_RATE = 0.98
"""Held pictures can be counted when a clip has at least this share of the film's frames."""
_SHORTEST_PX = 32
_CELLS = (10, 6)  # columns, rows
_MOVES_PX = 0.5
_STILL_PX = 0.25
_HELD = 0.2  # of the change that the most changing tenth of pairs reaches


@dataclass(frozen=True)
class Number:
    """What a number of `Motion` is."""

    what: str
    unit: str
    direction: str


@dataclass(frozen=True)
class Motion:
    """The numbers of one clip; one that cannot be told is not a number, and `reasons` says why."""

    amount: float
    smoothness: float
    holds: float
    flicker: float
    drift: float
    drift_brightness: float
    drift_contrast: float
    drift_cast: float
    drift_saturation: float
    drift_sharpness: float
    reasons: dict[str, str]


_AS_REAL = "neither: as real clips do"
_LESS = "less is better, down to what real clips do"
NUMBERS = {
    "amount": Number("displacement, mean over the picture", "% of the width per second", _AS_REAL),
    "smoothness": Number("1 when every point goes on as it came, 0 when it goes back", "", "more, up to real clips'"),
    "holds": Number("share of pictures that show what the one before showed", "", _AS_REAL),
    "flicker": Number("change of brightness from picture to picture of what stands still", "%", _AS_REAL),
    "drift": Number("change of colour, brightness, contrast and saturation together", "CIELAB units per s", _LESS),
    "drift_brightness": Number("change of L*", "CIELAB units per s", "nearer to 0, as real clips"),
    "drift_contrast": Number("change of the deviation of L* within cells", "CIELAB units per s", "nearer to 0"),
    "drift_cast": Number("change of a* and b*", "CIELAB units per s", _LESS),
    "drift_saturation": Number("change of the distance from grey", "CIELAB units per s", "nearer to 0, as real clips"),
    "drift_sharpness": Number("change of the strength of edges", "% per s", "nearer to 0; below, it blurs"),
}


def measure(frames: Pixels, fps: float, film_fps: float | None = None) -> Motion:
    """Of a clip, (T, H, W, 3) RGB.

    Args:
        fps: of these frames.
        film_fps: of the films; without it, and where it is higher, nobody can tell which pictures were held.

    Raises DataError: these are no frames, or the rate is none.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise DataError(f"A clip is uint8 (T, H, W, 3), this is {frames.dtype} {frames.shape}.")
    if not (math.isfinite(fps) and fps > 0):
        raise DataError(f"A clip has a rate of frames per second, and {fps} is none.")
    small = _small(frames)
    numbers, reasons = _in_time(small, fps, film_fps)
    numbers |= _drift(_statistics(small), fps)
    if len(frames) < 3:
        reasons["drift"] = "fewer than three frames have no course"
    return Motion(**numbers, reasons=reasons)


def track(frames: Pixels) -> npt.NDArray[np.float64]:
    """How far each frame of a clip is from its first, (T, 6): L*, its deviation within cells, a*, b* and the distance
    from grey in CIELAB units, and the strength of edges in percent. What `drift` is made of, for drift.py."""
    return _statistics(_small(frames))


def table(measured: list[Motion]) -> dict[str, npt.NDArray[np.float64]]:
    """Every number by name, (N,) each; what could not be told is nan."""
    names = [field.name for field in fields(Motion) if field.name in NUMBERS]
    return {name: np.array([getattr(each, name) for each in measured], float) for name in names}


def apart(values: npt.ArrayLike, real: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """How far each value is from the median of real clips, in their spread (1 is usual among themselves). (N,), (M,).

    The spread is 1.48 times the median distance from the median, so that one odd clip does not widen it. Where real
    clips are all alike (all on twos) a hundredth of their median, or of 1, stands for it.
    """
    known = np.asarray(real, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return np.full(np.shape(values), np.nan)
    middle = float(np.median(known))
    spread = max(1.4826 * float(np.median(np.abs(known - middle))), 0.01 * abs(middle), 0.01)
    return np.abs(np.asarray(values, np.float64) - middle) / spread


def _small(frames: Pixels) -> Pixels:
    height, width = frames.shape[1:3]
    scale = min(math.sqrt(AREA_PX / (height * width)), 1.0)
    # Where a side is shorter than 32, the optical flow reads past its memory (seen in OpenCV 5.0).
    size = tuple(min(max(round(side * scale), _SHORTEST_PX), AREA_PX // _SHORTEST_PX) for side in (width, height))
    if size == (width, height):
        return frames
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def _in_time(frames: Pixels, fps: float, film_fps: float | None) -> tuple[dict[str, float], dict[str, str]]:
    numbers = dict.fromkeys(("amount", "smoothness", "holds", "flicker"), math.nan)
    if len(frames) < 2:
        return numbers, dict.fromkeys(numbers, "a single frame does not move")
    reasons = {}
    lumas = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1.5) for frame in frames]
    changes = np.array([block_change(before, after) for before, after in pairwise(lumas)])
    held = changes <= max(NOISE, _HELD * float(np.percentile(changes, 90)))
    if film_fps is None or fps < FILM_RATE * film_fps:
        reasons["holds"] = f"the clip has {fps:g} frames per second, and the film's rate is " + (
            "not known" if film_fps is None else f"{film_fps:g}: pictures between them are not seen"
        )
    elif changes.max() <= 2 * NOISE:
        reasons["holds"] = "nothing moves"
    else:
        numbers["holds"] = float(held.mean())
    # A held picture is no step of the motion: the next one is.
    new = [lumas[0]] + [luma for luma, same in zip(lumas[1:], held, strict=True) if not same]
    ahead, back = _flows(new)
    lengths = [_length(flow) for flow in ahead]
    moved_px = sum(float(np.where(length > _MOVES_PX, length, 0).mean()) for length in lengths)
    width = frames.shape[2]
    numbers["amount"] = 100 * moved_px / width * fps / (len(frames) - 1)
    numbers["smoothness"] = _smoothness(ahead, back)
    if math.isnan(numbers["smoothness"]):
        reasons["smoothness"] = "too little moves in three pictures in a row"
    numbers["flicker"] = _flicker(new, lengths) if len(new) > 1 else 0.0
    if math.isnan(numbers["flicker"]):
        reasons["flicker"] = "nothing stands still"
    return numbers, reasons


def _flows(lumas: list[Any]) -> tuple[list[Floats], list[Floats]]:
    """Displacements in pixels (H, W, 2): from each picture to the next, and from each to the one before."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    none = np.zeros((*lumas[0].shape, 2), np.float32)
    ahead = [np.asarray(flow.calc(before, after, none.copy()), np.float32) for before, after in pairwise(lumas)]
    back = [np.asarray(flow.calc(after, before, none.copy()), np.float32) for before, after in pairwise(lumas)]
    return ahead, back


def _length(flow: Floats) -> Floats:
    return np.asarray(np.hypot(flow[..., 0], flow[..., 1]), np.float32)


def _smoothness(ahead: list[Floats], back: list[Floats]) -> float:
    """1 - |way on + way back| / (|way on| + |way back|), summed over what moves. In uniform motion both cancel."""
    bend = way = 0.0
    for onward, backward in zip(ahead[1:], back, strict=False):
        length = _length(onward) + _length(backward)
        moving = length > 2 * _MOVES_PX
        bend += float(_length(onward + backward)[moving].sum())
        way += float(length[moving].sum())
    # At least 1 % of a picture in which things move by a pixel.
    enough = 0.01 * ahead[0][..., 0].size if ahead else math.inf
    return 1 - bend / way if way > enough else math.nan


def _flicker(lumas: list[Any], lengths: list[Floats]) -> float:
    """Mean |change| in percent of the mean brightness of cells in which nothing moves."""
    changes: list[float] = []
    for (before, after), length in zip(pairwise(lumas), lengths, strict=True):
        around = cv2.dilate(length, np.ones((5, 5), np.uint8))
        still = cv2.resize((around < _STILL_PX).astype(np.float32), _CELLS, interpolation=cv2.INTER_AREA) > 0.95
        a, b = (cv2.resize(each.astype(np.float32), _CELLS, interpolation=cv2.INTER_AREA) for each in (before, after))
        changes += (200 * np.abs(b - a) / (a + b + 2))[still].tolist()
    return float(np.mean(changes)) if changes else math.nan


def _statistics(frames: Pixels) -> npt.NDArray[np.float64]:
    """(T, 6): median over cells of the distance from the same cell of the first frame.

    L*, its deviation, a*, b*, the distance from grey, and the strength of edges in percent.
    """
    rows = np.stack([_cells(frame) for frame in frames])
    return np.asarray(np.median(rows - rows[0], axis=1), np.float64)


def _cells(frame: Pixels) -> Floats:
    """(60, 6) what `_statistics` compares."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = lab[..., 0]

    def mean(values: Any) -> Any:
        return cv2.resize(values, _CELLS, interpolation=cv2.INTER_AREA)

    deviation = np.sqrt(np.maximum(mean(light**2) - mean(light) ** 2, 0))
    edges = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1))
    grey = np.hypot(lab[..., 1], lab[..., 2])
    strength = 100 * np.log(mean(edges) + 1)
    cells = [mean(light), deviation, mean(lab[..., 1]), mean(lab[..., 2]), mean(grey), strength]
    return np.stack([each.ravel() for each in cells], axis=1)


def _drift(statistics: npt.NDArray[np.float64], fps: float) -> dict[str, float]:
    """Slopes of straight lines through the statistics, per second."""
    if len(statistics) < 3:
        slopes = np.full(statistics.shape[1], math.nan)
    else:
        time_s = np.arange(len(statistics)) / fps
        time_s -= time_s.mean()
        slopes = time_s @ statistics / (time_s**2).sum()
    light, contrast, red, yellow, saturation, sharpness = (float(slope) for slope in slopes)
    return {
        "drift": math.hypot(light, contrast, red, yellow, saturation),
        "drift_brightness": light,
        "drift_contrast": contrast,
        "drift_cast": math.hypot(red, yellow),
        "drift_saturation": saturation,
        "drift_sharpness": sharpness,
    }
