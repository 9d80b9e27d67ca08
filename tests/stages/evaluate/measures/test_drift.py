"""A drift is found where it is, with its strength, and nowhere else; it is told from a jump. Clips of films."""

from itertools import islice

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import DataError
from bricks_core.stages.evaluate.measures.drift import drift
from tests.stages.evaluate.measures.looks import FPS, HEIGHT_PX, WIDTH_PX
from tests.stages.evaluate.measures.test_motion import moving_square

LENGTHS = (16, 32, 64)


@pytest.fixture(scope="session")
def films():
    """Long clips of plain scenes: things move before what stands still."""
    from brickfilm.film import FilmSpec, photos, storyboard
    from brickfilm.sets import Lens

    spec = FilmSpec.plain(11, 0, num_scenes=8, height_px=HEIGHT_PX, min_photos=66, max_photos=70)
    lens = Lens(spec.size_px, 11_000, spec.grain)
    found = []
    for number, scene in enumerate(storyboard(spec)):
        if scene.kind not in ("title", "end", "still") and scene.num_photos >= 64 and len(found) < 3:
            shown = np.stack([np.asarray(each) for each in islice(photos(spec, scene, lens, f"p {number}"), 64)])
            left = (shown.shape[2] - WIDTH_PX) // 2
            found.append(shown[:, :, left : left + WIDTH_PX])
    return found


def over_time(clip, change):
    """`change(frame, seconds)` of every frame."""
    made = [np.clip(change(frame.astype(np.float32), place / FPS), 0, 255) for place, frame in enumerate(clip)]
    return np.stack(made).astype(np.uint8)


def in_lengths(films, change=lambda frame, time_s: frame, lengths=LENGTHS):
    clips = [over_time(film[:length], change) for length in lengths for film in films]
    return drift(clips, [prompt for _ in lengths for prompt in range(len(films))], FPS)


def still(seed):
    drawn = np.random.default_rng(seed).uniform(0, 255, (HEIGHT_PX, WIDTH_PX, 3))
    return np.repeat(cv2.GaussianBlur(drawn, (0, 0), 3)[None].astype(np.uint8), 64, axis=0)


def test_what_stands_still_and_what_moves_before_it_does_not_drift_however_long(films):
    for clips in ([still(seed) for seed in range(3)], [moving_square(64, step) for step in (0.5, 1, 1.5)], films):
        found = in_lengths(clips)
        assert [each.num_frames for each in found.courses] == list(LENGTHS)
        for course in found.courses:
            assert all(each.value < 1.5 for each in course.departure.values())
            assert abs(course.sharpness.value) < 6
            assert course.jump.value < 1.5
        assert not found.per_doubling.leaves_out(0) or found.per_doubling.value < 0.5
        assert found.from_length.value == 0  # a longer clip begins as the shorter one does


COLOURS = {
    "colour": lambda frame, time_s: frame + 5 * time_s * np.array([1, 0, -1], np.float32),
    "brightness": lambda frame, time_s: frame * (1 - 0.06 * time_s),
    "grey": lambda frame, time_s: frame + 0.07 * time_s * (frame.mean(axis=2, keepdims=True) - frame),
}


@pytest.mark.parametrize("name", COLOURS)
def test_a_slow_change_of_colour_is_found_grows_with_length_and_is_no_jump(name, films):
    found = in_lengths(films, COLOURS[name])
    ends = [course.departure[course.num_frames].value for course in found.courses]
    assert ends[0] < ends[1] < ends[2]
    assert ends[2] > 5
    assert found.per_doubling.low > 0
    assert found.courses[2].departure[64].low > in_lengths(films).courses[2].departure[64].high
    assert found.courses[2].jump.value < 0.35 * ends[2]
    assert found.courses[2].speed.value == pytest.approx(ends[2] * FPS / 60, rel=0.25)


def test_a_drift_of_twice_the_strength_is_twice_as_far():
    clips = [still(seed) for seed in range(3)]
    once, twice = (
        in_lengths(clips, lambda frame, time_s, k=strength: frame + k * time_s).courses[2].departure[64].value
        for strength in (2, 4)
    )
    assert twice == pytest.approx(2 * once, rel=0.15)


def test_a_clip_that_blurs_as_it_goes_on_loses_sharpness_and_more_of_it_the_longer(films):
    found = in_lengths(films, lambda frame, time_s: cv2.GaussianBlur(frame, (0, 0), 0.1 + 0.15 * time_s))
    lost = [course.sharpness.value for course in found.courses]
    assert 0 > lost[0] > lost[1] > lost[2]
    assert lost[2] < -8
    assert found.courses[2].sharpness.high < in_lengths(films).courses[2].sharpness.low


def test_a_jump_is_told_from_a_drift(films):
    red = np.array([60, 0, -60], np.float32)
    found = in_lengths(films, lambda frame, time_s: frame + red * (time_s >= 20 / FPS))
    course = found.courses[2]
    assert course.jump.value > 0.75 * course.departure[64].value
    # It was there by the 32nd picture, and nothing came after.
    assert course.departure[16].value < 1.5 < 10 < course.departure[32].value
    assert course.departure[64].value == pytest.approx(course.departure[32].value, rel=0.2)
    assert found.courses[0].jump.value < 1.5


def test_longer_samples_that_depart_sooner_are_told_from_those_that_go_on_as_they_began(films):
    """Some networks lose hold of everything when asked for more frames than they have learnt."""

    def sooner(film, length):
        return over_time(film[:length], lambda frame, time_s: frame + 0.1 * length * time_s)

    clips = [sooner(film, length) for length in LENGTHS for film in films]
    found = drift(clips, [0, 1, 2] * 3, FPS)
    assert found.from_length.low > 0
    assert in_lengths(films, lambda frame, time_s: frame + 3 * time_s).from_length.value == 0


def test_one_length_has_a_course_and_nothing_to_compare_it_with():
    found = drift([still(0)[:16], still(1)[:16]], [0, 1], FPS)
    assert (len(found.courses), found.per_doubling, found.from_length) == (1, None, None)
    assert found.courses[0].departure[16].value == 0


def test_prompts_are_paired_and_those_of_one_length_are_left_out_of_what_length_adds():
    flat = still(0)
    fading = over_time(flat, lambda frame, time_s: frame * (1 - 0.06 * time_s))
    clips = [flat[:16], flat[:32], fading[:16], fading[:32], fading[:32]]
    found = drift(clips, [0, 0, 1, 1, 2], FPS)
    assert found.per_doubling.num == 2
    assert found.per_doubling.value > 1
    assert found.courses[1].num_samples == 3


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(3, 20), min_size=1, max_size=5), st.integers(0, 99))
def test_any_clips_have_finite_values(lengths, seed):
    rng = np.random.default_rng(seed)
    clips = [rng.integers(0, 256, (length, 40, 48, 3), np.uint8) for length in lengths]
    found = drift(clips, list(range(len(clips))), FPS)
    told = [each for course in found.courses for each in (*course.departure.values(), course.sharpness, course.jump)]
    assert all(np.isfinite(each.value) for each in told)
    assert [course.num_frames for course in found.courses] == sorted(set(lengths))


def test_what_has_no_course_is_told():
    with pytest.raises(DataError, match="2 frames has no course"):
        drift([still(0)[:2]], [0], FPS)
    with pytest.raises(DataError, match="1 clips have 2 prompts"):
        drift([still(0)], [0, 1], FPS)
    with pytest.raises(DataError, match="0 clips"):
        drift([], [], FPS)
