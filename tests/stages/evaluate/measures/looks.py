"""Clips of generated films, of the size and rate of the base model's samples: 8 frames of 96x160 at 6 a second."""

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))

from brickfilm.film import FilmSpec, photos, storyboard
from brickfilm.sets import Lens

NUM_FRAMES, HEIGHT_PX, WIDTH_PX, FPS = 8, 96, 160, 6.0


def clips_of(look, index, seed=7, num_scenes=6):
    """A clip from the start of each scene of a film: uint8 (num_scenes, 8, 96, 160, 3)."""
    make = FilmSpec.plain if look == "plain" else FilmSpec
    spec = make(seed, index, num_scenes=num_scenes, height_px=HEIGHT_PX, min_photos=16, max_photos=18)
    spec = replace(spec, photos_per_pose=1)  # of 24 a second every second one would not be looked at
    lens = Lens(spec.size_px, seed * 1000 + index, spec.grain)
    found = []
    for number, scene in enumerate(storyboard(spec)):
        if scene.kind in ("title", "end", "still") or scene.num_photos < 16:
            continue
        shown = islice(photos(spec, scene, lens, f"photos {number}"), 0, 2 * NUM_FRAMES - 1, 2)
        pictures = np.stack([np.asarray(photo) for photo in shown])
        left = (pictures.shape[2] - WIDTH_PX) // 2
        found.append(pictures[:, :, left : left + WIDTH_PX])
    return np.stack(found)


def blurred(clip, sigma):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip])


def noisy(clip, levels):
    drawn = np.random.default_rng(0).normal(0, levels, clip.shape)
    return np.clip(clip + drawn, 0, 255).astype(np.uint8)


def in_blocks(clip, px):
    """As a picture of fewer, larger pixels."""
    size = (clip.shape[2], clip.shape[1])
    small = (size[0] // px, size[1] // px)
    shrunk = [cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in clip]
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST) for frame in shrunk])


def brighter(clip, gain):
    return np.clip(clip * gain, 0, 255).astype(np.uint8)
