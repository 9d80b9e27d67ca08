"""Clips that go on from one another, with a codec and a network of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.diffusion.conditions import Condition, apply_conditions, parse_mask_strategy, start_image
from bricks_core.diffusion.loops import in_loops, num_frames_in_loops
from bricks_core.errors import UsageError


class Toy:
    """A network that makes of clip k of sample b frames of value 100 k + 10 b + place where it is free to, and a codec
    whose pixels are latents plus one."""

    def __init__(self, num_samples: int, num_frames: int):
        self.num_samples, self.num_frames = num_samples, num_frames
        self.seen: list[list[tuple[Condition, ...]]] = []

    def sample(self, loop, references, conditions):
        self.seen.append([tuple(each) for each in conditions])
        shape = (1, self.num_frames, 1, 1)
        noise = torch.stack(
            [
                torch.arange(self.num_frames).reshape(shape) + 100.0 * loop + 10 * index
                for index in range(self.num_samples)
            ]
        )
        return apply_conditions(noise, references, conditions, loop)[0]

    def decode(self, latents):
        return (latents.numpy() + 1).astype(np.int64)[0]

    def encode(self, frames):
        return torch.from_numpy(frames)[None].float() - 1

    def run(self, num_loops, num_given, references=None, conditions=None):
        empty = [()] * self.num_samples
        parts = list(
            in_loops(
                num_loops, num_given, self.sample, self.decode, self.encode, references or empty, conditions or empty
            )
        )
        return [np.concatenate(each).reshape(-1).tolist() for each in zip(*parts, strict=True)]


def test_each_clip_goes_on_from_the_last_frames_of_the_one_before():
    toy = Toy(num_samples=1, num_frames=4)
    assert toy.run(3, 2) == [[1, 2, 3, 4, 103, 104, 203, 204]]
    assert [each[0] for each in toy.seen] == [
        (),
        parse_mask_strategy("1,0,-2,0,2"),
        parse_mask_strategy("1,0,-2,0,2;2,1,-2,0,2"),
    ]


def test_samples_of_a_batch_do_not_share_what_they_are_given():
    image = torch.full((1, 1, 1, 1), 7.0)
    toy = Toy(num_samples=2, num_frames=4)
    alone = Toy(num_samples=1, num_frames=4)
    both = toy.run(2, 1, [[image], []], [[start_image()], []])
    assert both[0] == alone.run(2, 1, [[image]], [[start_image()]])[0] == [8, 2, 3, 4, 102, 103, 104]
    assert both[1] == [11, 12, 13, 14, 112, 113, 114]
    assert toy.seen[1] == [parse_mask_strategy("0;1,1,-1,0,1"), parse_mask_strategy("1,0,-1,0,1")]


def test_a_clip_is_the_whole_video_when_there_is_one_loop():
    assert Toy(num_samples=1, num_frames=3).run(1, 0) == [[1, 2, 3]]


@given(st.integers(1, 5), st.integers(2, 9), st.data())
def test_the_video_is_as_long_as_was_said(num_loops: int, num_frames: int, data):
    num_given = data.draw(st.integers(1, num_frames - 1))
    (video,) = Toy(num_samples=1, num_frames=num_frames).run(num_loops, num_given)
    assert len(video) == num_frames_in_loops(num_loops, num_frames, num_given)
    # The specification's sum.
    assert len(video) == num_loops * (num_frames - num_given) + num_given


@pytest.mark.parametrize(("num_loops", "num_given"), [(2, 4), (2, 0), (2, 5)])
def test_a_clip_without_new_frames_or_without_given_ones_is_refused(num_loops: int, num_given: int):
    with pytest.raises(UsageError, match="choose from 1 to 3"):
        num_frames_in_loops(num_loops, 4, num_given)


def test_no_loop_makes_no_video():
    with pytest.raises(UsageError, match="at least one"):
        num_frames_in_loops(0, 4, 1)
