"""What is to be made: every prompt and flag, turned into films with a file, a seed, and everything they begin from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bricks_core.diffusion.conditions import Condition, end_image, extension, mask_strategy, start_image
from bricks_core.diffusion.loops import num_frames_in_loops
from bricks_core.diffusion.prompts import Prompt, loop_texts
from bricks_core.errors import UsageError
from bricks_core.generate.outputs import file_name
from bricks_core.generate.references import Given, given_file, num_frames_of, rehearse
from bricks_core.generate.shape import Shape
from bricks_core.models.caption_cleaning import clean_caption


@dataclass(frozen=True)
class Beginnings:
    """What flags say that films begin from, end with, or go on from; prompts may say otherwise for themselves."""

    image: str | None = None
    last_image: str | None = None
    video: str | None = None
    references: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    num_loops: int = 1
    num_given: int | None = None
    """Frames that a clip takes over from the one before; None: a quarter of its own."""


@dataclass(frozen=True)
class Film:
    """A film or picture to be made."""

    file: Path
    prompt: str
    """As it was written, without what stood in brackets."""
    title: str
    """The same for people: the texts of loops with an arrow between them."""
    texts: tuple[str, ...]
    """What the network reads, for each loop."""
    seed: int
    references: tuple[Given, ...]
    conditions: tuple[Condition, ...]
    num_frames: int
    """Of all loops together."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is this film's own among all that decides what is in it."""
        own: dict[str, Any] = {"prompt": self.prompt, "texts": list(dict.fromkeys(self.texts)), "seed": self.seed}
        if self.references:
            own["references"] = [each.identity for each in self.references]
        if self.conditions:
            own["mask_strategy"] = mask_strategy(self.conditions)
        return own


def num_given_frames(beginnings: Beginnings, shape: Shape) -> int:
    """How many frames a clip takes over: what was asked for, or a quarter, which training has shown the network."""
    return beginnings.num_given or max(1, shape.num_frames // 4)


def films(
    prompts: Sequence[Prompt],
    beginnings: Beginnings,
    shape: Shape,
    out: Path,
    *,
    seed: int,
    num_samples: int = 1,
    clean: bool = True,
) -> list[Film]:
    """Every film: for each prompt as many as asked for, with a seed one higher each.

    Raises:
        UsageError, DataError: a prompt, a file or a condition cannot be meant; said before anything is loaded.
    """
    num_given = num_given_frames(beginnings, shape)
    num_frames = num_frames_in_loops(beginnings.num_loops, shape.num_frames, num_given)
    found = []
    for number, prompt in enumerate(prompts, 1):
        written = loop_texts(prompt.text, beginnings.num_loops)
        texts = tuple(_text(each, clean) for each in written)
        title = " → ".join(dict.fromkeys(each.strip() for each in written))
        references, conditions = _given(prompt, beginnings, shape, num_given)
        rehearse(
            [num_frames_of(each) for each in references],
            conditions,
            shape.num_frames,
            beginnings.num_loops,
            num_given,
        )
        for index in range(num_samples):
            name = file_name(number, written[0], num_frames, seed + index if index else None)
            found.append(Film(out / name, prompt.text, title, texts, seed + index, references, conditions, num_frames))
    return found


def _text(written: str, clean: bool) -> str:
    text = clean_caption(written) if clean else written.strip()
    if not text:
        raise UsageError(
            f'Of the prompt "{written}" nothing is left once it is cleaned, as Open-Sora cleans prompts (addresses, '
            "file names, Chinese characters go): write it in other words, or pass --no-clean."
            if clean and written.strip()
            else "A prompt is empty: write what is to be seen."
        )
    return text


def _given(
    prompt: Prompt, beginnings: Beginnings, shape: Shape, num_given: int
) -> tuple[tuple[Given, ...], tuple[Condition, ...]]:
    """The references and conditions of a prompt: its own, or else those of the flags, the named wishes last."""
    names = beginnings.references if prompt.references is None else prompt.references
    references = [Given(given_file(name)) for name in names]
    conditions = list(beginnings.conditions if prompt.conditions is None else prompt.conditions)
    if beginnings.image is not None and beginnings.video is not None:
        raise UsageError("--image and --video both say how a film begins: choose one.")
    if beginnings.image is not None:
        conditions.append(start_image(len(references)))
        references.append(Given(given_file(beginnings.image)))
    if beginnings.video is not None:
        if not 1 <= num_given < shape.num_frames:
            raise UsageError(
                f"A film of {shape.num_frames} frames cannot go on from {num_given}: choose --condition-frames from 1 "
                f"to {shape.num_frames - 1}."
                if shape.num_frames > 1
                else "One frame cannot go on from a film: ask for more --frames."
            )
        conditions.append(extension(num_given, len(references)))
        references.append(Given(given_file(beginnings.video), num_given, shape.fps))
    if beginnings.last_image is not None:
        conditions.append(end_image(len(references), loop=beginnings.num_loops - 1))
        references.append(Given(given_file(beginnings.last_image)))
    if references and not conditions:
        raise UsageError(
            f"{references[0].file} is given, but not what for: say --condition 0 to begin with its first frame, or see "
            "docs/generate.md."
        )
    return tuple(references), tuple(conditions)
