"""Whether the null branch is sound: what a network predicts without a caption, which guidance leads away from.

What it measures: on held-out latents with noise in them, the same noise for all, what is predicted without a caption
    against what is predicted with the clip's own and with another clip's: norms, cosines and losses, by timestep. The
    number that decides is `excess`: the loss without a caption minus the mean of the losses with the right and with a
    wrong caption, as a share of the loss with the right one. And of samples at several scales of guidance how much
    like white noise their latents are.
Source: guidance is arXiv:2207.12598. The bound is ours: without a caption the best prediction is the mean over
    captions (weighted by how likely each is, given the noised latents). Let predictions with captions spread about it
    with variance s². Its loss is then at most s² above that of the right caption, and that of a wrong caption is 2 s²
    above or more: the mean of right and wrong is no lower than what a sound null branch reaches, however much or
    little captions matter. What the null branch is off beyond that adds its square to `excess`.
Unit: `excess` and `worth` are shares of the loss, every stretch of timesteps weighing alike; cosines and norm ratios
    have none; roughness is the share that white noise would have, 0 to 1. Direction: `excess` at 0 or below is sound,
    more is worse; a small `worth` says that captions matter little; roughness is neither: as real clips have it.
Interval: report/intervals.py `interval` over clips grouped by film; of samples, over prompts.
Validated on: tests/stages/evaluate/measures/test_guidance_audit.py: exact predictors of mixtures are sound, whatever
    their captions are worth; with noise for the null features, with a null branch that was never trained (no caption
    was dropped), and with one that says something of its own they are not; a tiny network trained with dropped
    captions against the same one with noise for its null features; latents with noise in them are rougher, by as much.
Needs: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError
from bricks_core.report.audit import GuidanceBin, GuidanceScale
from bricks_core.report.intervals import Groups, Interval, difference, interval

Floats = npt.NDArray[np.floating]

LEAST = 0.02
"""A null branch that is off by a smaller share of the loss is sound, however sure that is."""
ROUGHER = 0.2
"""Samples at guidance 0 are noise where their latents are rougher than at guidance 1 by more than this."""
_REMEDY = "drop captions in training (train.caption_dropout 0.1), for more steps"
NUMBERS = ("norm_ratio", "cosine", "shared", "loss_caption", "loss_other", "loss_null")
"""What `compared` tells of every sample."""
_NORM, _COSINE, _SHARED, _OWN, _OTHER, _NULL = range(len(NUMBERS))


class Predicted(NamedTuple):
    """Predictions for the same noised latents, (B, ...) each."""

    own: Floats
    """With each clip's own caption."""
    other: Floats | None
    """With another clip's; None: there is no other caption."""
    without: Floats
    target: Floats


@dataclass(frozen=True)
class Found:
    """What all predictions of a checkpoint come to."""

    bins: list[GuidanceBin]
    worth: Interval
    excess: Interval


def compared(predicted: Predicted) -> npt.NDArray[np.float64]:
    """NUMBERS of each sample, (B, 6); nan for what needs another caption where there is none."""
    own, without, target = (_flat(each) for each in (predicted.own, predicted.without, predicted.target))
    other = own if predicted.other is None else _flat(predicted.other)
    lengths = [np.linalg.norm(each, axis=1) for each in (own, without)]
    nothing = (lengths[0] == 0) & (lengths[1] == 0)  # a network that has not begun to learn says the same always
    found = np.stack(
        [
            np.where(nothing, 1, lengths[1] / _positive(lengths[0])),
            np.where(nothing, 1, _cosine(own, without)),
            _cosine(own - without, other - without),
            *(((each - target) ** 2).mean(axis=1) for each in (own, other, without)),
        ],
        axis=1,
    )
    if predicted.other is None:
        found[:, [_SHARED, _OTHER]] = np.nan
    return found


def audited(numbers: npt.ArrayLike, timesteps: Sequence[int], films: Groups, num_timesteps: int = 1000) -> Found:
    """What the numbers of N clips at M timesteps, (N, M, 6), come to; the timesteps rise, each stands for its bin.

    A clip without another caption counts with its own in place of it: then the null branch must be as good as that.

    Raises DataError: the arrays do not go together.
    """
    given = np.asarray(numbers, np.float64)
    if given.ndim != 3 or given.shape[1:] != (len(timesteps), len(NUMBERS)) or not len(given):
        raise DataError(f"Numbers of clips at {len(timesteps)} timesteps are (N, {len(timesteps)}, {len(NUMBERS)}),"
                        f" not {given.shape}.")  # fmt: skip
    own, null = given[..., _OWN], given[..., _NULL]
    other = np.where(np.isnan(given[..., _OTHER]), own, given[..., _OTHER])
    level = _positive(own.mean(axis=0))  # what is hard for all clips, at little noise, would hide all else
    edges = [round(num_timesteps * place / len(timesteps)) for place in range(len(timesteps) + 1)]
    bins = [
        GuidanceBin(
            first,
            end,
            interval(cells[:, _NORM], films),
            interval(cells[:, _COSINE], films),
            _known(cells[:, _SHARED], films),
            *(float(losses[:, place].mean()) for losses in (own, other, null)),
        )
        for place, ((first, end), cells) in enumerate(zip(pairwise(edges), np.moveaxis(given, 1, 0), strict=True))
    ]
    worth = ((null - own) / level).mean(axis=1)
    excess = ((null - (own + other) / 2) / level).mean(axis=1)
    return Found(bins, interval(worth, films), interval(excess, films))


def roughness(latents: Floats) -> float:
    """How much like white noise a clip's latents (C, T, H, W) are: 1 is white noise, 0 is flat, and so is one latent.

    The mean squared difference of neighbours in a frame, over twice the variance within frames.
    """
    if latents.ndim != 4 or not latents.size:
        raise DataError(f"A clip's latents are (C, T, H, W), these are {latents.shape}.")
    x = np.asarray(latents, np.float64)
    steps = [np.diff(x, axis=axis) for axis in (2, 3) if x.shape[axis] > 1]
    variance = float(x.var(axis=(2, 3)).mean())
    if not steps or variance <= 0:
        return 0.0
    return min(float(np.mean([(step**2).mean() for step in steps])) / (2 * variance), 1.0)


def scales_of(step: int, guidance: npt.ArrayLike, rough: npt.ArrayLike, prompts: Sequence[int]) -> list[GuidanceScale]:
    """The roughness of a checkpoint's samples, (N,) each, by scale of guidance."""
    at, values, of = np.asarray(guidance, np.float64), np.asarray(rough, np.float64), np.asarray(prompts)
    return [
        GuidanceScale(step, float(scale), interval(values[at == scale], of[at == scale], bounds=(0, 1)))
        for scale in sorted(set(at.tolist()))
    ]


def noise_at_0(guidance: npt.ArrayLike, rough: npt.ArrayLike, prompts: Sequence[int]) -> Interval | None:
    """How much rougher samples at guidance 0 are than at guidance 1, paired by prompt. None: not both were sampled."""
    found = {
        (float(scale), prompt): float(value)
        for scale, value, prompt in zip(np.asarray(guidance), np.asarray(rough), prompts, strict=True)
    }
    both = sorted({prompt for prompt in prompts if (0.0, prompt) in found and (1.0, prompt) in found})
    if not both:
        return None
    return difference([found[0.0, each] for each in both], [found[1.0, each] for each in both], both)


def finding(found: Found | None, rougher: Interval | None = None) -> str:
    """A sentence when the null branch is weak, with the number that decides; empty: it is sound, or nobody knows."""
    if found is not None and found.excess.low > 0 and found.excess.value > LEAST:
        return (
            f"The prediction without a caption is weak: its held-out loss is {_percent(found.excess)} above the mean "
            "of a right and a wrong caption, and a sound one's lies below. Guidance leads away from it, and at "
            f"guidance 0 there is nothing else: {_REMEDY}."
        )
    if rougher is not None and rougher.low > 0 and rougher.value > ROUGHER:
        return (
            "The prediction without a caption is weak: samples at guidance 0 are noise, their latents rougher than "
            f"at guidance 1 by {rougher.value:.2f} ({rougher.low:.2f} to {rougher.high:.2f}), where 1 is white noise: "
            f"{_REMEDY}."
        )
    return ""


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _known(values: npt.NDArray[np.float64], films: Groups) -> Interval | None:
    known = np.isfinite(values)
    return interval(values[known], np.asarray(films)[known]) if known.any() else None


def _flat(values: Floats) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _positive(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(values, 1e-12)


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / _positive(lengths), np.float64)
