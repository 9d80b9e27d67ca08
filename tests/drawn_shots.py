"""Shots drawn for tests that need clips and do not care what they show."""

from __future__ import annotations

import cv2
import numpy as np

HEIGHT, WIDTH = 96, 160


def shot(seed: int, num_frames: int = 18) -> np.ndarray:
    """(num_frames, HEIGHT, WIDTH, 3): a square crosses a soft pattern."""
    dice = np.random.default_rng(seed)
    noise = dice.uniform(60, 200, (6, 10, 3)).astype(np.float32)
    pattern = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    pictures = np.stack([pattern] * num_frames)
    for index, picture in enumerate(pictures):
        picture[40:64, 8 + 6 * index : 32 + 6 * index] = (220, 30, 30)
    return pictures
