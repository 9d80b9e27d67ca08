"""Frames that are given: a start or an end image, two clips to connect, a clip to go on with or to edit.

Latent frames of a reference are put into the sample, and a mask says for each frame how much of it is still to be made.
The chain that honours the mask is in `sampling.py`; Open-Sora's strings for the same are read and written here.
Numbers in brackets are sections of the specification, docs/stdit2.md.

Letters: B samples, C latent channels, T frames of the sample, R frames of a reference, H, W size of the latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bricks_core.errors import UsageError

Reference = Tensor
"""A clip or an image that is given, as latents (C, R, H, W); R = 1 for an image."""


@dataclass(frozen=True)
class Condition:
    """Some frames of a reference, put somewhere into the sample.

    Starts may be negative and then count from the end, as Python's indices do.
    """

    reference: int = 0
    """Which of the sample's references, from 0."""
    reference_start: int = 0
    """The first frame taken from the reference."""
    target_start: int = 0
    """Where in the sample it is put."""
    num_frames: int = 1
    edit_ratio: float = 0.0
    """0: the frames stay as they are; 1: they are made anew; between: they are changed, the more the larger it is."""
    loop: int = 0
    """In which clip of a sequence this holds (`loops.py`); 0 where there is but one."""

    def __post_init__(self) -> None:
        if self.reference < 0 or self.loop < 0:
            raise UsageError(f"Condition {self}: references and loops are counted from 0.")
        if self.num_frames < 1:
            raise UsageError(f"Condition {self}: its length must be at least one frame.")
        if not 0 <= self.edit_ratio <= 1:  # also refuses what is no number
            raise UsageError(f"Condition {self}: the edit ratio lies between 0 (keep) and 1 (make anew).")

    def __str__(self) -> str:
        """As a group of Open-Sora's mask strategy."""
        ratio = repr(self.edit_ratio).removesuffix(".0")
        start = f"{self.loop},{self.reference},{self.reference_start},{self.target_start}"
        return f"{start},{self.num_frames},{ratio}"


def start_image(reference: int = 0) -> Condition:
    """The sample begins with an image."""
    return Condition(reference)


def end_image(reference: int = 0, loop: int = 0) -> Condition:
    """The sample ends with an image; of several clips, the last one's loop is to be named."""
    return Condition(reference, target_start=-1, loop=loop)


def connection(num_frames: int, first: int = 0, second: int = 1) -> tuple[Condition, Condition]:
    """The sample begins with the last frames of one clip and ends with the first frames of another."""
    return (
        Condition(first, reference_start=-num_frames, num_frames=num_frames),
        Condition(second, target_start=-num_frames, num_frames=num_frames),
    )


def extension(num_frames: int, reference: int = 0, loop: int = 0) -> Condition:
    """The sample goes on from the last frames of a clip, which are its first."""
    return Condition(reference, reference_start=-num_frames, num_frames=num_frames, loop=loop)


def edit(edit_ratio: float, num_frames: int, reference: int = 0) -> Condition:
    """The sample is a clip's first frames, changed."""
    return Condition(reference, num_frames=num_frames, edit_ratio=edit_ratio)


# The order of a group's fields in Open-Sora's strings, and what each is when it is left out.  [19]
_FIELDS = ("loop", "reference", "reference_start", "target_start", "num_frames", "edit_ratio")


def parse_mask_strategy(text: str) -> tuple[Condition, ...]:
    """Open-Sora's mask strategy: groups between ";", fields between ",", what is missing at its default.  [19]

    "0" is a start image; "0,1,0,-1,1" puts the second reference at the end; "0,0,0,0,8,0.3" edits eight frames.

    Raises:
        UsageError: this is no mask strategy; it says where.
    """
    if not text.strip():
        return ()
    return tuple(_parse_group(group, text) for group in text.split(";"))


def _parse_group(group: str, text: str) -> Condition:
    words = [word.strip() for word in group.split(",")]
    if len(words) > len(_FIELDS):
        raise UsageError(f'"{group}" in the mask strategy "{text}" has {len(words)} fields; there are {_order()}.')
    values: dict[str, int | float] = {}
    for name, word in zip(_FIELDS, words, strict=False):
        is_ratio = name == "edit_ratio"
        try:
            values[name] = float(word) if is_ratio else int(word)
        except ValueError:
            kind = "number" if is_ratio else "whole number"
            raise UsageError(
                f'"{word}" in the mask strategy "{text}" is no {kind}: field {_FIELDS.index(name)} of a group is '
                f"{name}; the order is {_order()}."
            ) from None
    return Condition(**values)  # type: ignore[arg-type]  # each is of its field's type, by its name


def _order() -> str:
    return ", ".join(_FIELDS)


def mask_strategy(conditions: Iterable[Condition]) -> str:
    """Conditions as Open-Sora's mask strategy; `parse_mask_strategy` gives them back."""
    return ";".join(map(str, conditions))


def apply_conditions(
    z: Tensor,
    references: Sequence[Sequence[Reference]],
    conditions: Sequence[Sequence[Condition]],
    loop: int = 0,
) -> tuple[Tensor, Tensor]:
    """Put the given frames into the noise of a batch.  (B, C, T, H, W) -> the same, and a mask (B, T)  [19]

    references  for each sample its references, (C, R, H, W) each
    conditions  for each sample its conditions; those of other loops are left out
    mask        1: make this frame; 0: keep it; between: change it. float32

    Where conditions meet, the later one wins. A length that runs past both ends alike is cut there.

    Raises:
        UsageError: a condition names a reference or a frame that is not there, or a reference has another size.
    """
    if not len(z) == len(references) == len(conditions):
        raise ValueError(f"{len(z)} samples, references of {len(references)}, conditions of {len(conditions)}.")
    z = z.clone()
    mask = torch.ones(len(z), z.shape[2], device=z.device)
    for sample, (given, wanted) in enumerate(zip(references, conditions, strict=True)):
        for condition in wanted:
            if condition.loop != loop:
                continue
            frames, place = _given_frames(condition, given, z[sample])
            z[sample, :, place] = frames.to(z)
            mask[sample, place] = condition.edit_ratio
    return z, mask


def _given_frames(condition: Condition, references: Sequence[Reference], z: Tensor) -> tuple[Tensor, slice]:
    """The frames that a condition takes, (C, n, H, W), and where in z (C, T, H, W) they go."""
    if condition.reference >= len(references):
        raise UsageError(
            f"Condition {condition} wants reference {condition.reference}, and there are {len(references)} "
            "(the first is reference 0)."
        )
    reference = references[condition.reference]
    if reference.ndim != 4 or (len(reference), *reference.shape[2:]) != (len(z), *z.shape[2:]):
        raise UsageError(
            f"Reference {condition.reference} is {tuple(reference.shape)} as latents and the sample "
            f"{tuple(z.shape)}: all but the frames (the second number) must agree."
        )
    taken = _span(condition, condition.reference_start, reference.shape[1], "its reference")
    place = _span(condition, condition.target_start, z.shape[1], "the sample")
    num_taken, num_placed = taken.stop - taken.start, place.stop - place.start
    if num_taken != num_placed:
        where, num = ("its reference", reference.shape[1]) if num_taken < num_placed else ("the sample", z.shape[1])
        raise UsageError(
            f"Condition {condition} is {condition.num_frames} frames long and runs past the end of {where}, which has "
            f"{num} latent frames: make it shorter, or begin earlier."
        )
    return reference[:, taken], place


def _span(condition: Condition, start: int, num_frames: int, where: str) -> slice:
    """From a start that may be negative, as far as the condition goes or the frames do."""
    first = start + num_frames if start < 0 else start
    if not 0 <= first < num_frames:
        raise UsageError(
            f"Condition {condition} begins at frame {start} of {where}, which has {num_frames} latent frames: "
            f"{-num_frames} to {num_frames - 1} are there."
        )
    return slice(first, min(first + condition.num_frames, num_frames))
