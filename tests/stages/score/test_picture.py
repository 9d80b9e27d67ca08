"""Sharpness, light, plainness, and the perceptual hash."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.stages.score.picture import look_at, perceptual_hash


def distance(a, b):
    return (int(a, 16) ^ int(b, 16)).bit_count()


def picture(seed=0):
    dice = np.random.default_rng(seed)
    coarse = dice.integers(0, 255, (6, 10)).astype(np.uint8)
    return cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_CUBIC)


@given(level=st.integers(0, 255))
def test_a_plain_picture_is_plain_at_any_level(level):
    look = look_at(np.full((180, 320), level, np.uint8))
    assert look == (0.0, level, 0.0, 1.0)


def test_a_title_card_is_plain_and_a_scene_is_not(drawing):
    card = np.full((180, 320), 20, np.uint8)
    cv2.putText(card, "THE END", (60, 100), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 255, 4)
    assert look_at(card).plain_share > 0.8
    scene = cv2.cvtColor(drawing.scene(num_frames=1)[0], cv2.COLOR_RGB2GRAY)
    assert look_at(scene).plain_share < 0.8


def test_a_blurred_picture_is_less_sharp():
    sharp = np.random.default_rng(0).integers(0, 255, (180, 320)).astype(np.uint8)
    assert look_at(cv2.blur(sharp, (5, 5))).sharpness < look_at(sharp).sharpness / 10


def test_numbers_agree_with_their_definitions():
    luma = picture(3)
    look = look_at(luma)
    assert look.brightness == pytest.approx(luma.mean())
    assert look.contrast == pytest.approx(luma.std())
    assert look.plain_share == pytest.approx((np.abs(luma.astype(int) - np.sort(luma, axis=None)[28799]) <= 6).mean())


def test_a_hash_has_64_bits_half_of_them_set():
    value = perceptual_hash(picture())
    assert len(value) == 16
    assert int(value, 16).bit_count() == 32


@pytest.mark.parametrize("seed", range(5))
def test_brighter_and_cropped_is_near_and_another_picture_is_far(seed):
    one = picture(seed)
    brighter = np.clip(one[4:-4, 7:-7] * 1.15, 0, 255).astype(np.uint8)
    assert distance(perceptual_hash(one), perceptual_hash(brighter)) <= 10
    assert distance(perceptual_hash(one), perceptual_hash(picture(seed + 100))) >= 14
