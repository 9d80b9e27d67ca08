"""Did it work, and which checkpoint is to be taken: one of five words, with the rule and the numbers behind it.

The rule, from top to bottom; the first that holds is the verdict:

    not enough evidence    fewer held-out clips or films than FLOOR, samples of fewer prompts and seeds, held-out clips
                           that repeat clips of training; or a random beginning of which only the loss is known: that
                           of any network falls at first, whatever it learns
    worse than base        the held-out loss rose, or samples keep fewer facts of plain prompts or of the run's own
    overfitting            an earlier step's held-out loss is lower, or samples are copies of clips of training
    train longer           nothing changed, or the loss is still falling, or samples stand where the base's stand; from
                           a random beginning also: samples follow their prompts no better than luck, or are told from
                           held-out clips nearly always
    keep                   else

A difference counts when its interval (95 %, by films or by prompts) leaves 0 out and it is larger than LEAST: within
the interval it is noise. Losses are compared as shares of the base model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bricks_core.report.evidence import Evidence, Losses, Rise
from bricks_core.report.intervals import Interval
from bricks_core.report.words import several

Word = Literal["keep", "train longer", "overfitting", "worse than base", "not enough evidence"]


@dataclass(frozen=True)
class Floor:
    """Below it nothing is concluded."""

    clips: int = 8
    films: int = 3
    prompts: int = 4
    samples: int = 16
    """Prompts x seeds; asked only where samples were measured."""


FLOOR = Floor()
LEAST = 0.01
"""Of the base model's loss: a smaller change is none, however sure."""
LEAST_KEPT = 0.1
"""Of the facts of prompts: a smaller loss of ability is none."""
NEAR_BASE = 0.2
"""Of the way from base samples to real clips: samples nearer to the base have not taken on the style."""

ALWAYS = 0.95
"""Of pairs, a sample and a held-out clip, that are told apart: from there on samples of a network that began with
random weights are not yet what the clips are. A tuned base model has a base to be held against instead."""


@dataclass(frozen=True)
class Verdict:
    """The word, the checkpoint to take, why, and what to do."""

    word: Word
    step: int | None
    """The checkpoint to take; None: none of them."""
    reasons: list[str]
    """Sentences, the deciding one first."""
    advice: str = ""
    unknown: list[str] = field(default_factory=list)
    """What was not measured."""

    @property
    def title(self) -> str:
        """As a headline."""
        if self.word == "overfitting":
            return f"Overfitting: take step {self.step:,}"
        return self.word[0].upper() + self.word[1:]


class Lack(NamedTuple):
    """Why nothing can be concluded, and what to do about it."""

    reason: str
    advice: str


def verdict_of(evidence: Evidence, floor: Floor = FLOOR) -> Verdict:
    """The verdict on a training that is finished, or as it is so far."""
    unknown = [name for name, each in evidence.of_samples.items() if each is None]
    lacks, losses = list(_lacks(evidence, floor)), evidence.losses
    if lacks or losses is None or losses.last is None:
        advice = " ".join(dict.fromkeys(each.advice for each in lacks))
        return Verdict("not enough evidence", None, [each.reason for each in lacks], advice, unknown)
    if harm := _harm(evidence, losses, losses.last.by):
        advice = "Take the base model; lower the learning rate, or look at the captions."
        return Verdict("worse than base", None, harm, advice, unknown)
    if by_heart := _by_heart(evidence, losses):
        advice = "Train on more clips, or for fewer steps."
        return Verdict("overfitting", losses.best, by_heart, advice, unknown)
    if early := _early(evidence, losses, losses.last.by):
        advice = "Ask for more steps: training goes on from the last one."
        return Verdict("train longer", losses.best, [early], advice, unknown)
    return Verdict("keep", losses.best, _gains(evidence, losses, losses.last), "", unknown)


def _lacks(evidence: Evidence, floor: Floor) -> Iterator[Lack]:
    losses, repeats = evidence.losses, evidence.repeats
    if repeats:
        who = "A held-out clip repeats one" if len(repeats) == 1 else f"{len(repeats)} held-out clips repeat clips"
        ours, theirs = repeats[0]
        reason = f"{who} of training ({ours} is {theirs}), so the held-out loss says nothing."
        yield Lack(reason, "Put both on one side of the split.")
    if losses is None and evidence.is_measured:
        reason = "How sure the held-out loss is, is not known: an earlier version kept no losses of single clips."
        yield Lack(reason, "Another train.held_out.num_samples measures again, and trains nothing.")
    elif losses is None or losses.last is None:
        reason = "No held-out loss was measured at two steps."
        yield Lack(reason, "Hold videos out: score.held_out_share, with two films or more.")
    elif losses.num_clips < floor.clips or losses.num_films < floor.films:
        there = f"{several(losses.num_clips, 'clip')} from {several(losses.num_films, 'film')}"
        reason = f"The held-out loss is of {there}; {floor.clips} clips from {floor.films} films are the least."
        yield Lack(reason, "Hold more films out: score.held_out_share.")
    were_looked_at = any(each is not None for each in evidence.of_samples.values())
    if were_looked_at and (evidence.num_samples < floor.samples or evidence.num_prompts < floor.prompts):
        there = f"{several(evidence.num_prompts, 'prompt')}, {evidence.num_samples} in all"
        reason = f"Samples are of {there}; {floor.samples} of {floor.prompts} prompts are the least."
        yield Lack(reason, "Ask for more prompts, or more seeds of each.")
    if evidence.base_is_random and evidence.adherence is None:
        reason = "It began from random weights, and only its loss is known: that of any network falls at first."
        yield Lack(reason, "Look at the samples, or begin from a base model: train.init_from.")


def _harm(evidence: Evidence, losses: Losses, last: Interval) -> list[str]:
    found = []
    if last.low > 0 and last.value > LEAST and losses.best == losses.steps[0]:
        found.append(f"The held-out loss rose by {_percent(last)}, and no step is better than the base model.")
    for what, kept in (("plain prompts", evidence.ability), ("the run's prompts", evidence.adherence)):
        if kept is not None and kept.change is not None and kept.change.high < 0 and kept.change.value < -LEAST_KEPT:
            before = _share(kept.base) if kept.base else "more"
            found.append(f"Samples keep fewer facts of {what}: {_share(kept.tuned)}, the base model {before}.")
    return [*found, evidence.weak_null] if found and evidence.weak_null else found


def _by_heart(evidence: Evidence, losses: Losses) -> list[str]:
    found = []
    since, copies, gap = losses.since_best, evidence.copies, losses.gap
    if since is not None and since.by.low > 0 and since.by.value > LEAST:
        found.append(f"Since step {since.since:,} the held-out loss rose by {_percent(since.by)} of the base's.")
    if copies is not None and copies.share.low > copies.expected:
        luck = _whole(copies.expected)
        found.append(f"{copies.num} of {several(copies.of, 'sample')} repeat clips of training; {luck} is luck.")
    if found and gap is not None and gap.low > 0:
        found.append(f"Clips of training gained {_percent(gap)} of the base's loss more than held-out ones.")
    return found


def _early(evidence: Evidence, losses: Losses, last: Interval) -> str:
    """Why it is too early to end; empty: it is not."""
    kept, style, third = evidence.adherence, evidence.style, losses.since_two_thirds
    if last.high >= 0 or last.value > -LEAST:
        return f"The held-out loss is where it was: {_percent(last)}, which is noise."
    if evidence.base_is_random and kept is not None and kept.tuned.low <= kept.chance:
        return f"Samples keep {_share(kept.tuned)} of the facts of their prompts; {_whole(kept.chance)} is luck."
    apart = evidence.told_from_real
    if evidence.base_is_random and apart is not None and apart.value > ALWAYS:
        told = f"samples are told from held-out clips in {_whole(apart.value)} of pairs"
        return f"It began from random weights, and {told}."
    if style is not None and style.low <= 0 and style.value < NEAR_BASE:
        return f"Samples stand where the base model's do: {_plain(style)} of the way to the held-out clips."
    if third is not None and third.by.high < 0 and third.by.value < -LEAST:
        return f"The held-out loss is still falling: by {_percent(third.by)} of the base's since step {third.since:,}."
    return ""


def _gains(evidence: Evidence, losses: Losses, last: Rise) -> list[str]:
    best = next((rise for rise in losses.since_base if rise.step == losses.best), last)
    found = [f"The held-out loss fell by {_percent(best.by)}."]
    if evidence.style is not None:
        found.append(f"Samples stand {_plain(evidence.style)} of the way from the base's to the held-out clips.")
    if (kept := evidence.adherence) is not None:
        found.append(f"They keep {_share(kept.tuned)} of the facts of their prompts; {_whole(kept.chance)} is luck.")
    if evidence.ability is not None:
        found.append(f"Of plain prompts they keep {_share(evidence.ability.tuned)}.")
    return [*found, evidence.weak_null] if evidence.weak_null else found


def _percent(found: Interval) -> str:
    """A change of a loss as its size: 12.3 % (10.1 to 14.6)."""
    value, ends = 100 * abs(found.value), sorted(100 * abs(end) for end in (found.low, found.high))
    if found.low < 0 < found.high or not all(math.isfinite(end) for end in ends):
        return f"{100 * found.value:+.1f} % ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{value:.1f} % ({ends[0]:.1f} to {ends[1]:.1f})"


def _whole(share: float) -> str:
    return f"{100 * share:.0f} %"


def _share(found: Interval) -> str:
    return f"{_whole(found.value)} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _plain(found: Interval) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
