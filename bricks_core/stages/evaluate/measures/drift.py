"""How far samples drift from their first pictures as they go on, and how that grows with their length.

What it measures: on samples of the same prompts and several lengths (16, 32, 64, 128 frames, say) how far the pictures
    are from the sample's own first ones: `departure` in colour, brightness, contrast and saturation together, and
    `sharpness`, by the frames gone by; `jump`, the largest part of it that came at once; and what length costs.
Source: as drift in motion.py: medians over 6 x 10 cells of each cell's distance from its own first pictures, so that a
    thing that passes through some cells does not count. Some pictures at the beginning and at the end are taken
    together, so that a flicker does not count either. Where the camera moves everything departs: real clips of the same
    lengths, given in the samples' place, say how far is usual.
Unit: CIELAB units (2.3 are just seen); sharpness in percent of the strength of edges. Direction: less is better, down
    to what real clips do; sharpness nearer to 0, below 0 it blurs.
Interval: report/intervals.py `interval` over prompts.
Validated on: tests/stages/evaluate/measures/test_drift.py: still and moving clips do not drift, however long; a colour,
    a brightness and a blur that change slowly are found again at their strength, with their sign, and grow with the
    length; a jump is told from a drift.
Needs: nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError
from bricks_core.report.intervals import Interval, interval
from bricks_core.report.measures import Course
from bricks_core.stages.evaluate.measures.motion import Pixels, measure, track

Floats = npt.NDArray[np.float64]

TOGETHER = 4
"""Pictures that are taken as one, at most: a third of the clip."""
_SHARPNESS = 5  # of `track`; what is before it is the departure


@dataclass(frozen=True)
class Drift:
    """Samples of the same prompts in several lengths."""

    courses: list[Course]
    """The shortest first."""
    per_doubling: Interval | None
    """What each doubling of the length adds to the departure at the end. Above 0: the longer, the farther. None: there
    is one length."""
    from_length: Interval | None
    """How much farther the longest samples have departed than the shortest when the shortest end: what length itself
    costs. None as before."""


def drift(clips: Sequence[Pixels], prompts: Sequence[int], fps: float, seed: int = 0) -> Drift:
    """Of clips (T, H, W, 3) RGB whose lengths T differ, each of its prompt.

    Raises DataError: there is no clip, one has fewer than three frames or has no prompt; else as `motion.measure`.
    """
    if len(clips) != len(prompts) or not clips:
        raise DataError(f"{len(clips)} clips have {len(prompts)} prompts: name one for each.")
    if short := [len(clip) for clip in clips if len(clip) < 3]:
        raise DataError(f"A clip of {short[0]} frames has no course: three are the least.")
    by_length: dict[int, list[tuple[int, float, Floats]]] = defaultdict(list)
    for clip, prompt in zip(clips, prompts, strict=True):
        by_length[len(clip)].append((prompt, measure(clip, fps).drift, track(clip)))
    courses = []
    for length in sorted(by_length):
        of, speeds, tracks = zip(*by_length[length], strict=True)

        def told(values: Sequence[float], of: Sequence[int] = of) -> Interval:
            return interval(values, of, seed)

        courses.append(
            Course(
                num_frames=length,
                num_samples=len(tracks),
                departure={
                    end: told([_departure(each, end) for each in tracks]) for end in sorted(by_length) if end <= length
                },
                sharpness=told([100 * math.expm1(_change(each, length)[_SHARPNESS] / 100) for each in tracks]),
                jump=told([_jump(each) for each in tracks]),
                speed=told(speeds),
            )
        )
    return Drift(courses, *_with_length(by_length, seed))


def _with_length(
    by_length: dict[int, list[tuple[int, float, Floats]]], seed: int
) -> tuple[Interval | None, Interval | None]:
    """`per_doubling` and `from_length`: a number of each prompt that has samples of several lengths."""
    shortest = min(by_length)
    ends: dict[int, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for length, some in by_length.items():
        for prompt, _, each in some:
            ends[prompt][length].append((_departure(each, length), _departure(each, shortest)))
    slopes, costs = [], []
    for of_prompt in ends.values():
        if len(of_prompt) > 1:
            lengths = sorted(of_prompt)
            at_end, at_shortest = np.array([np.mean(of_prompt[length], axis=0) for length in lengths]).T
            way = np.log2(lengths) - np.mean(np.log2(lengths))
            slopes.append(float(way @ at_end / (way @ way)))
            if shortest in of_prompt:
                costs.append(float(at_shortest[-1] - at_shortest[0]))
    return interval(slopes, seed=seed) if slopes else None, interval(costs, seed=seed) if costs else None


def _few(num_frames: int) -> int:
    return max(1, min(TOGETHER, num_frames // 3))


def _change(each: Floats, end: int) -> Floats:
    """The last pictures before `end` less the first ones.  (T, 6) -> (6,)"""
    few = _few(end)
    return np.asarray(each[end - few : end].mean(axis=0) - each[:few].mean(axis=0), np.float64)


def _departure(each: Floats, end: int) -> float:
    return math.hypot(*_change(each, end)[:_SHARPNESS])


def _jump(each: Floats) -> float:
    """The largest distance of the pictures just after a moment from those just before it."""
    few = _few(len(each))
    sums = np.concatenate([np.zeros((1, _SHARPNESS)), np.cumsum(each[:, :_SHARPNESS], axis=0)])
    means = (sums[few:] - sums[:-few]) / few
    return float(np.hypot.reduce(means[few:] - means[:-few], axis=1).max())
