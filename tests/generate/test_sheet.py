"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from bricks_core.generate.sheet import Cell, sheet
from bricks_core.stages.evaluate.panels import GROUND


def cell(value: int, num_frames: int, size: tuple[int, int] = (48, 80)) -> Cell:
    return Cell([np.full((*size, 3), value, np.uint8)] * num_frames, f"A thing of brightness {value}", "seed 1")


@pytest.mark.parametrize("num_frames", [1, 4])
@pytest.mark.parametrize("num_cells", [1, 2, 3, 7])
def test_every_film_is_on_the_sheet_with_its_frames_and_words(num_cells: int, num_frames: int):
    values = [40 + 20 * index for index in range(num_cells)]
    made = sheet([cell(value, num_frames) for value in values])
    flat = made.reshape(-1, 3)
    for value in values:
        num_pixels = (flat == value).all(axis=1).sum()
        assert num_pixels >= num_frames * (168 if num_frames > 1 else 256) * 100
    assert (flat > 200).any()  # words
    assert (made[:20] == GROUND).all()  # a margin


def test_tall_films_and_long_prompts_stay_apart():
    tall = Cell([np.full((80, 48, 3), 90, np.uint8)] * 4, "words that go on and on " * 30, "seed 1")
    made = sheet([tall, cell(120, 4), cell(150, 4), cell(180, 4)])
    rows = [set(np.nonzero((made == value).all(axis=2).any(axis=1))[0].tolist()) for value in (90, 150)]
    assert max(rows[0]) < min(rows[1])
