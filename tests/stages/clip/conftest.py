"""Small films with known shots."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from bricks_core.stages.clip.scenes import Measured, measure
from bricks_core.video.read import frames
from bricks_core.video.write import write_mp4

HEIGHT, WIDTH = 144, 256


def pan(seed: int, num_frames: int, *, speed_px: float = 1.0, hold: int = 1, light: float = 1.0) -> np.ndarray:
    """(num_frames, HEIGHT, WIDTH, 3): the camera moves over a soft pattern; each picture is held for `hold` frames."""
    dice = np.random.default_rng(seed)
    noise = dice.uniform(-1, 1, (16, 40, 3)).astype(np.float32)
    wide = np.clip(128 + 110 * cv2.resize(noise, (1280, 512), interpolation=cv2.INTER_CUBIC), 0, 255) * light
    shots = []
    for index in range(num_frames):
        left = round(index // hold * hold * speed_px) % (1280 - WIDTH)
        shots.append(wide[100 : 100 + HEIGHT, left : left + WIDTH])
    return np.stack(shots).astype(np.uint8)


def dissolved(before: np.ndarray, after: np.ndarray, num_frames: int) -> np.ndarray:
    """The two shots, the last frames of one mixed with the first of the other."""
    share = ((np.arange(num_frames) + 1) / (num_frames + 1))[:, None, None, None]
    mixed = before[-num_frames:] * (1 - share) + after[:num_frames] * share
    return np.concatenate([before[:-num_frames], mixed.astype(np.uint8), after[num_frames:]])


class Shots:
    """The functions of this file, since test files cannot import it."""

    pan = staticmethod(pan)
    dissolved = staticmethod(dissolved)


@pytest.fixture(scope="session")
def shots() -> type[Shots]:
    return Shots


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Measured]:
    """measured(pictures, ...): what the detector sees of these pictures, one after the other, through a real file."""

    def seen(*pictures: np.ndarray) -> Measured:
        path = tmp_path / "film.mp4"
        write_mp4(path, np.concatenate(pictures), 24, crf=20)
        with closing(frames(path)) as film:
            return measure(film)

    return seen
