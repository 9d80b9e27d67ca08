"""How a prompt is written down: a line of text, texts for single loops, and what it is given to begin from.

    A cliff by the sea                                                          nothing but text
    A cliff{"reference_path": "a.png;b.mp4", "mask_strategy": "0;0,1,0,-1,1"}   files that are given, and where they go
    |0|A cliff|2|The sun sets                                                   the second text from loop 2 on

This is Open-Sora 1.1's syntax; numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from bricks_core.diffusion.conditions import Condition, parse_mask_strategy
from bricks_core.errors import UsageError, nearest

_KEYS = ("reference_path", "mask_strategy")
_MOST_BYTES = 64 << 20
"""Of a file of prompts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what it brings along. What is None was not said, and is whatever holds for all prompts."""

    text: str
    """May hold texts for single loops: see `loop_texts`."""
    references: tuple[str, ...] | None = None
    """Files or addresses, in the order in which conditions count them."""
    conditions: tuple[Condition, ...] | None = None


def parse_prompt(line: str) -> Prompt:
    """A line of a prompt file, or one prompt: text, and at its end maybe a JSON object.  [19]

    The object begins at the first bracket, and the line ends with it; other brackets belong to the text.

    Raises:
        UsageError: the object is none, or has unknown keys; or the line holds bytes that are no text.
    """
    if not _is_text(line):
        raise UsageError(f"The prompt {_short(line)!a} is not UTF-8 text: write it in UTF-8.")
    start = line.find("{")
    if start < 0 or not line.rstrip().endswith("}"):
        return Prompt(line.strip())
    text, written = line[:start].strip(), line[start:].strip()
    try:
        given = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f'What stands in brackets at the end of the prompt "{_short(line)}" is no JSON ({error}): write it as '
            '{"reference_path": "a.png", "mask_strategy": "0"}, or leave the brackets out.'
        ) from None
    for key, value in given.items():
        if key not in _KEYS:
            raise UsageError(
                f'"{key}" at the end of the prompt "{_short(line)}" is unknown{nearest(key, _KEYS)}: there are '
                f"{' and '.join(_KEYS)}."
            )
        if value is not None and not isinstance(value, str):
            raise UsageError(f'"{key}" at the end of the prompt "{_short(line)}" must be a text, such as "0".')
    paths, strategy = given.get("reference_path"), given.get("mask_strategy")
    return Prompt(
        text,
        None if paths is None else reference_paths(paths),
        None if strategy is None else parse_mask_strategy(strategy),
    )


def reference_paths(text: str) -> tuple[str, ...]:
    """Files or addresses between ";".  [19]"""
    return tuple(path.strip() for path in text.split(";") if path.strip())


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a file, one a line; empty lines are left out.

    Raises:
        UsageError: it cannot be read, is no text, or holds no prompt; or a line is wrong, and which.
    """
    try:
        with file.open("rb") as opened:
            written = opened.read(_MOST_BYTES + 1)  # what has no end, such as /dev/zero, is no file of prompts
        if len(written) > _MOST_BYTES:
            raise UsageError(f"{file} holds more than {_MOST_BYTES:,} bytes: is it a file of prompts? Split it.")
        lines = written.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"The prompts in {file} cannot be read: {why}.") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(parse_prompt(line))
            except UsageError as error:
                raise UsageError(f"{file} line {number}: {error}") from None
    if not prompts:
        raise UsageError(f"{file} holds no prompt: write one on each line.")
    return prompts


def loop_texts(text: str, num_loops: int) -> list[str]:
    """The text of every loop: "|0|first|3|second" is "first" in loops 0 to 2 and "second" from loop 3 on.  [19]

    Raises:
        UsageError: loops that do not rise from 0, or that there are not so many of.
    """
    if not text.startswith("|0|"):
        return [text] * num_loops
    words = text.split("|")[1:]
    starts = [int(word) if re.fullmatch(r"\s*\d{1,9}\s*", word) else -1 for word in words[::2]]
    if len(words) % 2 or any(later <= start for start, later in itertools.pairwise(starts)):
        raise UsageError(
            f'In the prompt "{_short(text)}" loops and texts must take turns, and loops must rise: '
            "|0|first text|3|second text."
        )
    if starts[-1] >= num_loops:
        raise UsageError(
            f'The prompt "{_short(text)}" has a text for loop {starts[-1]}, and the last of {num_loops} loops is '
            f"{num_loops - 1}: ask for --loops {starts[-1] + 1}, or leave that text out."
        )
    ends = [*starts[1:], num_loops]
    spans = zip(words[1::2], starts, ends, strict=True)
    return [one for one, start, end in spans for _ in range(end - start)]


def _is_text(line: str) -> bool:
    """Whether it can be written down again: bytes of the command line that are not UTF-8 come as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in line)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
