"""Panels: what a prompt looked like over the course of a training, in one picture.

Dark ground and light letters, so that a panel can be shown alone, on a light page or a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bricks_core.video.read import Pixels

FRAME_WIDTH_PX = 176
GUTTER_PX = 132
GAP_PX = 4
MARGIN_PX = 14
GROUND, INK, MUTED = (22, 24, 29), (240, 238, 232), (163, 169, 181)
MARKS = {"raw": (109, 179, 242), "ema": (255, 138, 115), "base": (163, 169, 181)}
"""The colours that the page's charts have for the same weights."""
NAMES = {"raw": "raw", "ema": "EMA", "base": "base"}


@dataclass(frozen=True)
class Row:
    """A row of a panel: what one checkpoint made."""

    title: str
    weights: str
    """raw, ema or base."""
    frames: Sequence[Pixels]


def panel(rows: Sequence[Row], places: Sequence[int]) -> Pixels:
    """Rows of frames, the base model first, labelled. `places` are the frames' numbers, for the columns' heads."""
    height = _frame_height(rows[0].frames[0])
    columns = max(len(row.frames) for row in rows)
    head = 26
    size = (
        2 * MARGIN_PX + GUTTER_PX + columns * (FRAME_WIDTH_PX + GAP_PX) - GAP_PX,
        2 * MARGIN_PX + head + len(rows) * (height + GAP_PX) - GAP_PX,
    )
    canvas = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(canvas)
    small, large = _font(15), _font(18)
    for column, place in enumerate(places):
        x = MARGIN_PX + GUTTER_PX + column * (FRAME_WIDTH_PX + GAP_PX) + FRAME_WIDTH_PX / 2
        draw.text((x, MARGIN_PX + 8), f"frame {place}", MUTED, small, anchor="mm")
    for number, row in enumerate(rows):
        y = MARGIN_PX + head + number * (height + GAP_PX)
        draw.rectangle((MARGIN_PX, y, MARGIN_PX + 4, y + height - 1), MARKS[row.weights])
        draw.text((MARGIN_PX + 16, y + height / 2 - 11), row.title, INK, large, anchor="lm")
        draw.text((MARGIN_PX + 16, y + height / 2 + 11), NAMES[row.weights], MARKS[row.weights], small, anchor="lm")
        for column, frame in enumerate(row.frames):
            picture = Image.fromarray(_scaled(frame, FRAME_WIDTH_PX, height))
            canvas.paste(picture, (MARGIN_PX + GUTTER_PX + column * (FRAME_WIDTH_PX + GAP_PX), y))
    return np.asarray(canvas)


def overview(prompts: Sequence[str], heads: Sequence[str], picture: Callable[[int, int], Pixels | None]) -> Pixels:
    """A picture per prompt (rows) and checkpoint (columns). `picture` gives the one at (row, column), if any."""
    cells = {
        (row, column): found
        for row in range(len(prompts))
        for column in range(len(heads))
        if (found := picture(row, column)) is not None
    }
    height = _frame_height(next(iter(cells.values())))
    gutter, head = 232, 30
    size = (
        2 * MARGIN_PX + gutter + len(heads) * (FRAME_WIDTH_PX + GAP_PX) - GAP_PX,
        2 * MARGIN_PX + head + len(prompts) * (height + GAP_PX) - GAP_PX,
    )
    canvas = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(canvas)
    font = _font(16)
    for column, title in enumerate(heads):
        x = MARGIN_PX + gutter + column * (FRAME_WIDTH_PX + GAP_PX) + FRAME_WIDTH_PX / 2
        draw.text((x, MARGIN_PX + 10), title, INK, font, anchor="mm")
    for row, prompt in enumerate(prompts):
        y = MARGIN_PX + head + row * (height + GAP_PX)
        lines = wrapped(prompt, font, gutter - 16, max(1, height // 21))
        top = y + height / 2 - (len(lines) - 1) * 10.5
        for number, line in enumerate(lines):
            draw.text((MARGIN_PX, top + number * 21), line, MUTED, font, anchor="lm")
        for column in range(len(heads)):
            if (row, column) in cells:
                cell = Image.fromarray(_scaled(cells[row, column], FRAME_WIDTH_PX, height))
                canvas.paste(cell, (MARGIN_PX + gutter + column * (FRAME_WIDTH_PX + GAP_PX), y))
    return np.asarray(canvas)


def frames_of(strip: Pixels, columns: int) -> list[Pixels]:
    """A strip taken apart again."""
    return list(np.split(strip, columns, axis=1))


def thumb(frame: Pixels) -> Pixels:
    """A frame at the size that panels show it: what an overview needs to hold of it."""
    return _scaled(frame, FRAME_WIDTH_PX, _frame_height(frame))


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int) -> list[str]:
    """A text in lines that are no wider than that; what has no room ends in an ellipsis."""
    lines = list(_lines(text, font, width))
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip(" ,.;") + "…"]


def _lines(text: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield line
            line = word
        else:
            line = longer
    yield line


def _frame_height(frame: Pixels) -> int:
    return max(1, round(frame.shape[0] * FRAME_WIDTH_PX / frame.shape[1]))


def _scaled(frame: Pixels, width: int, height: int) -> Pixels:
    if frame.shape[:2] == (height, width):
        return frame
    way = cv2.INTER_AREA if frame.shape[1] > width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (width, height), interpolation=way))


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font: there on every machine, so that a panel's bytes do not depend on what is installed.
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
