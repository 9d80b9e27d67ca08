"""How many frames, how large, how fast: what is asked for, or what the model was trained on, and what it can do."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bricks_core.errors import UsageError, nearest
from bricks_core.generate.model import Trained
from bricks_core.video.buckets import VAE_STRIDE, Resolution, Size, resolution

log = logging.getLogger("bricks")

DEFAULT = Trained(16, 240, 426, 8.0)
"""Where nothing is known of a model's training: the size of Open-Sora 1.1's own samples, at their effective rate."""
MIN_SIDE_PX = 2 * VAE_STRIDE
"""One patch of latents."""


@dataclass(frozen=True)
class Shape:
    """What is to be sampled."""

    num_frames: int
    """Of one clip; more come of several loops."""
    size: Size
    fps: float


@dataclass(frozen=True)
class Asked:
    """What was said of it; None where nothing was."""

    num_frames: int | None = None
    size: str | None = None
    """HxW in pixels."""
    resolution: str | None = None
    aspect: str | None = None
    fps: float | None = None


def shape_of(asked: Asked, trained: Sequence[Trained]) -> Shape:
    """Everything that was asked for; the rest from the bucket the model was trained on that is nearest to it.

    A shape that the model was not trained on is sampled all the same, with a line that says so.

    Raises:
        UsageError, SpecError: the model cannot make it; it says what it can.
    """
    num_frames = asked.num_frames
    # The largest bucket comes first. Of those with the number of frames that is asked for, if there are any.
    fitting = [each for each in trained if num_frames in (None, each.num_frames)] or list(trained) or [DEFAULT]
    usual = fitting[0]
    size = _size(asked, trained) or Size(f"{usual.height_px}x{usual.width_px}", usual.height_px, usual.width_px)
    rates = [each.fps for each in (usual, *trained) if each.fps]
    shape = Shape(num_frames or usual.num_frames, size, asked.fps or (rates[0] if rates else DEFAULT.fps))
    known = {(each.num_frames, each.height_px, each.width_px) for each in trained}
    if trained and (shape.num_frames, size.height_px, size.width_px) not in known:
        log.warning(
            "The model was not trained on %d frame%s of %dx%d, so expect less of them. Its buckets: %s.",
            shape.num_frames,
            "" if shape.num_frames == 1 else "s",
            size.height_px,
            size.width_px,
            "; ".join(map(str, trained)),
        )
    return shape


def _size(asked: Asked, trained: Sequence[Trained]) -> Size | None:
    if asked.size is not None:
        if asked.resolution is not None or asked.aspect is not None:
            raise UsageError("--size says height and width itself: leave --resolution and --aspect out, or --size.")
        return _explicit(asked.size, trained)
    if asked.resolution is not None:
        found = resolution(asked.resolution)
        if len(found.sizes) == 1:
            return _explicit(asked.resolution, trained)
        return _of_aspect(found, asked.aspect or "0.56")
    if asked.aspect is not None:
        raise UsageError("--aspect goes with --resolution, such as --resolution 360p --aspect 1:1.")
    return None


def _explicit(text: str, trained: Sequence[Trained]) -> Size:
    match = re.fullmatch(r"([1-9]\d{0,4})[xX×]([1-9]\d{0,4})", text.strip())
    if not match:
        raise UsageError(f'"{text}" is no size: write height x width in pixels, such as --size 240x424.')
    height, width = int(match[1]), int(match[2])
    if min(height, width) < MIN_SIDE_PX:
        raise UsageError(
            f"--size {height}x{width} is too small: both sides need at least {MIN_SIDE_PX} pixels."
        )
    known = any((each.height_px, each.width_px) == (height, width) for each in (*trained, DEFAULT))
    if not known and (height % VAE_STRIDE or width % VAE_STRIDE):
        down, up = ([_to_stride(side, way) for side in (height, width)] for way in (0, VAE_STRIDE - 1))
        raise UsageError(
            f"--size {height}x{width} cannot be made: the autoencoder works in squares of {VAE_STRIDE} pixels. The "
            f"nearest sizes are {down[0]}x{down[1]} and {up[0]}x{up[1]}."
        )
    return Size(f"{height}x{width}", height, width)


def _to_stride(side: int, more: int) -> int:
    return max(MIN_SIDE_PX, (side + more) // VAE_STRIDE * VAE_STRIDE)


def _of_aspect(found: Resolution, aspect: str) -> Size:
    """The size of a class by its key (height / width), or by width:height."""
    by_key = {size.aspect: size for size in found.sizes}
    if aspect in by_key:
        return by_key[aspect]
    if match := re.fullmatch(r"([1-9]\d{0,4}):([1-9]\d{0,4})", aspect):
        return found.size_for(int(match[2]), int(match[1]))
    raise UsageError(
        f'There is no aspect "{aspect}"{nearest(aspect, by_key)}: write width:height, such as 16:9, or one of '
        f"{found.name}'s ratios of height to width: {' '.join(by_key)}."
    )
