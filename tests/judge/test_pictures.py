"""Looking at a clip that is known to move finds what a whole look finds, in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bricks_core.judge.pictures import STILL, see, see_moving
from bricks_core.video.read import read_rgb
from bricks_core.video.write import write_mp4

NUM_FRAMES = 20


def a_clip(folder: Path, places: list[int]) -> Path:
    """A red block on a field of green, at so many pixels from the left in each frame."""
    pictures = np.full((len(places), 96, 160, 3), (90, 160, 80), np.uint8)
    pictures[:, ::8, ::5] = (40, 60, 30)
    for picture, place in zip(pictures, places, strict=True):
        picture[30:70, place : place + 30] = (200, 30, 30)
    write_mp4(folder / "clip.mp4", pictures, 24)
    return folder / "clip.mp4"


@pytest.mark.parametrize("shares", [[0.2, 0.5, 0.8], [0.0, 1.0], [0.5], [0.0, 0.0, 0.9]])
def test_of_a_clip_that_moves_the_same_frames_are_chosen_and_come_with_it(tmp_path: Path, shares: list[float]) -> None:
    clip = a_clip(tmp_path, [5 + 6 * index for index in range(NUM_FRAMES)])
    seen = see(clip, NUM_FRAMES, 24.0, shares)
    assert seen.status == "ok"
    assert seen.motion.change > STILL
    found = see_moving(clip, NUM_FRAMES, shares)
    assert found is not None
    chosen, pictures = found
    assert chosen == seen.chosen
    np.testing.assert_array_equal([pictures[each] for each in chosen], read_rgb(clip, seen.chosen))


def test_where_another_frame_may_stand_in_more_has_to_be_looked_at(tmp_path: Path) -> None:
    there_and_back = a_clip(tmp_path, [20 if index in (4, 10, 15) else 90 for index in range(NUM_FRAMES)])
    shares = [0.2, 0.5, 0.8]
    assert see(there_and_back, NUM_FRAMES, 24.0, shares).chosen != [4, 10, 15]
    assert see_moving(there_and_back, NUM_FRAMES, shares) is None


def test_a_clip_that_is_shorter_than_its_row_says_or_shows_nothing_is_looked_at_whole(
    tmp_path: Path,
) -> None:
    assert see_moving(a_clip(tmp_path, [5, 50, 90]), NUM_FRAMES, [0.2, 0.5, 0.8]) is None
    write_mp4(tmp_path / "black.mp4", np.zeros((NUM_FRAMES, 96, 160, 3), np.uint8), 24)
    assert see_moving(tmp_path / "black.mp4", NUM_FRAMES, [0.2, 0.5, 0.8]) is None
