"""A film: its storyboard, the photos of every scene, the frames with their transitions, and the truth about them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .looks import LOOKS, Look
from .scenes import DIRECTORS, FROM_ABOVE, Scene, end_card, still, title_card
from .sets import ALL_GROUNDS, ALL_LIGHTS, GROUNDS, LIGHTS, MARGIN_PX, Lens, Scenery, Studio, blend

TITLES = (
    ("LOST", "BRICK"),
    ("SNOW", "DAY"),
    ("NIGHT", "BUS"),
    ("SAND", "RACE"),
    ("TALL", "TOWER"),
    ("BIG", "JUMP"),
    ("UP", "WE GO"),
    ("LITTLE", "TOWN"),
    ("RED", "HILL"),
    ("BLUE", "SEA"),
)
INSERT_PHOTOS = 5  # 10 frames: too short for a clip
TRANSITION_FRAMES = 10


@dataclass(frozen=True)
class FilmSpec:
    """What one film is made of. Odds of a fade and of a dissolve are per transition; the rest are hard cuts.

    A scene's length is counted in poses of twelve a second; a film has `photos_per_pose` photos of each, and shows
    every photo for `hold` frames.
    """

    seed: int
    index: int
    num_scenes: int = 8
    height_px: int = 180
    fps: int = 24
    hold: int = 2
    min_photos: int = 24
    max_photos: int = 34
    fade: float = 0.12
    dissolve: float = 0.12
    jitter_px: float = 0.22
    flicker: float = 0.012
    grain: float = 1.6
    look: str = "brick"
    photos_per_pose: int = 1

    @classmethod
    def plain(cls, seed: int, index: int, **settings: Any) -> FilmSpec:
        """A film of the plain world: smooth things that move at its own rate, before a steady camera."""
        still = {"fade": 0.0, "dissolve": 0.0, "jitter_px": 0.0, "flicker": 0.0, "grain": 0.4}
        return cls(seed, index, hold=1, photos_per_pose=2, look="plain", **(still | settings))

    @property
    def look_of_all(self) -> Look:
        return LOOKS[self.look]

    @property
    def size_px(self) -> tuple[int, int]:
        return round(self.height_px * 8 / 9) * 2, self.height_px

    def dice(self, purpose: str) -> random.Random:
        """A stream of chance for one purpose: adding a scene does not change the others."""
        return random.Random(f"{self.seed}/{self.index}/{purpose}")


def storyboard(spec: FilmSpec) -> list[Scene]:
    """The scenes of a film in its look."""
    return _plain_storyboard(spec) if spec.look == "plain" else _brick_storyboard(spec)


def _plain_storyboard(spec: FilmSpec) -> list[Scene]:
    """Scenes in which something moves, in more places and lights, from nearer and farther, lower and higher."""
    rng = spec.dice("storyboard")
    kinds = _dealt(list(DIRECTORS), spec.num_scenes, rng)
    lights = _dealt(["day", "day", "sunset", "night", "mist"], spec.num_scenes, rng)
    grounds = _dealt(list(ALL_GROUNDS), spec.num_scenes, rng)
    scenes = []
    for i, (kind, light, ground) in enumerate(zip(kinds, lights, grounds, strict=True)):
        dice = spec.dice(f"scene {i}")
        road = kind == "drive" and ground in ("green", "white", "yellow", "brown") and dice.random() < 0.6
        view = {"zoom": dice.uniform(0.86, 1.25), "tilt": dice.uniform(-0.05, 0.16)}
        scenery = Scenery(ground, ALL_LIGHTS[light], kind in FROM_ABOVE, dice.randrange(1 << 30), road, **view)
        num_poses = dice.randint(spec.min_photos, spec.max_photos)
        scenes.append(DIRECTORS[kind](Studio(spec.size_px, scenery, spec.look_of_all), dice, num_poses))
    return scenes


def _brick_storyboard(spec: FilmSpec) -> list[Scene]:
    """The title, the scenes with one short insert and one still among them, and the end.

    Grounds, lights and kinds are dealt like cards, so that a few films hold every one of them about equally often, and
    no scene has the ground of the one before: a cut is always seen.
    """
    rng = spec.dice("storyboard")
    kinds = _dealt(list(DIRECTORS), spec.num_scenes, rng)
    lights = _dealt(["day", "day", "sunset", "night"], spec.num_scenes + 2, rng)
    grounds = _dealt(list(GROUNDS), spec.num_scenes + 2, rng)
    jobs: list[tuple[str, int]] = [(kind, rng.randint(spec.min_photos, spec.max_photos)) for kind in kinds]
    jobs.insert(rng.randint(1, len(jobs)), ("still", spec.min_photos))
    jobs.insert(rng.randint(1, len(jobs)), (rng.choice(("drive", "walk", "jump")), INSERT_PHOTOS))

    scenes = [title_card(spec.size_px, TITLES[(spec.seed + spec.index) % len(TITLES)], spec.dice("title"), 16)]
    for i, ((kind, num_photos), light, ground) in enumerate(zip(jobs, lights, grounds, strict=True)):
        dice = spec.dice(f"scene {i}")
        road = kind == "drive" and ground in ("green", "white", "yellow")
        scenery = Scenery(ground, LIGHTS[light], kind in FROM_ABOVE, dice.randrange(1 << 30), road)
        director = still if kind == "still" else DIRECTORS[kind]
        scenes.append(director(Studio(spec.size_px, scenery, spec.look_of_all), dice, num_photos))
    return [*scenes, end_card(spec.size_px, 14)]


def _dealt(cards: list[str], count: int, rng: random.Random) -> list[str]:
    """Deal from a shuffled deck, again and again; never the same card twice running, where the deck allows it."""
    dealt: list[str] = []
    while len(dealt) < count:
        deck = cards[:]
        rng.shuffle(deck)
        if dealt and deck[0] == dealt[-1]:
            deck.append(deck.pop(0))
        dealt += deck
    return dealt[:count]


def photos(spec: FilmSpec, scene: Scene, lens: Lens, purpose: str) -> Iterator[np.ndarray]:
    """Every photo of a scene, (H, W, 3) uint8; cards are drawn, not photographed, and have no jitter or grain."""
    rng = spec.dice(purpose)
    for i in range(scene.num_photos * spec.photos_per_pose):
        shot = scene.take(i / spec.photos_per_pose)
        if not isinstance(shot, tuple):
            yield np.asarray(shot)
            continue
        studio, camera, things = shot
        nudge = [max(-MARGIN_PX, min(MARGIN_PX, round(rng.gauss(0, spec.jitter_px * 3)))) for _ in "xy"]
        picture = studio.photograph(camera, things, (nudge[0], nudge[1]))
        yield lens.develop(picture, 1 + rng.gauss(0, spec.flicker), rng.randrange(1 << 16))


def frames(spec: FilmSpec, truth: dict[str, Any]) -> Iterator[np.ndarray]:
    """Every frame of the film, (H, W, 3) uint8, in order; fills `truth` (its schema is told in make_films.py)."""
    scenes, rng = storyboard(spec), spec.dice("transitions")
    lens = Lens(spec.size_px, spec.seed * 1000 + spec.index, spec.grain)
    black = np.zeros((spec.size_px[1], spec.size_px[0], 3), np.uint8)
    truth.update(cuts=[], gradual=[], scenes=[])
    n, last, way_in = 0, black, "start"
    for i, scene in enumerate(scenes):
        start, num_frames = n, _num_frames(spec, scene)
        way_out = "end" if i == len(scenes) - 1 else _way_out(spec, scene, scenes[i + 1], rng)
        if way_in == "cut":
            truth["cuts"].append(start)
        elif way_in == "dissolve":
            truth["gradual"].append({"type": "dissolve", "start": start, "end": start + TRANSITION_FRAMES})
        elif way_in == "fade":
            span = {"type": "fade", "start": start - TRANSITION_FRAMES, "end": start + TRANSITION_FRAMES}
            truth["gradual"].append(span)
        before, photo = last, last
        for k, photo in enumerate(photos(spec, scene, lens, f"photos {i}")):
            for held in range(spec.hold):
                at = k * spec.hold + held
                picture = photo
                if way_in in ("fade", "dissolve") and at < TRANSITION_FRAMES:
                    picture = blend(black if way_in == "fade" else before, photo, (at + 1) / (TRANSITION_FRAMES + 1))
                elif way_out == "fade" and num_frames - at <= TRANSITION_FRAMES:
                    picture = blend(black, photo, (num_frames - at) / (TRANSITION_FRAMES + 1))
                yield picture
                n += 1
        last = photo
        truth["scenes"].append(_scene_truth(spec, scene, i, start, n, way_in, way_out))
        way_in = way_out
    truth["num_frames"] = n


def _num_frames(spec: FilmSpec, scene: Scene) -> int:
    return scene.num_photos * spec.photos_per_pose * spec.hold


def _way_out(spec: FilmSpec, scene: Scene, following: Scene, rng: random.Random) -> str:
    draw = rng.random()
    if min(_num_frames(spec, scene), _num_frames(spec, following)) < 3 * TRANSITION_FRAMES:
        return "cut"
    if draw < spec.fade:
        return "fade"
    return "dissolve" if draw < spec.fade + spec.dissolve else "cut"


def _scene_truth(spec: FilmSpec, scene: Scene, index: int, start: int, end: int, way_in: str, way_out: str) -> dict:
    return {
        "index": index,
        "start": start,
        "end": end,
        "type": scene.kind,
        "description": scene.description,
        "ground": scene.ground,
        "light": scene.light,
        "colours": list(scene.colours),
        "direction": scene.direction,
        "num_moving": scene.num_moving,
        "text": list(scene.text),
        "picture_fps": spec.fps / spec.hold,
        "transition_in": way_in,
        "transition_out": way_out,
    }
