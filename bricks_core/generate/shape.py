"""How many frames, how large, how fast: what is asked for, or what the model was trained on, and what it can do."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bricks_core.diffusion.model import Bucket
from bricks_core.errors import UsageError, nearest
from bricks_core.video.buckets import VAE_STRIDE, Resolution, Size, resolution

log = logging.getLogger("bricks")

MIN_SIDE_PX = 16
"""One patch of latents."""


@dataclass(frozen=True)
class Able:
    """What a model can make."""

    trained: Sequence[Bucket]
    """The buckets it was trained on, the largest first; empty when that is not known."""
    usual: Bucket
    """What to make then."""
    side_px: int = VAE_STRIDE
    """Sides are multiples of this, but for sizes it was trained on: the codec leaves out what is beyond."""
    time_stride: int = 1
    """Frames are 1 + a multiple of this."""


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


def shape_of(asked: Asked, able: Able) -> Shape:
    """Everything that was asked for; the rest from the bucket the model was trained on that is nearest to it.

    A shape that the model was not trained on is sampled all the same, with a line that says so.

    Raises:
        UsageError, SpecError: the model cannot make it; it says what it can.
    """
    # The largest bucket comes first. Of those with the number of frames that is asked for, if there are any.
    fitting = [each for each in able.trained if asked.num_frames in (None, each.num_frames)]
    usual = [*fitting, *able.trained, able.usual][0]
    num_frames = asked.num_frames or usual.num_frames
    if (num_frames - 1) % able.time_stride:
        fewer = num_frames - (num_frames - 1) % able.time_stride
        raise UsageError(
            f"{num_frames} frames cannot be made: the autoencoder takes the first frame and then groups of "
            f"{able.time_stride}. The nearest are {fewer} and {fewer + able.time_stride}."
        )
    size = _size(asked, able) or Size(f"{usual.height_px}x{usual.width_px}", usual.height_px, usual.width_px)
    rates = [each.fps for each in (usual, *able.trained, able.usual) if each.fps]
    known = {(each.num_frames, each.height_px, each.width_px) for each in able.trained}
    if known and (num_frames, size.height_px, size.width_px) not in known:
        log.warning(
            "The model was not trained on %d frame%s of %dx%d, so expect less of them. Its buckets: %s.",
            num_frames,
            "" if num_frames == 1 else "s",
            size.height_px,
            size.width_px,
            "; ".join(map(str, able.trained)),
        )
    return Shape(num_frames, size, asked.fps or rates[0])


def _size(asked: Asked, able: Able) -> Size | None:
    if asked.size is not None:
        if asked.resolution is not None or asked.aspect is not None:
            raise UsageError("--size says height and width itself: leave --resolution and --aspect out, or --size.")
        return _explicit(asked.size, able)
    if asked.resolution is not None:
        found = resolution(asked.resolution)
        if len(found.sizes) == 1:
            return _explicit(asked.resolution, able)
        size = _of_aspect(found, asked.aspect or "0.56")
        if able.side_px > VAE_STRIDE:
            _check_sides(size.height_px, size.width_px, able)
        return size
    if asked.aspect is not None:
        raise UsageError("--aspect goes with --resolution, such as --resolution 360p --aspect 1:1.")
    return None


def _explicit(text: str, able: Able) -> Size:
    match = re.fullmatch(r"([1-9]\d{0,4})[xX×]([1-9]\d{0,4})", text.strip())
    if not match:
        raise UsageError(f'"{text}" is no size: write height x width in pixels, such as 240x424.')
    height, width = int(match[1]), int(match[2])
    if min(height, width) < MIN_SIDE_PX:
        raise UsageError(f"A size of {height}x{width} is too small: both sides need at least {MIN_SIDE_PX} pixels.")
    if all((each.height_px, each.width_px) != (height, width) for each in (*able.trained, able.usual)):
        _check_sides(height, width, able)
    return Size(f"{height}x{width}", height, width)


def _check_sides(height: int, width: int, able: Able) -> None:
    step = able.side_px
    if height % step or width % step:
        smaller = "x".join(str(max(MIN_SIDE_PX, side // step * step)) for side in (height, width))
        larger = "x".join(str(-(-side // step) * step) for side in (height, width))
        raise UsageError(
            f"A size of {height}x{width} cannot be made: the model works in squares of {step} pixels. The nearest "
            f"sizes are {smaller} and {larger}."
        )


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
