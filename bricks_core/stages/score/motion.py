"""A clip's numbers, from one pass over its frames with one small picture in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bricks_core.stages.score.picture import Look, look_at, perceptual_hash
from bricks_core.video.motion import NOISE, MotionMeter

Pixels = npt.NDArray[np.uint8]

HASH_SHARES = (0.2, 0.5, 0.8)
_DIGITS = 4


def measure(pictures: Iterable[Pixels], num_frames: int, fps: float) -> dict[str, Any]:
    """All measured fields of a `Score`.

    Args:
        pictures: the clip's frames in order, luma (height, width) at `small_size`.
        num_frames: how many there are; the hashes are of those at 20, 50 and 80 %.
    """
    hashed = {round(share * (num_frames - 1)) for share in HASH_SHARES}
    hashes: dict[int, str] = {}
    looks: list[Look] = []
    meter = MotionMeter()
    for index, luma in enumerate(pictures):
        # A held picture looks like the one before: looking again would only cost.
        if meter.add(luma) > NOISE or not looks:
            look = look_at(luma)
        looks.append(look)
        if index in hashed:
            hashes[index] = perceptual_hash(luma)
    motion = meter.result(fps)
    middle = Look(*np.median(np.array(looks or [look_at(np.zeros((1, 1), np.uint8))]), axis=0).tolist())
    numbers = {
        "motion": motion.change,
        "motion_x": motion.things_x,
        "motion_y": motion.things_y,
        "camera_x": motion.camera_x,
        "camera_y": motion.camera_y,
        "duplicate_frame_share": motion.duplicate_share,
        "picture_fps": motion.picture_fps,
        **middle._asdict(),
    }
    # Rounded, so that the last bits, in which processors differ, do not make other tables; + 0.0 turns -0.0 into 0.0.
    measured: dict[str, Any] = {name: round(number, _DIGITS) + 0.0 for name, number in numbers.items()}
    # A clip shorter than its row says is told by the caller.
    measured["perceptual_hash"] = [hashes.get(round(share * (num_frames - 1)), "") for share in HASH_SHARES]
    return measured


def to_luma(bgr: Pixels) -> Pixels:
    """(height, width, 3) -> (height, width)."""
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))
