"""Features of hand: what a clip looks like, in numbers that are shares or logarithms, so that a unit is a large change.

What they measure: colour (how colourful, which cast, how many colours, contrast), edges (how much there is at which
    scale, how sharp, how straight, which way), texture (of the quiet parts of the picture; its period, as studs have
    one; grids of 2, 4 and 8 pixels), time (holds, flicker, grain, jumps). Luma is divided by its mean first, and
    positions count nowhere: what is shown and how bright it is matter little.
Source: bands of a Laplacian pyramid (Burt and Adelson 1983), structure tensor (Bigün and Granlund 1987), the
    chromaticities of pixels; the rest is ours.
Unit: none. Direction: neither; style.py compares them. Scales are in pixels and frames: compare clips of one size and
    rate.
Validated on: tests/stages/evaluate/measures/test_by_hand.py and test_style.py.
Needs: nothing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Picture = npt.NDArray[np.float32]

SIGMAS = (0.8, 1.6, 3.2, 6.4)
"""Of the blurs between which the bands lie, in pixels."""
TILE_PX = 8
GRIDS_PX = (2, 4, 8)
MIN_PX = 4 * TILE_PX
_DARK = 8.0
"""Levels that are added where something is divided by brightness: in the dark, ratios are noise."""
_GRAIN = 4.0
"""Levels by which a held frame may differ from the one before at most: more is a change of its own."""

_COLOUR = (
    *("colourfulness", "colourfulness of the most colourful", "cast red-green", "cast blue-yellow"),
    *("number of colours", "number of tones", "contrast", "darkest tenth", "lightest tenth", "flat share"),
)
_EDGES = (
    *(f"{what} at {sigma} px" for what in ("detail", "quiet detail") for sigma in SIGMAS),
    *("sharpest edges", "sharpness", "straightness", "level share", "upright share", "directions"),
)
_TEXTURE = (
    *(f"{what} {way}" for way in ("across", "down") for what in ("strength of period", "period")),
    *(f"grid of {px} px" for px in GRIDS_PX),
)
_TIME = ("change", "change of the quiet", "flicker", "held share", "unevenness", "jumps")
NAMES = _COLOUR + _EDGES + _TEXTURE + _TIME
"""Of the features, in order."""


def features_by_hand(frames: Pixels) -> Floats:
    """uint8 (T, H, W, 3) RGB -> (len(NAMES),). Of a single frame what happens in time is not a number.

    Raises DataError: these are no frames, or they are smaller than 32 pixels.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise DataError(f"A clip is uint8 (T, H, W, 3), this is {frames.dtype} {frames.shape}.")
    if min(frames.shape[1:3]) < MIN_PX:
        raise DataError(
            f"A clip of {frames.shape[1]}x{frames.shape[2]} pixels shows no texture: give {MIN_PX} or more."
        )
    luma = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]).astype(np.float32)
    relative = luma / (luma.mean() + _DARK)
    still = [np.concatenate([_edges(picture), _texture(picture)]) for picture in relative]
    return np.concatenate([_colour(frames, relative, luma), np.mean(still, axis=0), _time(luma)])


def _log(value: npt.ArrayLike, floor: float) -> Floats:
    return np.log2(np.asarray(value, dtype=np.float64) + floor)


def _entropy(counts: npt.NDArray[np.intp]) -> float:
    """In bits, of what was counted."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _tiles(picture: Picture) -> Picture:
    """The means of tiles of about 8 x 8 pixels."""
    height, width = picture.shape
    shrunk = cv2.resize(picture, (width // TILE_PX, height // TILE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.float32)


def _gradient(picture: npt.NDArray[Any]) -> tuple[Picture, Picture]:
    """What it grows by in a pixel to the right and in one down."""
    right, down = (cv2.Scharr(picture, cv2.CV_32F, dx, dy, scale=1 / 32) for dx, dy in ((1, 0), (0, 1)))
    return np.asarray(right, dtype=np.float32), np.asarray(down, dtype=np.float32)


def _colour(frames: Pixels, relative: Picture, luma: Picture) -> Floats:
    planes = [frames[..., i].astype(np.float32) for i in range(3)]  # NumPy is slow along an axis of three
    most, least = np.maximum.reduce(planes), np.minimum.reduce(planes)
    colourful = (most - least) / (most + _DARK)
    total = planes[0] + planes[1] + planes[2] + 3 * _DARK
    red, green, blue = (plane / total for plane in planes)
    chromatic = np.floor(red * 24).astype(np.int64) * 24 + np.floor(green * 24).astype(np.int64)
    tones = np.clip(relative * 16, 0, 63).astype(np.int64)
    darkest, lightest = np.quantile(relative, (0.1, 0.9))
    kernel = np.ones((3, 3), np.uint8)
    flat = [cv2.morphologyEx(picture, cv2.MORPH_GRADIENT, kernel) < 3 for picture in luma]
    return np.array(
        [
            colourful.mean(),
            np.quantile(colourful, 0.9),
            (red - green).mean() * 4,
            (blue - (red + green) / 2).mean() * 4,
            _entropy(np.bincount(chromatic.ravel())) / 4,
            _entropy(np.bincount(tones.ravel())) / 4,
            _log(relative.std(), 0.05),
            darkest,
            lightest,
            np.mean(flat),
        ]
    )


def _edges(relative: Picture) -> Floats:
    blurred = [relative, *(cv2.GaussianBlur(relative, (0, 0), sigma) for sigma in SIGMAS)]
    bands = [np.abs(finer - coarser) for finer, coarser in pairwise(blurred)]
    detail = [band.mean() for band in bands]
    quiet = [np.quantile(_tiles(band), 0.3) for band in bands]
    (dx, dy), (soft_dx, soft_dy) = _gradient(blurred[0]), _gradient(blurred[2])
    steep, soft = np.hypot(dx, dy), np.hypot(soft_dx, soft_dy)
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), 3.0) for product in (dx * dx, dy * dy, dx * dy))
    energy = xx + yy
    coherent = np.hypot(xx - yy, 2 * xy).sum() / (energy.sum() + 1e-6)
    angle = np.rad2deg(np.arctan2(np.abs(dy), np.abs(dx)))
    weight = steep**2
    whole = weight.sum() + 1e-6
    directions = np.histogram(angle, bins=9, range=(0, 90), weights=weight)[0] / whole
    spread = -(directions * np.log2(directions + 1e-6)).sum()
    return np.array(
        [
            *_log(detail, 1e-3),
            *_log(quiet, 1e-3),
            _log(np.quantile(steep, 0.99) / (steep.mean() + 1e-4), 0.1),
            _log(np.quantile(steep, 0.95) / (np.quantile(soft, 0.95) + 1e-4), 0.1),
            coherent,
            weight[angle > 80].sum() / whole,
            weight[angle < 10].sum() / whole,
            spread / 3,
        ]
    )


def _texture(relative: Picture) -> Floats:
    """Of the lower half, where the ground is, for its period."""
    fine = cv2.GaussianBlur(relative, (0, 0), 0.6) - cv2.GaussianBlur(relative, (0, 0), 3.2)
    ground = fine[len(fine) // 2 :]
    grids = []
    across = np.abs(np.diff(relative, axis=1)).mean(axis=0)
    for px in GRIDS_PX:
        on = np.arange(1, len(across) + 1) % px == 0
        grids.append(_log((across[on].mean() + 1e-3) / (across[~on].mean() + 1e-3), 0.0))
    return np.array([*_period(ground), *_period(np.ascontiguousarray(ground.T)), *grids])


def _period(rows: Picture) -> tuple[float, float]:
    """How alike the most periodic rows are to themselves one period on, and the logarithm of their period."""
    length = rows.shape[1]
    spectrum = np.abs(np.fft.rfft(rows - rows.mean(axis=1, keepdims=True), 2 * length, axis=1)) ** 2
    alike = np.fft.irfft(spectrum, axis=1)[:, : length // 3]
    alike = alike / (alike[:, :1] + 1e-4) * (length / (length - np.arange(alike.shape[1])))
    fallen = np.maximum.accumulate(alike < 0.1, axis=1)
    peaks = np.where(fallen, alike, 0)
    best = peaks.max(axis=1)
    chosen = best >= np.quantile(best, 0.67)
    return float(best[chosen].mean()), float(np.log2(1 + peaks[chosen].argmax(axis=1)).mean())


def _time(luma: Picture) -> Floats:
    if len(luma) < 2:
        return np.full(len(_TIME), np.nan)
    tiles = np.stack([_tiles(picture) for picture in luma])
    gain = np.median((tiles[1:] + _DARK) / (tiles[:-1] + _DARK), axis=(1, 2))
    change = np.abs(luma[1:] - luma[:-1] * gain[:, None, None])
    of_tiles = np.stack([_tiles(picture) for picture in change])
    quiet = np.quantile(of_tiles, 0.3, axis=(1, 2))
    moving = np.quantile(of_tiles, 0.98, axis=(1, 2))
    mean = change.mean(axis=(1, 2))
    level = luma.mean() + _DARK
    jumps = np.abs(np.diff(luma, 2, axis=0)).mean() if len(luma) > 2 else mean.mean()
    return np.array(
        [
            _log(mean.mean() / level, 2e-3),
            _log(quiet.mean() / level, 2e-3),
            _log(np.abs(np.log2(gain)).mean(), 2e-3),
            np.mean(moving < 1.5 + 2 * min(quiet.min(), _GRAIN)),
            mean.std() / (mean.mean() + 0.2),
            _log(jumps / (mean.mean() + 0.2), 0.1),
        ]
    )
