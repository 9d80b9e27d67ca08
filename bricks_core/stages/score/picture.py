"""What one picture looks like: sharp, bright, plain; and a hash that says whether another shows the same."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

HASH_BITS = 64
_PLAIN_LEVELS = 6
_HASH_SIDE = 8
_HASH_DETAIL = 4


class Look(NamedTuple):
    """One picture's numbers, luma 0 to 255."""

    sharpness: float
    """Variance of the Laplacian."""
    brightness: float
    """Mean."""
    contrast: float
    """Standard deviation."""
    plain_share: float
    """Share of pixels within 6 levels of the median: title cards have 0.8 and more."""


def look_at(luma: Pixels) -> Look:
    """(height, width) at about 320x180."""
    counts = np.bincount(luma.reshape(-1), minlength=256)
    num_pixels = luma.size
    levels = np.arange(256)
    mean = float(counts @ levels) / num_pixels
    deviation = float(np.sqrt(max(0.0, float(counts @ (levels - mean) ** 2) / num_pixels)))
    median = int(np.searchsorted(np.cumsum(counts), num_pixels / 2))
    near = counts[max(0, median - _PLAIN_LEVELS) : median + _PLAIN_LEVELS + 1].sum()
    sharpness = float(cv2.Laplacian(luma, cv2.CV_32F).var())
    return Look(sharpness, mean, deviation, float(near) / num_pixels)


def perceptual_hash(luma: Pixels) -> str:
    """pHash: signs of the 8x8 lowest cosine coefficients of a 32x32 picture against their median, in hexadecimal.

    As in Christoph Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2.2.
    """
    side = _HASH_SIDE * _HASH_DETAIL
    small = cv2.resize(luma, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_HASH_SIDE, :_HASH_SIDE]
    return np.packbits(low > np.median(low)).tobytes().hex()
