"""Copies are found whatever was done to them, and other films of the same sets are none. Generated brick films."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import DataError
from bricks_core.stages.evaluate.measures.memorisation import (
    COPY,
    FLOOR,
    Match,
    Nearest,
    fingerprint,
    memorised,
    nearest,
)
from tests.stages.evaluate.measures.looks import blurred, brighter, clips_of, noisy
from tests.stages.evaluate.measures.same_set import filmed


def mirrored(clip):
    return clip[:, :, ::-1]


def hue_turned(clip):
    turned = [cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in clip]
    for frame in turned:
        frame[..., 0] = (frame[..., 0].astype(int) + 60) % 180  # in steps of 2 degrees
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_HSV2RGB) for frame in turned])


def cropped(clip, share, at=0.5):
    height, width = (round(side * (1 - share)) for side in clip.shape[1:3])
    top, left = round((clip.shape[1] - height) * at), round((clip.shape[2] - width) * at)
    part = clip[:, top : top + height, left : left + width]
    return np.stack([cv2.resize(frame, clip.shape[2:0:-1]) for frame in part])


def as_jpeg(clip):
    return np.stack([cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], 1) for frame in clip])


COPIES = {
    "as it is": lambda clip: clip,
    "mirrored": mirrored,
    "recoloured": hue_turned,
    "blurred": lambda clip: blurred(clip, 2),
    "cropped by 5 %": lambda clip: cropped(clip, 0.05),
    "cropped by 10 %": lambda clip: cropped(clip, 0.10),
    "cropped by 15 %": lambda clip: cropped(clip, 0.15),
    "cropped by 15 % to a corner": lambda clip: cropped(clip, 0.15, 0.0),
    "brighter": lambda clip: brighter(clip, 1.2),
    "with noise": lambda clip: noisy(clip, 10),
    "as a poor JPEG": as_jpeg,
    "its middle frame, held": lambda clip: np.repeat(clip[4:5], 8, axis=0),
    "all at once": lambda clip: blurred(mirrored(hue_turned(cropped(clip, 0.08))), 1.5),
}


@pytest.fixture(scope="session")
def films():
    """Clips of six brick films: four to train on, one held out, one that is a sample."""
    return [clips_of("brick", index) for index in range(6)]


@pytest.fixture(scope="session")
def training(films):
    return [fingerprint(clip) for film in films[:4] for clip in film]


@pytest.fixture(scope="session")
def held_out(films, training):
    return nearest([fingerprint(clip) for clip in films[4]], training)


@pytest.fixture(scope="session")
def clips(films):
    return [clip for film in films[:4] for clip in film]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_with_the_clip_that_it_is_of(how, clips, training, held_out):
    copied = range(0, len(clips), 5)
    told = memorised(nearest([fingerprint(COPIES[how](clips[i])) for i in copied], training), held_out)
    assert told.content.tolist() == [1.0] * len(copied)
    found = {pair.sample: pair.match for pair in told.pairs if pair.match.part == "content"}
    assert [found[n].training for n in range(len(copied))] == list(copied)
    assert {match.mirrored for match in found.values()} == {how in ("mirrored", "all at once")}


def test_another_film_with_the_same_kinds_of_scenes_and_sets_is_no_copy(films, training, held_out):
    told = memorised(nearest([fingerprint(clip) for clip in films[5]], training), held_out)
    assert told.content.tolist() == [0.0] * len(films[5])
    assert not told.held_out_copies


@pytest.mark.parametrize("kind", ["drive", "walk", "jump", "talk"])
def test_other_actors_on_the_very_same_set_are_no_copy(kind, training, held_out):
    takes = [fingerprint(filmed(kind, seed, "green", "day")) for seed in range(4)]
    found = nearest(takes[:1], [*training, *takes[1:]])
    assert memorised(found, held_out).content.tolist() == [0.0]


def test_a_copy_of_a_clip_that_is_there_many_times_is_found(clips, training):
    repeated = [*training[:6], *[fingerprint(noisy(clips[2], levels)) for levels in range(1, 8)]]
    found = nearest([fingerprint(mirrored(clips[2]))], repeated)[0].content
    assert found.score > COPY["content"]
    assert found.training in (2, *range(6, 13))


def test_a_single_training_clip_is_enough(clips):
    found = nearest([fingerprint(clips[0]), fingerprint(clips[1])], [fingerprint(clips[0])])
    assert [each.content.score > COPY["content"] for each in found] == [True, False]


def test_what_shows_nothing_copies_nothing(training):
    blotches = np.random.default_rng(0).normal(0, 1, (1, 96, 160, 3)).astype(np.float32)
    blotches = np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in blotches])
    blotches = np.clip(128 + 50 * blotches / blotches.std(), 0, 255).astype(np.uint8)
    grey = np.full((8, 96, 160, 3), 128, np.uint8)
    found = nearest([fingerprint(np.repeat(blotches, 8, axis=0)), fingerprint(grey)], training)
    assert all(each.content.score < 0.3 and each.motion is None for each in found)


def test_content_and_motion_are_told_apart():
    takes = [filmed(kind, seed, "green", "day") for kind in ("drive", "walk", "jump") for seed in (1, 2)]
    training = [fingerprint(take) for take in takes]
    same_way, held_still = filmed("walk", 1, "white", "night", plain=True), np.repeat(takes[2][3:4], 8, axis=0)
    moved, still = nearest([fingerprint(same_way), fingerprint(held_still)], training)
    assert moved.motion.training == 2
    assert moved.motion.score > 0.7
    assert moved.content.score < FLOOR["content"]
    assert (still.content.training, still.content.score > COPY["content"], still.motion) == (2, True, None)


def test_the_motion_of_a_mirrored_copy_is_found_as_mirrored(clips, training):
    moving = [i for i, each in enumerate(training) if each.motion.any()][:4]
    found = [nearest([fingerprint(mirrored(clips[i]))], training)[0].motion for i in moving]
    assert [(match.training, match.mirrored) for match in found] == [(i, True) for i in moving]
    assert min(match.score for match in found) > 0.95


def scored(*scores, part="content"):
    other = Match("content", 0, 0.1, False)
    own = [Match(part, 0, score, False) for score in scores]
    return [Nearest(match, None) if part == "content" else Nearest(other, match) for match in own]


def test_the_threshold_is_what_held_out_clips_reach():
    told = memorised(scored(0.77, 0.79, 0.3), scored(0.2, 0.78, 0.5))
    assert told.thresholds["content"] == 0.78
    assert told.content.tolist() == [0.0, 1.0, 0.0]
    assert [(pair.sample, pair.match.score) for pair in told.pairs] == [(1, 0.79)]
    assert np.isnan(told.motion).all()


def test_held_out_clips_that_are_copies_are_named_and_make_no_threshold():
    told = memorised(scored(0.9), scored(0.99, 0.2, 0.3))
    assert [pair.sample for pair in told.held_out_copies] == [0]
    assert (told.thresholds["content"], told.num_held_out["content"]) == (FLOOR["content"], 2)
    assert told.content.tolist() == [1.0]


def test_a_held_out_clip_laid_out_like_one_of_training_in_other_colours_is_no_repeat_and_makes_the_threshold():
    like = [Nearest(replace(each.content, same_colours=0.5), None) for each in scored(0.84, 0.3)]
    told = memorised(scored(0.83, 0.85), like)
    assert not told.held_out_copies
    assert (told.thresholds["content"], told.num_held_out["content"]) == (0.84, 2)
    assert told.content.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("how", ["as it is", "mirrored", "blurred", "cropped by 10 %", "brighter", "as a poor JPEG"])
def test_the_same_film_on_both_sides_is_the_same_clip_whatever_was_done_to_it(how, films, training):
    found = nearest([fingerprint(COPIES[how](films[0][0]))], training)[0].content
    assert (found.training, found.is_the_same_clip) == (0, True), found


def test_a_clip_in_other_colours_is_not_the_same_one(films, training):
    found = nearest([fingerprint(hue_turned(films[0][0]))], training)[0].content
    assert (found.training, found.is_the_same_clip) == (0, False)
    assert found.score >= COPY["content"]


def test_motion_that_other_films_have_as_well_is_natural():
    natural = memorised(scored(0.95, part="motion"), scored(0.97, 0.4, part="motion"))
    rare = memorised(scored(0.95, part="motion"), scored(0.6, 0.4, part="motion"))
    assert (natural.motion.tolist(), rare.motion.tolist()) == ([0.0], [1.0])


def test_without_held_out_clips_the_floor_is_the_threshold():
    told = memorised(scored(0.7, 0.9), [])
    assert told.content.tolist() == [0.0, 1.0]
    assert told.num_held_out == {"content": 0, "motion": 0}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(8, 200), st.integers(8, 200), st.integers(0, 255))
def test_clips_of_any_length_and_size_are_compared(num_frames, height_px, width_px, level):
    drawn = np.random.default_rng(level).integers(0, 256, (num_frames, height_px, width_px, 3), np.uint8)
    flat = np.full_like(drawn, level)
    found = nearest([fingerprint(drawn), fingerprint(flat)], [fingerprint(drawn), fingerprint(flat)])
    assert (found[0].content.training, found[0].content.score) == (0, pytest.approx(1, abs=0.02))
    assert all(0 <= each.content.score <= 1 for each in found)


def test_what_is_no_clip_and_nothing_to_compare_with_are_told():
    with pytest.raises(DataError, match="uint8"):
        fingerprint(np.zeros((8, 96, 160, 3), np.float32))
    with pytest.raises(DataError, match="training clips"):
        nearest([], [])
