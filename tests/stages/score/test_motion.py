"""Motion, rate and direction of drawn clips, and of pictures that only flicker and shake."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.stages.score.motion import measure
from bricks_core.video.motion import (
    MotionMeter,
    block_change,
    exposure_gain,
    shift_of,
    small_size,
    steady_change,
)


def luma(pictures):
    size = small_size(pictures.shape[2], pictures.shape[1])
    return [cv2.resize(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), size) for each in pictures]


def scored(pictures, fps=24.0):
    return measure(luma(pictures), len(pictures), fps)


@pytest.mark.parametrize(
    ("dx", "dy", "field", "sign"),
    [(4, 0, "motion_x", 1), (-4, 0, "motion_x", -1), (0, 3, "motion_y", 1), (0, -3, "motion_y", -1)],
)
def test_a_thing_that_moves_has_a_direction_and_the_camera_none(drawing, dx, dy, field, sign):
    mover = drawing.Mover(x=80 - 6 * dx, y=50 - 6 * dy, dx=dx, dy=dy)
    score = scored(drawing.scene([mover]))
    assert sign * score[field] > 0.1
    other = "motion_y" if field == "motion_x" else "motion_x"
    assert abs(score[other]) < 0.05
    assert abs(score["camera_x"]) < 0.02
    assert abs(score["camera_y"]) < 0.02


@pytest.mark.parametrize("pan_px", [3, -3])
def test_a_camera_that_pans_has_a_direction_and_things_none(drawing, pan_px):
    score = scored(drawing.scene(pan_px=pan_px))
    per_second = pan_px * 12 / 160  # 12 pictures a second, 160 pixels wide
    assert score["camera_x"] == pytest.approx(per_second, rel=0.25)
    assert abs(score["motion_x"]) < 0.05
    assert score["motion"] > 20


def test_what_only_flickers_and_shakes_is_stiller_than_a_small_thing_that_moves(drawing):
    shaken = scored(drawing.scene(jitter_px=0.25, flicker=0.03))["motion"]
    small = scored(drawing.scene([drawing.Mover("white", side=8, dx=3)], jitter_px=0.25, flicker=0.03))["motion"]
    assert shaken < 8 < 12 < small


def test_mean_difference_would_order_those_two_wrongly(drawing):
    """The reason for block maxima: flicker moves every pixel a little, a small thing few pixels a lot."""

    def mean_change(pictures):
        return np.mean([cv2.absdiff(a, b).mean() for a, b in pairwise(pictures)])

    shaken = mean_change(luma(drawing.scene(flicker=0.03)))
    small = mean_change(luma(drawing.scene([drawing.Mover("white", side=8, dx=3)])))
    assert small < shaken


@pytest.mark.parametrize(("hold", "picture_fps"), [(1, 24), (2, 12), (3, 8), (4, 6)])
def test_held_pictures_give_the_rate_of_new_ones(drawing, hold, picture_fps):
    score = scored(drawing.scene([drawing.Mover()], hold=hold))
    assert score["picture_fps"] == pytest.approx(picture_fps, rel=0.01)
    assert score["duplicate_frame_share"] == pytest.approx(1 - 1 / hold, rel=0.01, abs=1e-6)


def test_one_picture_held_has_no_motion(drawing):
    score = scored(drawing.scene(hold=24))
    assert score["motion"] == 0
    assert score["duplicate_frame_share"] > 0.9


def test_a_large_thing_is_not_taken_for_the_camera(drawing):
    score = scored(drawing.scene([drawing.Mover(side=60, x=-10, y=30, dx=5)], num_frames=30))
    assert abs(score["camera_x"]) < 0.05
    assert score["motion_x"] > 0.1


def test_the_same_clip_brought_to_another_size_moves_as_much(drawing):
    pictures = drawing.scene([drawing.Mover()])
    large = np.stack([cv2.resize(each, (640, 384), interpolation=cv2.INTER_AREA) for each in pictures])
    assert scored(large)["motion"] == pytest.approx(scored(pictures)["motion"], rel=0.1)


@given(width=st.integers(16, 8000), height=st.integers(16, 8000))
def test_small_pictures_are_even_hold_a_block_and_keep_the_shape(width, height):
    small_width, small_height = small_size(width, height)
    assert small_width % 2 == small_height % 2 == 0
    assert min(small_width, small_height) >= 32
    if 1 / 4 < width / height < 4:
        assert small_width * small_height == pytest.approx(320 * 180, rel=0.02)
        assert small_width / small_height == pytest.approx(width / height, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.75, 1.3), seed=st.integers(0, 99))
def test_exposure_is_found_beside_things_that_move(gain, seed):
    dice = np.random.default_rng(seed)
    before = cv2.blur(dice.integers(40, 190, (180, 320)).astype(np.uint8), (9, 9))
    after = np.clip(before * gain, 0, 255).astype(np.uint8)
    after[60:100, 100:160] = 0  # a black thing comes in
    assert exposure_gain(before, after) == pytest.approx(gain, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(x=st.integers(-8, 8), y=st.integers(-8, 8), seed=st.integers(0, 99))
def test_a_shift_of_the_whole_picture_is_found_and_taken_out(x, y, seed):
    dice = np.random.default_rng(seed)
    wide = np.full((240, 400), 120, np.uint8)
    for left, top, level in dice.integers(0, 255, (300, 3)):
        wide[top % 225 : top % 225 + 15, left * 385 // 255 : left * 385 // 255 + 15] = level
    before, after = wide[30:210, 40:360], wide[30 - y : 210 - y, 40 - x : 360 - x]
    found = shift_of(before, after)
    assert found == pytest.approx((x, y), abs=0.5)
    assert steady_change(before, after, found)[0] <= max(4.0, block_change(before, after) / 4)


def test_a_clip_of_one_frame_is_measured_too():
    meter = MotionMeter()
    meter.add(np.zeros((180, 320), np.uint8))
    assert meter.result(25).picture_fps == 25


def test_a_film_as_low_as_a_ribbon_is_measured_and_ends_nothing():
    """OpenCV's flow ends the process on very low pictures."""
    rng = np.random.default_rng(0)
    ribbon = rng.integers(0, 256, (1, 20, 1440, 3), dtype=np.uint8)
    film = np.concatenate([np.roll(ribbon, 8 * frame, axis=2) for frame in range(4)])
    assert small_size(1440, 20)[1] == 32
    assert scored(film)["motion"] > 0
