"""Scenes of generated films as they are sampled, 8 frames of 96x160 at 6 a second, with sentence and caption."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bricks_core.judge import measured
from bricks_core.judge.kept import Frames, scene_of
from bricks_core.judge.pictures import see_frames
from bricks_core.video.resize import fit

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from brickfilm.film import FilmSpec, photos, storyboard
from brickfilm.scenes import DIRECTORS, Scene
from brickfilm.sets import Lens

HEIGHT_PX, WIDTH_PX, FPS = 96, 160, 6.0
NUM_PHOTOS = 24


@dataclass(frozen=True)
class Filmed:
    """A scene. `photos` are all of it, 12 a second; of 24 a second every second one would not be looked at."""

    look: str
    kind: str
    sentence: str
    photos: Frames

    @property
    def sample(self) -> Frames:
        """(8, 96, 160, 3): from the middle."""
        return self.photos[4:20:2]

    @cached_property
    def caption(self) -> str:
        return measured.video_sentences(measured.measure(see_frames(self.photos, 12.0)))

    @cached_property
    def measured(self) -> measured.Scene:
        return scene_of(self.sample, FPS)


def _storyboard(look: str, index: int) -> tuple[FilmSpec, list[tuple[int, Scene]]]:
    """A film, and its scenes in which something moves, by their numbers."""
    make = FilmSpec.plain if look == "plain" else FilmSpec
    told = make(11, index, height_px=HEIGHT_PX, min_photos=NUM_PHOTOS, max_photos=NUM_PHOTOS)
    spec = replace(told, photos_per_pose=1)
    scenes = enumerate(storyboard(spec))
    return spec, [each for each in scenes if each[1].kind in DIRECTORS and each[1].num_photos == NUM_PHOTOS]


def sentences() -> list[tuple[str, str]]:
    """What scenes of generated films are described with, by their kind; nothing is drawn."""
    films = [(look, index) for look in ("brick", "plain") for index in range(20)]
    return [(scene.kind, scene.description) for film in films for _, scene in _storyboard(*film)[1]]


def scenes_of(look: str, index: int) -> list[Filmed]:
    """The scenes of a film in which something moves."""
    spec, scenes = _storyboard(look, index)
    lens = Lens(spec.size_px, index, spec.grain)
    found = []
    for number, scene in scenes:
        shown = np.stack(list(photos(spec, scene, lens, f"photos {number}")))
        found.append(Filmed(look, scene.kind, scene.description, fit(shown, HEIGHT_PX, WIDTH_PX)))
    return found
