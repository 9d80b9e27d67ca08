"""A contact sheet: what was made, at a glance, each with its prompt below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bricks_core.stages.evaluate.panels import GROUND, INK, MUTED, wrapped
from bricks_core.video.read import Pixels
from bricks_core.video.resize import fit

MAX_FRAMES = 4
"""Frames shown of a film."""
_FRAME_PX = 168
_IMAGE_PX = 256
_GAP_PX = 4
_BETWEEN_PX = 24
_MARGIN_PX = 28
_LINE_PX = 20
_MAX_LINES = 3


@dataclass(frozen=True)
class Cell:
    """One film or picture of the sheet."""

    frames: Sequence[Pixels]
    """(height, width, 3) each, all of one size."""
    caption: str
    note: str
    """A short line below the caption, such as the seed."""


def sheet(cells: Sequence[Cell]) -> Pixels:
    """All cells in a grid, on dark ground.  -> (height, width, 3)"""
    num_frames = max(len(cell.frames) for cell in cells)
    each_px = _FRAME_PX if num_frames > 1 else _IMAGE_PX
    width = num_frames * (each_px + _GAP_PX) - _GAP_PX
    columns = _num_columns(len(cells), num_frames)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's own, there on every machine
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(_cell_height(cell, each_px, width, font) for cell in row) for row in rows]
    canvas = Image.new(
        "RGB",
        (
            2 * _MARGIN_PX + columns * (width + _BETWEEN_PX) - _BETWEEN_PX,
            2 * _MARGIN_PX + sum(heights) + _BETWEEN_PX * (len(rows) - 1),
        ),
        GROUND,
    )
    draw, top = ImageDraw.Draw(canvas), _MARGIN_PX
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _MARGIN_PX + column * (width + _BETWEEN_PX)
            below = top + _picture_height(cell, each_px) + 8
            for number, frame in enumerate(cell.frames):
                small_frame = fit(frame[None], _picture_height(cell, each_px), each_px)[0]
                canvas.paste(Image.fromarray(small_frame), (left + number * (each_px + _GAP_PX), top))
            lines = wrapped(cell.caption, font, width, _MAX_LINES)
            for number, line in enumerate(lines):
                draw.text((left, below + number * _LINE_PX), line, INK, font)
            draw.text((left, below + len(lines) * _LINE_PX + 2), cell.note, MUTED, small)
        top += height + _BETWEEN_PX
    return np.asarray(canvas)


def _num_columns(num_cells: int, num_frames: int) -> int:
    """Films are wide, so two beside each other; pictures about as many as make a square."""
    if num_frames > 1:
        return 1 if num_cells <= 3 else 2
    return min(num_cells, max(2, math.ceil(math.sqrt(num_cells))), 5)


def _picture_height(cell: Cell, width_px: int) -> int:
    height, width = cell.frames[0].shape[:2]
    return max(1, round(height * width_px / width))


def _cell_height(cell: Cell, each_px: int, width: int, font: ImageFont.FreeTypeFont) -> int:
    lines = wrapped(cell.caption, font, width, _MAX_LINES)
    return _picture_height(cell, each_px) + 8 + (len(lines) + 1) * _LINE_PX
