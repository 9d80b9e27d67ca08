"""Where shots end."""

import json
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.stages.clip.scenes import Shot, find_cuts, find_shots, measure, split_shots
from bricks_core.video.read import frames

VIDEOS = Path(__file__).parents[4] / "shared" / "videos"


def clips_of(measured, min_frames=15, max_frames=200):
    found = split_shots(find_shots(measured), min_frames=min_frames, max_frames=max_frames)
    return [(shot.first_frame, shot.end_frame) for shot in found if not shot.reason]


@pytest.mark.parametrize("hold", [1, 2, 3])
def test_cuts_are_found_to_the_frame_however_long_pictures_are_held(shots, measured, hold):
    seen = measured(*(shots.pan(seed, 30, hold=hold, speed_px=2) for seed in range(4)))
    assert find_cuts(seen) == [30, 60, 90]


def test_short_shots_are_found_too(shots, measured):
    seen = measured(shots.pan(1, 30), shots.pan(2, 5), shots.pan(3, 30))
    assert find_cuts(seen) == [30, 35]
    assert [shot.reason for shot in split_shots(find_shots(seen), min_frames=15, max_frames=200)] == [
        "",
        "too short: 5 frames of at least 15",
        "",
    ]


def test_a_cut_between_dark_pictures_is_found(shots, measured):
    assert find_cuts(measured(shots.pan(1, 30, light=0.12), shots.pan(2, 30, light=0.12))) == [30]


@pytest.mark.parametrize("speed_px", [0, 1, 5, 12])
def test_movement_is_no_cut(shots, measured, speed_px):
    assert find_cuts(measured(shots.pan(5, 48, speed_px=speed_px, hold=2))) == []


def test_a_slow_pan_over_a_blurred_set_is_no_dissolve(shots, measured):
    """Where everything is soft, a picture on the way is nearly the mean of those before and after."""
    assert clips_of(measured(shots.pan(12, 90, speed_px=2))) == [(0, 90)]


def test_a_flickering_light_is_no_cut(shots, measured):
    dice = np.random.default_rng(0)
    still = shots.pan(6, 1)[0].astype(float)
    flicker = np.stack([still * (0.97 + dice.normal(0, 0.03)) for _ in range(24)]).clip(0, 255).astype(np.uint8)
    assert find_cuts(measured(np.repeat(flicker, 2, axis=0))) == []


@pytest.mark.parametrize("num_frames", [8, 12, 24, 40])
def test_a_dissolve_is_in_no_clip(shots, measured, num_frames):
    seen = measured(shots.dissolved(shots.pan(7, 70), shots.pan(8, 70), num_frames))
    first, end = 70 - num_frames, 70
    clips = clips_of(seen)
    assert [clip for clip in clips if clip[0] < end - 1 and clip[1] > first + 1] == []
    assert sum(end - first for first, end in clips) > 0.6 * (140 - 2 * num_frames)  # and most of the rest is kept
    assert "inside a fade or dissolve" in {shot.reason for shot in find_shots(seen)}


def test_a_fade_through_black_is_in_no_clip(shots, measured):
    black = np.zeros((30, *shots.pan(0, 1).shape[1:]), np.uint8)
    film = shots.dissolved(shots.dissolved(shots.pan(9, 60), black, 12), shots.pan(10, 60), 12)
    clips = clips_of(measured(film))
    assert [clip for clip in clips if clip[0] < 77 and clip[1] > 49] == []
    assert len(clips) == 2


def test_a_plain_stretch_is_dropped_and_a_card_with_text_is_not(shots, measured):
    black, card = np.zeros((2, 30, *shots.pan(0, 1).shape[1:]), np.uint8)
    card[:, 40:100, 40:216:3] = 230
    seen = measured(shots.pan(11, 30), black, card)
    assert [shot.reason[:14] for shot in find_shots(seen)] == ["", "nothing to see", ""]


def test_a_damaged_stretch_is_a_shot_of_its_own(shots, measured):
    seen = measured(shots.pan(12, 40))
    seen.is_damaged[10:25] = True
    assert find_shots(seen) == [Shot(0, 10), Shot(10, 25, "damaged in the file"), Shot(25, 40)]


@pytest.mark.parametrize(
    ("num_frames", "pieces"),
    [(200, [200]), (201, [100, 101]), (405, [135, 135, 135]), (15, [15]), (401, [133, 134, 134])],
)
def test_a_long_shot_is_split_evenly(num_frames, pieces):
    split = list(split_shots([Shot(7, 7 + num_frames)], min_frames=15, max_frames=200))
    assert [shot.num_frames for shot in split] == pieces
    assert (split[0].first_frame, split[-1].end_frame) == (7, 7 + num_frames)


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=8), st.integers(2, 40), st.integers(0, 200))
def test_every_frame_is_in_one_shot_and_every_clip_has_a_length_that_is_allowed(lengths, min_frames, more):
    max_frames = 2 * min_frames - 1 + more
    ends = np.cumsum([0, *lengths])
    shots = [Shot(int(first), int(end)) for first, end in pairwise(ends)]
    split = list(split_shots(shots, min_frames=min_frames, max_frames=max_frames))
    assert [shot.first_frame for shot in split] == [0, *(shot.end_frame for shot in split[:-1])]
    assert split[-1].end_frame == ends[-1]
    for shot in split:
        assert shot.reason or min_frames <= shot.num_frames <= max_frames
        assert not shot.reason or shot.num_frames < min_frames


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="the developer films are not on this machine (../shared/videos)")
@pytest.mark.parametrize("name", ["montage_dev.mp4", "sintel_excerpt.mp4", "jwst_two_streams.mp4", "brickfilm_s1.mp4"])
def test_every_labelled_cut_of_real_films_is_found_and_no_clip_holds_one(name):
    truth = json.loads((VIDEOS / "truth.json").read_text(encoding="utf-8"))[name]
    with closing(frames(VIDEOS / name)) as film:
        seen = measure(film)
    assert seen.num_frames == truth["frames"]
    found = find_cuts(seen)
    assert [cut for cut in truth["cuts"] if not any(abs(cut - each) <= 2 for each in found)] == []
    transitions = [(each["start"], each["end"]) for each in truth["gradual"]]
    clips = clips_of(seen)
    assert [clip for clip in clips if any(clip[0] < cut < clip[1] for cut in truth["cuts"])] == []
    assert [
        clip for clip in clips if any(clip[0] < end - 1 and clip[1] > first + 1 for first, end in transitions)
    ] == []
    assert len(found) <= len(truth["cuts"]) + 2
