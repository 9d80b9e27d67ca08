"""A pinhole camera on a tripod.

The world: x to the right, y away from the camera, z up; two units are the distance between two studs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """Stands at `eye` and looks along y, `pitch` radians downwards; `focal_px` pixels wide is one unit at depth one."""

    eye: Point
    pitch: float
    focal_px: float
    centre_px: tuple[float, float]

    @classmethod
    def facing(cls, target: Point, width: float, distance: float, pitch: float, size_px: tuple[int, int]) -> Camera:
        """Look at `target` from `distance` away, so that the picture is `width` units wide there."""
        x, y, z = target
        eye = (x, y - distance * math.cos(pitch), z + distance * math.sin(pitch))
        return cls(eye, pitch, size_px[0] * distance / width, (size_px[0] / 2, size_px[1] / 2))

    def project(self, points: Array) -> tuple[Array, Array]:
        """(N, 3) points -> (N, 2) pixels and (N,) depths. Points must lie in front of the camera."""
        right, ahead, above = (points - np.asarray(self.eye)).T
        cos, sin = math.cos(self.pitch), math.sin(self.pitch)
        depth = ahead * cos - above * sin
        up = ahead * sin + above * cos
        scale = self.focal_px / depth
        pixels = np.stack([self.centre_px[0] + right * scale, self.centre_px[1] - up * scale], axis=1)
        return pixels, depth
