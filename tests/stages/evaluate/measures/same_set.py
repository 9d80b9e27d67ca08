"""Clips of scenes that are taken on one and the same set, by other actors or in the other look."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))

from brickfilm.film import FilmSpec, photos
from brickfilm.looks import BRICK, PLAIN
from brickfilm.scenes import DIRECTORS
from brickfilm.sets import LIGHTS, Lens, Scenery, Studio

SIZE_PX = (160, 96)


def filmed(kind, seed, ground, light, plain=False):
    """A clip (8, 96, 160, 3) at 6 frames a second. The seed says who plays on the set, and how."""
    studio = Studio(SIZE_PX, Scenery(ground, LIGHTS[light], sky_seed=5), PLAIN if plain else BRICK)
    scene = DIRECTORS[kind](studio, random.Random(seed), 24)
    spec = replace(FilmSpec(seed, 0), photos_per_pose=1)
    pictures = list(photos(spec, scene, Lens(SIZE_PX, seed, spec.grain), "photos"))
    return np.stack(pictures[4:20:2])
