"""Frames, size and rate: asked for, or trained on, or refused."""

from __future__ import annotations

import logging

import pytest

from bricks_core.diffusion.model import Bucket
from bricks_core.errors import BricksError
from bricks_core.generate.shape import Able, Asked, shape_of

TRAINED = (Bucket(32, 360, 640, 8.0), Bucket(16, 240, 426, 12.0), Bucket(1, 360, 640, 0.0))


USUAL = Bucket(16, 240, 426, 8.0)


def shaped(trained=TRAINED, **asked):
    shape = shape_of(Asked(**asked), Able(trained, USUAL))
    return shape.num_frames, shape.size.height_px, shape.size.width_px, shape.fps


def test_nothing_said_is_the_largest_bucket():
    assert shaped() == (32, 360, 640, 8.0)


def test_nothing_said_and_nothing_known_is_the_reference_sample():
    assert shaped(()) == (16, 240, 426, 8.0)


def test_frames_choose_the_bucket_that_has_as_many():
    assert shaped(num_frames=16) == (16, 240, 426, 12.0)
    assert shaped(num_frames=1)[:3] == (1, 360, 640)


def test_size_and_rate_are_as_asked_for():
    assert shaped(num_frames=16, size="64x96", fps=23.976) == (16, 64, 96, 23.976)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(None, (360, 640)), ("16:9", (360, 640)), ("9:16", (640, 360)), ("1:1", (480, 480)), ("1.00", (480, 480))],
)
def test_a_class_and_an_aspect_choose_a_size(aspect, size):
    assert shaped(resolution="360p", aspect=aspect)[1:3] == size


def test_a_shape_not_trained_on_works_with_one_line_that_names_the_buckets(caplog):
    with caplog.at_level(logging.WARNING, "bricks"):
        assert shaped(num_frames=8, size="240x424")[:3] == (8, 240, 424)
        (record,) = caplog.records
        assert "8 frames of 240x424" in record.message
        for bucket in ("32 frames at 8 fps of 360x640", "16 frames at 12 fps of 240x426", "images of 360x640"):
            assert bucket in record.message


def test_a_shape_trained_on_and_a_model_of_which_nothing_is_known_are_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "bricks"):
        shaped(num_frames=16)
        shaped(())
        shaped((), num_frames=8, size="64x64")
    assert not caplog.records


def test_a_size_of_a_table_may_be_no_multiple_of_the_autoencoders_squares():
    # 426 is in Open-Sora's tables and was trained on; the autoencoder leaves two columns out.
    assert shaped(size="240x426")[1:3] == (240, 426)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"size": "100x203"}, "The nearest sizes are 96x200 and 104x208"),
        ({"size": "8x64"}, "at least 16 pixels"),
        ({"size": "large"}, '"large" is no size: write height x width'),
        ({"size": "0x64"}, "is no size"),
        ({"size": "64x64", "resolution": "360p"}, "leave --resolution and --aspect out"),
        ({"resolution": "361p"}, 'no resolution "361p" (did you mean "360p"?)'),
        ({"resolution": "360p", "aspect": "wide"}, 'no aspect "wide"'),
        ({"resolution": "100x100"}, "nearest sizes are 96x96 and 104x104"),
        ({"aspect": "1:1"}, "--aspect goes with --resolution"),
    ],
)
def test_what_the_model_cannot_make_is_refused_with_what_it_can(asked, said):
    with pytest.raises(BricksError) as refused:
        shaped(**asked)
    assert said in str(refused.value)


WAN = Able((), Bucket(81, 480, 832, 16.0), side_px=16, time_stride=4)


def test_wan_is_asked_for_what_its_makers_show():
    shape = shape_of(Asked(), WAN)
    assert (shape.num_frames, shape.size.height_px, shape.size.width_px, shape.fps) == (81, 480, 832, 16.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_frames": 16}, "The nearest are 13 and 17"),
        ({"num_frames": 4}, "The nearest are 1 and 5"),
        ({"size": "360x640"}, "The nearest sizes are 352x640 and 368x640"),
        ({"resolution": "360p"}, "The nearest sizes are 352x640 and 368x640"),
    ],
)
def test_wan_refuses_frames_and_sides_that_its_latents_have_not(asked, said):
    with pytest.raises(BricksError) as refused:
        shape_of(Asked(**asked), WAN)
    assert said in str(refused.value)
