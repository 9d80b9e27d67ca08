"""The package behind make_films.py: scenes are told apart by what can be measured, and painted in the right order."""

import random
from itertools import pairwise

import numpy as np
import pytest
from brickfilm.film import FilmSpec, storyboard
from brickfilm.scenes import DIRECTORS, FROM_ABOVE
from brickfilm.sets import GROUNDS, LIGHTS, Scenery, Studio
from brickfilm.solids import painting_order
from hypothesis import assume, given
from hypothesis import strategies as st

SIZE_PX = (160, 90)
BOARDS = [storyboard(FilmSpec(seed=1, index=i)) for i in range(8)]


def taken(kind: str, ground: str, light: str, seed: int, num_photos: int = 12) -> tuple[np.ndarray, str]:
    """The photos (N, H, W, 3) of a scene without jitter, flicker and grain, and the direction it says it has."""
    studio = Studio(SIZE_PX, Scenery(ground, LIGHTS[light], kind in FROM_ABOVE, seed))
    scene = DIRECTORS[kind](studio, random.Random(seed), num_photos)
    shots = [scene.take(i) for i in range(num_photos)]
    photos = [np.asarray(studio.photograph(camera, things)) for studio, camera, things in shots]
    return np.stack(photos).astype(np.float32), scene.direction


def test_eight_films_show_every_kind_ground_and_light_several_times():
    scenes = [scene for board in BOARDS for scene in board if scene.ground]
    for card, name in [(DIRECTORS, "kind"), (GROUNDS, "ground"), (LIGHTS, "light")]:
        for value in card:
            assert sum(getattr(scene, name) == value for scene in scenes) >= 6, value


def test_a_scene_never_has_the_ground_of_the_one_before():
    for board in BOARDS:
        assert all(a.ground != b.ground for a, b in pairwise(scene for scene in board if scene.ground))


def test_a_film_has_a_title_an_end_an_insert_and_a_still():
    for board in BOARDS:
        assert (board[0].kind, board[-1].kind) == ("title", "end")
        assert [scene.kind for scene in board].count("still") == 1
        assert sum(scene.num_photos < 8 for scene in board) == 1


def test_no_actor_has_the_colour_of_the_ground():
    assert all(scene.ground not in scene.colours for board in BOARDS for scene in board if scene.ground)


@pytest.mark.parametrize("ground", GROUNDS)
def test_night_is_darker_than_sunset_and_sunset_than_day(ground):
    night, sunset, day = (
        taken("walk", ground, light, seed=3, num_photos=1)[0].mean() for light in ("night", "sunset", "day")
    )
    assert night * 1.5 < sunset < day * 0.9


@pytest.mark.parametrize("light", LIGHTS)
def test_grounds_differ_where_only_ground_is_seen(light):
    colours = {}
    for ground in GROUNDS:
        studio = Studio(SIZE_PX, Scenery(ground, LIGHTS[light], from_above=True))
        colours[ground] = np.asarray(studio.photograph(studio.camera(17.0), [])).mean(axis=(0, 1))
    names = list(colours)
    distances = [np.linalg.norm(colours[a] - colours[b]) for a in names for b in names if a < b]
    assert min(distances) > 15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["drive", "walk", "slide", "launch"])
def test_what_moves_moves_in_the_direction_told(kind, seed):
    photos, direction = taken(kind, "green", "day", seed)
    moved = np.abs(photos - np.median(photos, axis=0)).mean(axis=3)[2:9]
    y, x = np.mgrid[: SIZE_PX[1], : SIZE_PX[0]]
    across, down = ((moved * axis).sum(axis=(1, 2)) / moved.sum(axis=(1, 2)) for axis in (x, y))
    way = {"left": across[0] - across[-1], "right": across[-1] - across[0], "up": down[0] - down[-1]}
    assert way[direction] > 4


@pytest.mark.parametrize("seed", range(4))
def test_in_a_pan_the_whole_picture_moves_in_the_direction_told(seed):
    photos, direction = taken("pan", "green", "day", seed)
    rows, reach = photos[:2, 40:70].mean(axis=3), 24
    middle = rows[0][:, reach:-reach]
    width = middle.shape[1]
    errors = [np.abs(rows[1][:, s : s + width] - middle).mean() for s in range(2 * reach)]
    shift = int(np.argmin(errors)) - reach
    assert direction == ("right" if shift > 0 else "left")
    assert shift != 0


CELLS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=8, unique=True)
EYES = st.tuples(st.floats(-6, 10), st.floats(-9, -2), st.floats(-3, 9))


def hides(near: np.ndarray, point: np.ndarray, eye: np.ndarray) -> bool:
    """Does the line from the eye to the point pass through the unit cube at `near`? (the slab test)"""
    ray = point - eye
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (near + 0.01 - eye) / ray, (near + 0.99 - eye) / ray
    enters, leaves = np.nanmax(np.minimum(a, b)), np.nanmin(np.maximum(a, b))
    return bool(enters < leaves and 0 < enters < 1)


@given(cells=CELLS, eye=EYES, spread=st.randoms(use_true_random=False))
def test_nothing_is_painted_over_what_stands_before_it(cells, eye, spread):
    low, eye = np.array(cells, float), np.array(eye)
    assume(all((eye < cell).any() or (eye > cell + 1).any() for cell in low))
    order = painting_order([(cell, cell + 1) for cell in low], eye)
    assert sorted(order) == list(range(len(cells)))
    for position, early in enumerate(order):
        for late in order[position + 1 :]:
            point = low[late] + [spread.uniform(0.05, 0.95) for _ in range(3)]
            assert not hides(low[early], point, eye), (cells[early], cells[late])
