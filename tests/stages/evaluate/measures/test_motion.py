"""Each number of motion moves with what it is of, and with nothing else. Clips of generated films."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import DataError
from bricks_core.stages.evaluate.measures.motion import NUMBERS, apart, measure, table
from tests.stages.evaluate.measures.looks import FPS, blurred, brighter, clips_of, in_blocks, noisy


@pytest.fixture(scope="session")
def brick():
    return [clip for index in (0, 1) for clip in clips_of("brick", index)]


@pytest.fixture(scope="session")
def plain():
    return list(clips_of("plain", 0))


def of(clips, change=lambda clip: clip, fps=FPS, film_fps=None):
    return table([measure(change(clip), fps, film_fps) for clip in clips])


def mean_of(numbers):
    return {name: float(np.nanmean(values)) for name, values in numbers.items() if np.isfinite(values).any()}


def shuffled(clip):
    return clip[np.random.default_rng(3).permutation(len(clip))]


def over_time(clip, change):
    return np.stack([np.clip(change(frame.astype(float), i / FPS), 0, 255) for i, frame in enumerate(clip)]).astype(
        np.uint8
    )


def moving_square(num_frames, step_px=3, size=(96, 160), noise=0):
    """A textured square that crosses a textured picture; (T, H, W, 3)."""
    rng = np.random.default_rng(0)
    ground, thing = (cv2.GaussianBlur(rng.uniform(0, 255, side), (0, 0), 2) for side in (size, (32, 32)))
    clip = np.repeat(ground[None], num_frames, axis=0)
    for i, frame in enumerate(clip):
        left = round(10 + step_px * i)
        frame[30:62, left : left + 32] = np.clip(thing * 1.5, 0, 255)
    return np.repeat(np.clip(clip + rng.normal(0, noise, clip.shape), 0, 255).astype(np.uint8)[..., None], 3, axis=3)


def test_every_number_has_its_unit_and_direction(brick):
    assert set(of(brick[:1])) == set(NUMBERS)
    assert all(number.what and number.direction for number in NUMBERS.values())


def test_shuffled_frames_are_less_smooth(brick, plain):
    for clips in (brick, plain):
        as_is, other = of(clips)["smoothness"], of(clips, shuffled)["smoothness"]
        told = np.isfinite(as_is) & np.isfinite(other)
        assert (other < as_is)[told].mean() > 0.8
        assert np.mean(as_is[told]) - np.mean(other[told]) > 0.15


def test_what_moves_farther_has_a_larger_amount():
    slow, fast = (measure(moving_square(8, step), FPS).amount for step in (2, 6))
    assert fast == pytest.approx(3 * slow, rel=0.4)


@pytest.mark.parametrize(
    "change",
    [lambda clip: blurred(clip, 2), lambda clip: noisy(clip, 10), lambda clip: in_blocks(clip, 4)],
    ids=["blur", "noise", "blocks"],
)
def test_blur_noise_and_blocks_leave_motion_flicker_and_drift(change, brick):
    as_is, other = mean_of(of(brick)), mean_of(of(brick, change))
    assert other["amount"] == pytest.approx(as_is["amount"], rel=0.25)
    assert other["smoothness"] == pytest.approx(as_is["smoothness"], abs=0.08)
    assert other["flicker"] == pytest.approx(as_is["flicker"], abs=0.6)
    assert other["drift"] == pytest.approx(as_is["drift"], abs=0.5)


def test_a_flicker_is_found_at_its_strength(plain):
    strengths = (0.0, 0.02, 0.05)
    gains = np.random.default_rng(1).normal(0, 1, 8)
    found = []
    for strength in strengths:
        found.append(mean_of(of(plain, lambda clip, s=strength: np.stack(
            [brighter(frame, 1 + s * gain) for frame, gain in zip(clip, gains, strict=True)])))["flicker"])  # fmt: skip
    put_in = 100 * np.abs(np.diff(gains)).mean()
    assert found[0] < 0.3
    assert found[1] == pytest.approx(strengths[1] * put_in, rel=0.3)
    assert found[2] == pytest.approx(strengths[2] * put_in, rel=0.3)


def test_a_flicker_of_bricks_is_told_from_a_steady_light(brick, plain):
    assert mean_of(of(brick))["flicker"] > 5 * mean_of(of(plain))["flicker"]


DRIFTS = {
    "drift_brightness": (lambda frame, s: frame * (1 - 0.2 * s), -1),
    "drift_saturation": (lambda frame, s: frame + 0.3 * s * (frame.mean(axis=2, keepdims=True) - frame), -1),
    "drift_cast": (lambda frame, s: frame + 20 * s * np.array([1, 0, -1]), 1),
    "drift_contrast": (lambda frame, s: cv2.GaussianBlur(frame, (0, 0), 0.3 + 2 * s), -1),
    "drift_sharpness": (lambda frame, s: cv2.GaussianBlur(frame, (0, 0), 0.3 + 0.8 * s), -1),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_is_found_with_its_sign_and_grows_with_its_strength(name, brick):
    change, sign = DRIFTS[name]
    none, weak, strong = (
        mean_of(of(brick, lambda clip, k=strength: over_time(clip, lambda frame, s: change(frame, k * s))))
        for strength in (0, 0.5, 1)
    )
    assert sign * (strong[name] - none[name]) > sign * (weak[name] - none[name]) > 0
    if name != "drift_sharpness":
        assert strong["drift"] > weak["drift"] > none["drift"]


def test_a_longer_clip_that_goes_on_as_it_began_drifts_no_more():
    clip = moving_square(32, 1)
    fading = over_time(clip, lambda frame, s: frame * (1 - 0.1 * s))
    assert measure(fading[:8], FPS).drift == pytest.approx(measure(fading, FPS).drift, rel=0.25)
    assert measure(clip, FPS).drift < 0.5


def test_pictures_on_twos_are_half_held_and_on_ones_not():
    on_ones = moving_square(12, 3, noise=0.5)
    on_twos = np.repeat(on_ones, 2, axis=0)
    assert measure(on_twos, 24, 24).holds == pytest.approx(0.5, abs=0.05)
    assert measure(on_ones, 24, 24).holds == 0
    assert measure(np.repeat(on_ones, 3, axis=0), 24, 24).holds == pytest.approx(2 / 3, abs=0.05)


def test_held_pictures_are_no_jerks():
    on_ones = moving_square(12, 3)
    as_is, on_twos = measure(on_ones, 12, 12), measure(np.repeat(on_ones, 2, axis=0), 24, 24)
    assert on_twos.smoothness == pytest.approx(as_is.smoothness, abs=0.02)
    assert on_twos.amount == pytest.approx(as_is.amount, rel=0.1)


@pytest.mark.parametrize(("fps", "film_fps", "why"), [(6, 24, "pictures between"), (24, None, "not known")])
def test_holds_are_not_told_where_they_cannot_be_seen(fps, film_fps, why):
    motion = measure(moving_square(8), fps, film_fps)
    assert np.isnan(motion.holds)
    assert why in motion.reasons["holds"]


def test_what_cannot_be_told_of_a_still_and_of_a_single_frame_has_a_reason():
    still = measure(np.repeat(moving_square(1), 8, axis=0), 24, 24)
    assert (still.amount, still.flicker, still.drift) == (0, 0, 0)
    assert set(still.reasons) == {"smoothness", "holds"}
    single = measure(moving_square(1), 24, 24)
    assert set(single.reasons) == {"amount", "smoothness", "holds", "flicker", "drift"}


def test_samples_are_compared_with_real_clips_in_their_spread(brick, plain):
    real = of(brick[: len(brick) // 2])
    near, far = (np.nanmedian(apart(of(clips)["flicker"], real["flicker"])) for clips in (brick[6:], plain))
    assert far > 1.5 * near
    assert apart([0.5, 0.4, np.nan], [0.5, 0.5, 0.5])[:2].tolist() == [0, pytest.approx(10)]
    assert np.isnan(apart([1.0], [np.nan])).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(8, 500), st.integers(8, 500), st.integers(0, 255), st.floats(0.5, 120))
def test_any_clip_has_numbers_or_reasons(num_frames, height_px, width_px, level, fps):
    drawn = np.random.default_rng(level).integers(0, 256, (num_frames, height_px, width_px, 3), np.uint8)
    for clip in (drawn, np.full_like(drawn, level)):
        motion = measure(clip, fps, fps)
        untold = {name for name, values in table([motion]).items() if np.isnan(values).any()}
        assert {name.split("_")[0] for name in untold} == set(motion.reasons)


def test_what_is_no_clip_and_no_rate_are_told():
    with pytest.raises(DataError, match="uint8"):
        measure(np.zeros((96, 160, 3), np.uint8), 6)
    with pytest.raises(DataError, match="rate"):
        measure(moving_square(2), 0)
