"""The numbers that a verdict rests on, each with its interval: what is known of a training, and how surely.

Losses are of the weights that count, paired clip by clip: the same clip, timesteps and noise at every step, so that a
difference comes from the weights alone. Clips of one film are no independent witnesses: films are what is drawn again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from bricks_core.report.intervals import Interval, difference, interval, joined
from bricks_core.report.measures import KeptFacts, Measures
from bricks_core.spec.score import Score
from bricks_core.spec.train import ClipLossRow


@dataclass(frozen=True)
class Rise:
    """A loss minus another one, as a share of the base model's; below 0 it fell. Negative is better."""

    step: int
    since: int
    by: Interval


@dataclass(frozen=True)
class Losses:
    """The held-out loss of a training, as far as single clips were measured."""

    steps: list[int]
    """Measured; the first is the base model."""
    base: float
    """Its loss, the mean over clips."""
    num_clips: int
    num_films: int
    since_base: list[Rise]
    """Of every step after the first, in order."""
    since_best: Rise | None
    """The last step against the best one before it; None: the last one is the best."""
    since_two_thirds: Rise | None
    """The last step against the one nearest to two thirds of the way: is it still falling?"""
    gap: Interval | None
    """Held-out minus training clips at the last step, less the same at the base model, as a share of the base's loss:
    what was learnt by heart. None: training clips were not measured."""

    @property
    def last(self) -> Rise | None:
        return self.since_base[-1] if self.since_base else None

    @property
    def best(self) -> int:
        """The step with the least mean loss."""
        return self.since_best.since if self.since_best else self.steps[-1]


@dataclass(frozen=True)
class Kept:
    """A share of facts that samples keep: of the base model, of the tuned one, of samples for other prompts."""

    base: Interval | None
    tuned: Interval
    change: Interval | None
    """Tuned minus base, paired."""
    chance: float
    """What samples for other prompts keep of them by luck."""


@dataclass(frozen=True)
class Copies:
    """Samples that are training clips, against held-out clips that are: those are no copies, so they tell the luck."""

    num: int
    of: int
    share: Interval
    expected: float
    """The share that the threshold was set for."""


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict looks at. What nobody measured is None, and is told as that."""

    base_is_random: bool
    losses: Losses | None
    num_prompts: int
    num_samples: int
    """Prompts x seeds, of each model."""
    adherence: Kept | None = None
    """Of prompts in the new style."""
    ability: Kept | None = None
    """Of plain prompts: what the base model could do."""
    style: Interval | None = None
    """Where tuned samples stand, 0 at the base's, 1 among the held-out clips."""
    told_from_real: Interval | None = None
    """How well a classifier tells tuned samples from held-out clips: 0.5 not at all, 1 always."""
    copies: Copies | None = None
    repeats: list[tuple[str, str]] = field(default_factory=list)
    """Held-out clips, and the clips of training that they repeat: then the held-out loss says nothing."""
    is_measured: bool = False
    """Whether the held-out loss was measured at two steps, be it by an earlier version that kept no single clips."""
    weak_null: str = ""
    """What the audit of guidance found wrong with the prediction without a caption; empty: nothing."""

    @property
    def of_samples(self) -> dict[str, object]:
        """What was measured on samples, by what it is called; None where it was not."""
        return {
            "facts of prompts": self.adherence,
            "facts of plain prompts": self.ability,
            "style": self.style,
            "copies of training clips": self.copies,
        }


def with_measures(evidence: Evidence, measures: Measures) -> Evidence:
    """The same, with what was measured on samples of the checkpoint that would be taken.

    Copies are counted by what samples show: how things move may well be the same in two films.
    """
    tuned, found = measures.tuned, measures.memorisation
    content = next((each for each in found.parts if each.part == "content"), None) if found else None
    num_prompts = sum(num for name, num in measures.num_prompts.items() if name != "plain")
    repeats = dict(found.repeats if found else []) | dict(evidence.repeats)
    return replace(
        evidence,
        num_prompts=num_prompts,
        num_samples=num_prompts * measures.num_seeds,
        adherence=_kept(tuned.kept("style")),
        ability=_kept(tuned.kept("plain")),
        style=tuned.style.position if tuned.style else None,
        told_from_real=tuned.style.tuned_from_real if tuned.style else None,
        copies=Copies(content.num, content.of, content.share, content.expected) if content else None,
        repeats=sorted(repeats.items()),
        weak_null=measures.audit.finding if measures.audit else "",
    )


def _kept(found: KeptFacts | None) -> Kept | None:
    """None also where there is no chance to compare with: of a single prompt."""
    if found is None or found.chance is None:
        return None
    return Kept(found.base, found.tuned, found.change, found.chance.value)


REPEAT_BITS = 4.0
"""Mean differing bits, of 64, up to which two clips are the same pictures: of a shot encoded again 0 to 2, of another
one on the same set 16 and more. Brighter and cropped ones differ by 7, as may two simple scenes that are none."""
_ROWS_AT_ONCE = 256


def repeats_of(rows: Iterable[Score]) -> list[tuple[str, str]]:
    """From the table scores: kept held-out clips that repeat kept clips of training, each with one of these."""
    sides: dict[str, list[Score]] = {"held_out": [], "train": []}
    for row in rows:
        if row.state == "kept" and row.kind == "video":
            sides[row.split].append(row)
    ours, theirs = sides["held_out"], sides["train"]
    if not ours or not theirs:
        return []
    a, b = (
        np.array([[int(each, 16) for each in row.perceptual_hash] for row in side], np.uint64)
        for side in (ours, theirs)
    )
    found = []
    for first in range(0, len(a), _ROWS_AT_ONCE):
        bits = np.bitwise_count(a[first : first + _ROWS_AT_ONCE, None] ^ b[None]).mean(axis=2)
        nearest = bits.argmin(axis=1)
        for place in np.flatnonzero(bits.min(axis=1) <= REPEAT_BITS):
            found.append((ours[first + int(place)].id, theirs[int(nearest[place])].id))
    return found


def losses_of(rows: Iterable[ClipLossRow], weights: str, steps: Collection[int] | None = None) -> Losses | None:
    """From the table clip_losses. `steps`: only these, such as those with a checkpoint. None: nothing to tell from.

    Clips are compared that were measured at every step; several buckets of a clip are several measurements of it.
    """
    held_out: dict[int, dict[tuple[str, str], ClipLossRow]] = defaultdict(dict)
    learnt: dict[int, dict[tuple[str, str], ClipLossRow]] = defaultdict(dict)
    for row in rows:
        if row.weights == weights and (steps is None or row.step in steps):
            (held_out if row.split == "held_out" else learnt)[row.step][row.bucket, row.clip_id] = row
    measured = sorted(held_out)
    if not measured or measured[0] != 0:  # by an earlier version the base model was measured without its single clips
        return None
    shared = sorted(set.intersection(*(set(held_out[step]) for step in measured)))
    if not shared:
        return None
    films = [held_out[measured[0]][each].video_id for each in shared]
    table = np.array([[held_out[step][each].loss for each in shared] for step in measured])
    base = float(table[0].mean())
    means = table.mean(axis=1)

    def rise(step: int, since: int) -> Rise:
        a, b = table[measured.index(step)] / base, table[measured.index(since)] / base
        return Rise(step, since, difference(a, b, films))

    last, best = measured[-1], measured[int(means.argmin())]
    third = min(measured, key=lambda step: abs(step - 2 * last / 3))
    return Losses(
        steps=measured,
        base=base,
        num_clips=len({clip for _, clip in shared}),
        num_films=len(set(films)),
        since_base=[rise(step, measured[0]) for step in measured[1:]],
        since_best=rise(last, best) if best != last else None,
        since_two_thirds=rise(last, third) if measured[0] < third < last else None,
        gap=_gap(held_out, learnt, measured[0], last, base),
    )


def _gap(
    held_out: dict[int, dict[tuple[str, str], ClipLossRow]],
    learnt: dict[int, dict[tuple[str, str], ClipLossRow]],
    first: int,
    last: int,
    base: float,
) -> Interval | None:
    """How much more the training clips gained than the held-out ones, from the first step to the last."""

    def falls(side: dict[int, dict[tuple[str, str], ClipLossRow]]) -> tuple[list[float], list[str]]:
        both = sorted(set(side[first]) & set(side[last]))
        return (
            [(side[first][each].loss - side[last][each].loss) / base for each in both],
            [side[last][each].video_id for each in both],
        )

    if first == last or not learnt.get(first) or not learnt.get(last):
        return None
    (ours, our_films), (theirs, their_films) = falls(learnt), falls(held_out)
    if not ours or not theirs:
        return None
    a, b = interval(ours, our_films), interval(theirs, their_films)
    return joined(a.value - b.value, a, -b)
