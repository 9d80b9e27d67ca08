"""Features of hand say what they are named for, and little of what is shown."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bricks_core.errors import DataError
from bricks_core.stages.evaluate.measures.by_hand import NAMES, features_by_hand


def named(clip):
    return dict(zip(NAMES, features_by_hand(clip), strict=True))


@pytest.fixture(scope="module")
def noise():
    """A still that moves by two pixels a frame: (8, 96, 160, 3)."""
    drawn = np.random.default_rng(3).integers(0, 256, (96, 200, 3), dtype=np.uint8)
    return np.stack([drawn[:, 2 * i : 2 * i + 160] for i in range(8)])


def grid_of_dots(period_px):
    picture = np.full((96, 160, 3), 90, np.uint8)
    for y in range(4, 96, 12):
        for x in range(3, 160 - 3, period_px):
            picture[y - 1 : y + 2, x - 1 : x + 2] = 150
    return np.stack([picture] * 4)


@pytest.mark.parametrize("period_px", [6, 8, 12, 16])
def test_a_studded_ground_has_the_period_of_its_studs(period_px, noise):
    found = named(grid_of_dots(period_px))
    assert 2 ** found["period across"] - 1 == pytest.approx(period_px, abs=0.5)
    assert found["strength of period across"] > 0.9
    assert named(noise)["strength of period across"] < 0.3


def test_what_is_held_is_held_and_what_flickers_flickers(noise):
    on_twos = noise[[0, 0, 1, 1, 2, 2, 3, 3]]
    assert named(on_twos)["held share"] == pytest.approx(4 / 7)
    assert named(noise)["held share"] == 0
    flickering = np.stack([(frame * (0.8 if i % 2 else 1.0)).astype(np.uint8) for i, frame in enumerate(noise)])
    assert named(flickering)["flicker"] > named(noise)["flicker"] + 2


@pytest.mark.parametrize("way", ["across", "down"])
def test_stripes_have_the_direction_that_they_have(way):
    wave = np.where(np.arange(160) // 10 % 2, 200, 60).astype(np.uint8)
    picture = np.broadcast_to(wave[None, :] if way == "across" else wave[:96, None], (96, 160))
    found = named(np.stack([np.stack([picture] * 3, axis=-1)] * 2))
    assert (found["upright share"], found["level share"]) == pytest.approx((1, 0) if way == "across" else (0, 1))
    assert found["straightness"] == pytest.approx(1, abs=0.01)


def test_grey_has_no_colour_and_flat_has_no_detail(noise):
    grey = np.full((2, 96, 160, 3), 120, np.uint8)
    found = named(grey)
    assert found["colourfulness"] == found["cast red-green"] == found["number of colours"] == 0
    assert found["flat share"] == 1
    assert found["detail at 0.8 px"] < named(noise)["detail at 0.8 px"] - 5


def test_of_a_single_frame_what_happens_in_time_is_not_a_number(noise):
    found = named(noise[:1])
    missing = {name for name, value in found.items() if not np.isfinite(value)}
    assert missing == {"change", "change of the quiet", "flicker", "held share", "unevenness", "jumps"}


def test_the_order_of_time_does_not_matter_to_what_is_seen_in_a_frame(noise):
    shuffled = noise[[3, 0, 6, 1, 7, 2, 5, 4]]
    here, there = named(noise), named(shuffled)
    assert all(here[name] == pytest.approx(there[name]) for name in NAMES[:-6])
    assert here["change"] == pytest.approx(there["change"], abs=0.1), "noise is as far from any other noise"


@settings(max_examples=20, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(2, 4), st.integers(32, 70), st.integers(32, 70), st.just(3))))
def test_any_frames_have_finite_features(clip):
    assert np.isfinite(features_by_hand(clip)).all()


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_have_finite_features(level):
    assert np.isfinite(features_by_hand(np.full((8, 96, 160, 3), level, np.uint8))).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((8, 96, 160), np.uint8, "A clip is uint8"),
        ((8, 96, 160, 3), np.float32, "float32"),
        ((0, 96, 160, 3), np.uint8, "A clip is uint8"),
        ((8, 24, 160, 3), np.uint8, "24x160 pixels"),
    ],
)
def test_what_is_no_clip_is_told(shape, dtype, told):
    with pytest.raises(DataError, match=told):
        features_by_hand(np.zeros(shape, dtype))
