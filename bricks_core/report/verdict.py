"""What a reader should take away: whether it learnt, by the only number that can tell."""

from __future__ import annotations

from dataclasses import dataclass

from bricks_core.report.facts import Change, Facts
from bricks_core.report.words import WEIGHTS, clips_and_images, loss, number, several

FEW_CLIPS = 8
"""With fewer held-out clips the page warns against trusting the verdict."""


@dataclass(frozen=True)
class Verdict:
    """What a reader should take away, in a line and a sentence."""

    title: str
    text: str


def verdict(facts: Facts) -> Verdict:
    """Whether it learnt, by the only number that can tell; and when there is none, that there is none."""
    change, training = facts.change, facts.training
    done = f"{number(training.num_steps)} steps"
    if not training.is_finished:
        done = f"{number(training.num_steps)} of {number(training.of_steps)} steps so far"
    made = f"A text-to-video model was trained for {done} on {clips_and_images(facts.dataset)}"
    asked = f"then asked {several(len(facts.spec.prompts), 'prompt')} with the same noise at every checkpoint"
    if change is None and facts.held_out.curves:
        return Verdict(
            f"Trained for {done}; the held‑out loss has been measured only once",
            f"{made}, {asked}. Whether it got better is known when it is measured again: look at the panels.",
        )
    if change is None:
        return Verdict(
            f"Trained for {done}; nothing was held out to judge it by",
            f"{made}, {asked}. No videos were kept apart, so no number says whether it got better: look at the panels.",
        )
    words = f"from {loss(change.before)} to {loss(change.after)} with {WEIGHTS[change.weights]} weights"
    for other in facts.held_out.changes:
        if not other.bucket and other.after < change.after:
            words += f", to {loss(other.after)} with {WEIGHTS[other.weights]} ones"
    num_clips = max(each.num_clips for each in facts.held_out.changes)
    few = f" (measured on {several(num_clips, 'clip')}: a hint, no more)" if num_clips < FEW_CLIPS else ""
    so_far = "" if training.is_finished else "So far: "
    title = f"{so_far}{_headline(change)}"
    return Verdict(title, f"{made}, {asked}. On videos it never saw its loss went {words}{few}.")


def _headline(change: Change) -> str:
    percent = change.improvement_percent
    if percent >= 5:
        return f"It learnt: the held‑out loss fell by {percent:.0f} %"
    if percent >= 1:
        return f"It learnt a little: the held‑out loss fell by {percent:.1f} %"
    if percent > -1:
        return "It hardly changed: the held‑out loss stayed where it was"
    return f"It got worse: the held‑out loss rose by {-percent:.1f} %"
