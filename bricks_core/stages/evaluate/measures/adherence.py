"""How much of what its prompt says a sample shows.

What it measures: the share of a prompt's claims (judge/facts.py: ground, background, light, colours, direction, count,
    camera) that a judge finds kept; and next to it chance, the share of the same claims that samples of other prompts
    of the set keep. A figure without its chance says nothing: half of all scenes have something red in them.
Source: questions made of the prompt, as TIFA (arXiv:2303.11897) and DSG (arXiv:2310.18235) ask them, answered by
    measuring, as GenEval (arXiv:2310.11513) does.
Unit: share, 0 to 1. Direction: more is better, up to the ceiling that real clips of the prompts reach.
Interval: bootstrap over prompts, each with its seeds; of the gain over chance, paired by prompt.
Validated on: tests/judge/test_kept.py (real clips of generated films keep their claims, those of other scenes do so at
    chance, altered prompts lose what was altered and nothing else) and
    tests/stages/evaluate/measures/test_adherence.py.
Needs: nothing, with the judge that measures; another judge (kept.py: Judge) needs what it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bricks_core.errors import DataError
from bricks_core.judge.facts import KINDS, Claim
from bricks_core.judge.kept import Verdict, verdicts
from bricks_core.judge.measured import Scene
from bricks_core.report.intervals import Interval, difference, interval

Floats = npt.NDArray[np.float64]
ALL = "all"
"""The share over the claims of all kinds."""


@dataclass(frozen=True)
class Adherence:
    """Of one kind of claim. `num_samples` have a claim of that kind that could be told."""

    kept: Interval
    num_samples: int
    chance: Interval | None = None
    """What samples of other prompts keep of the same claims; None where the set has only one prompt, or no chance was
    given."""
    gain: Interval | None = None
    """kept - chance."""

    @property
    def is_above_chance(self) -> bool:
        return self.gain is not None and self.gain.low > 0


def shares_kept(judged: Sequence[Sequence[Verdict]]) -> dict[str, Floats]:
    """Of every kind, and of ALL: (N,) the share of its claims that each of N samples keeps; NaN where none is told."""
    return {kind: np.array([_share(each, kind) for each in judged], dtype=np.float64) for kind in (*KINDS, ALL)}


def chance(claims: Sequence[Sequence[Claim]], scenes: Sequence[Scene]) -> dict[str, Floats]:
    """Of every kind, and of ALL: (N,) the share of a sample's claims that samples of other prompts keep on average.

    `claims` and `scenes` are of N samples. Prompts that claim the same are the same prompt. NaN: there is no other.

    Raises DataError: there are not as many of one as of the other.
    """
    if len(claims) != len(scenes):
        raise DataError(
            f"{len(scenes)} samples have the claims of {len(claims)} prompts: give each sample its prompt's."
        )
    prompts = [tuple(each) for each in claims]
    found = {}
    for prompt in dict.fromkeys(prompts):
        others = [verdicts(prompt, scene) for scene, of in zip(scenes, prompts, strict=True) if of != prompt]
        found[prompt] = {kind: _mean(values) for kind, values in shares_kept(others).items()}
    return {kind: np.array([found[prompt][kind] for prompt in prompts], dtype=np.float64) for kind in (*KINDS, ALL)}


def adherence(
    kept: Mapping[str, Floats], prompts: Sequence[str], by_chance: Mapping[str, Floats] | None = None, seed: int = 0
) -> dict[str, Adherence]:
    """The figure of every kind that the samples have claims of. `prompts`: (N,) the group of each sample."""
    groups = np.asarray(prompts)
    found = {}
    for kind, values in kept.items():
        told = np.isfinite(values)
        if not told.any():
            continue
        of_kind = interval(values[told], groups[told], seed, bounds=(0, 1))
        found[kind] = Adherence(of_kind, int(told.sum()))
        if by_chance is not None and np.isfinite(by_chance[kind][told]).all():
            base = by_chance[kind][told]
            found[kind] = Adherence(
                of_kind,
                int(told.sum()),
                interval(base, groups[told], seed, bounds=(0, 1)),
                difference(values[told], base, groups[told], seed),
            )
    return found


def change(
    tuned: Mapping[str, Floats], base: Mapping[str, Floats], prompts: Sequence[str], seed: int = 0
) -> dict[str, Interval]:
    """tuned - base of every kind, of samples of the same prompts and seeds in the same order: (N,) each.

    Of the pairs in which both could be told: what one model is not held to, the other is not either.
    """
    groups = np.asarray(prompts)
    found = {}
    for kind in tuned:
        told = np.isfinite(tuned[kind]) & np.isfinite(base[kind])
        if told.any():
            found[kind] = difference(tuned[kind][told], base[kind][told], groups[told], seed)
    return found


def _share(judged: Sequence[Verdict], kind: str) -> float:
    told = [each.kept for each in judged if each.kept is not None and kind in (ALL, each.claim.kind)]
    return sum(told) / len(told) if told else float("nan")


def _mean(values: Floats) -> float:
    told = values[np.isfinite(values)]
    return float(told.mean()) if told.size else float("nan")
