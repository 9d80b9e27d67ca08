"""What was measured on samples, as the report tells it: figures with their intervals, and what each of them is.

The figures are made in bricks_core/stages/evaluate/measured.py; here are only their shapes, so that who reads a report
needs neither a decoder nor a network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bricks_core.report.audit import GuidanceAudit
from bricks_core.report.intervals import Interval
from bricks_core.spec.evaluate import PromptSet

ALL = "all"
"""The share over the claims of all kinds."""


@dataclass(frozen=True)
class About:
    """What a measure is."""

    what: str
    source: str
    unit: str
    direction: str
    interval: str
    needs: str = "nothing"


ABOUT: dict[str, About] = {
    "adherence": About(
        "the share of what a prompt says (ground, background, light, colours, direction, count, camera) that its "
        "samples show; chance is what samples of the set's other prompts show of it",
        "questions made of the prompt (TIFA, arXiv:2303.11897), answered by measuring (GenEval, arXiv:2310.11513)",
        "share, 0 to 1",
        "more is better, up to what real clips reach; only what is above chance counts",
        "bootstrap over prompts, each with its seeds",
    ),
    "style": About(
        "where tuned samples stand between samples of the base model (0) and held-out clips (1: as near as one of the "
        "films is to the others); a rank among these, no grade",
        "unbiased MMD with a cubic kernel (KID, arXiv:1801.01401) of pairs of different films and prompts",
        "steps from base to real",
        "up to 1 more is better",
        "bootstrap over prompts and over films, their squares added",
        "nothing by hand; otherwise the encoder that evaluate.style_features names",
    ),
    "told apart": About(
        "how well a simple classifier tells tuned samples from samples of the base model, and from held-out clips",
        "area under the curve of a linear discriminant that has seen none of the prompt or film in question",
        "share of pairs in order: 0.5 is not at all, 1 always",
        "from the base more, from real clips less",
        "bootstrap over prompts and films",
        "as style",
    ),
    "motion": About(
        "how samples move: how much, how evenly, on ones or twos, whether they flicker and drift",
        "optical flow (arXiv:1603.03590); each number is held against that of held-out clips, in their own spread",
        "each its own",
        "as held-out clips do",
        "bootstrap over prompts, each with its seeds",
    ),
    "drift": About(
        "how far samples depart from their own first pictures, by their length: colour, brightness, contrast and "
        "saturation together",
        "medians over cells of the distance from the first pictures",
        "CIELAB units; 2.3 are just seen",
        "less is better, down to what real clips do",
        "bootstrap over prompts",
    ),
    "copies": About(
        "samples that repeat a training clip, in what they show or in how it moves, mirrored ones too",
        "patches laid on each other (Di Zenzo's tensor, normalised cross-correlation), displacements over time",
        "share of samples",
        "less is better; the expected share is what held-out clips reach by luck",
        "bootstrap over prompts, each with its seeds",
    ),
}


@dataclass(frozen=True)
class KeptFacts:
    """Of a set of prompts and a kind of claim: which share is kept."""

    prompt_set: PromptSet
    kind: str
    """What is claimed, or ALL."""
    num_samples: int
    """Of the tuned model, with a claim of that kind that could be told."""
    tuned: Interval
    base: Interval | None
    chance: Interval | None
    """Of tuned samples of the set's other prompts; None: there is none."""
    gain: Interval | None
    """tuned - chance."""
    change: Interval | None
    """tuned - base, paired."""


@dataclass(frozen=True)
class Style:
    """Distances between sets of clips, and where the tuned samples stand."""

    features: str
    base_to_real: Interval
    tuned_to_real: Interval
    real_to_real: Interval
    position: Interval | None
    """None: the base is no farther from the real films than these are from each other."""
    tuned_from_base: Interval | None
    """How well they are told apart."""
    tuned_from_real: Interval | None
    num_clips: int
    """Held-out ones."""
    num_films: int


@dataclass(frozen=True)
class MotionNumber:
    """One number of how clips move."""

    name: str
    what: str
    unit: str
    direction: str
    tuned: Interval | None
    base: Interval | None
    real: Interval | None
    nearer: Interval | None
    """How much nearer to the held-out clips tuned samples are than those of the base, in the spread of these clips.
    Above 0 they are nearer."""


@dataclass(frozen=True)
class Model:
    """Of one checkpoint's samples."""

    name: str
    of: str
    """As evaluate.compare names it; empty: one of this run's."""
    step: int
    weights: str
    num_samples: int
    adherence: list[KeptFacts]
    style: Style | None
    motion: list[MotionNumber]

    def kept(self, prompt_set: PromptSet, kind: str = ALL) -> KeptFacts | None:
        """Of that set and kind, where it was measured."""
        return next((each for each in self.adherence if (each.prompt_set, each.kind) == (prompt_set, kind)), None)


@dataclass(frozen=True)
class Course:
    """Samples of one length, and how far they depart from their first pictures, in CIELAB units."""

    num_frames: int
    num_samples: int
    departure: dict[int, Interval]
    """By the number of frames gone by: each of the lengths, up to this one."""
    sharpness: Interval
    """At the end, in percent of the strength of edges; below 0 it blurs."""
    jump: Interval
    """What came at once: nearly the departure where something changes at once, a small part of it where it drifts."""
    speed: Interval
    """Per second."""


@dataclass(frozen=True)
class Drift:
    """One model's samples of the same prompts in several lengths."""

    step: int
    courses: list[Course]
    """The shortest first."""
    per_doubling: Interval | None
    """What each doubling of the length adds to the departure at the end. Above 0: the longer, the farther."""
    from_length: Interval | None
    """How much farther the longest samples have departed than the shortest when the shortest end."""


@dataclass(frozen=True)
class Copied:
    """Samples that are copies in one way."""

    part: Literal["content", "motion"]
    num: int
    of: int
    share: Interval
    expected: float
    """The share that the threshold was set for."""
    threshold: float
    num_held_out: int
    """Held-out clips that made the threshold."""


@dataclass(frozen=True)
class CopiedPair:
    """A sample that is called a copy, next to its training clip; both pictures are four frames."""

    part: Literal["content", "motion"]
    sample: str
    """The row's id."""
    prompt: str
    seed_index: int
    clip: str
    score: float
    mirrored: bool
    sample_picture: str
    clip_picture: str


@dataclass(frozen=True)
class Memorisation:
    """Which of the tuned samples repeat clips of training."""

    parts: list[Copied]
    num_training: int
    """Clips that were looked at, of all there are."""
    of_training: int
    pairs: list[CopiedPair]
    """The highest scores first; the first few only."""
    repeats: list[tuple[str, str]]
    """Held-out clips that repeat a training clip."""


@dataclass(frozen=True)
class Measures:
    """All that was measured on samples of the checkpoint that would be taken."""

    tuned: Model
    num_prompts: dict[str, int]
    """By set."""
    num_seeds: int
    num_held_out_clips: int
    of_held_out_clips: int
    """There are that many."""
    others: list[Model] = field(default_factory=list)
    """Further checkpoints of this run that were sampled as fully, and those of evaluate.compare."""
    drift: list[Drift] = field(default_factory=list)
    """Of the base model and of the last step; empty where evaluate.lengths asks for no further ones."""
    memorisation: Memorisation | None = None
    audit: GuidanceAudit | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""
    about: dict[str, About] = field(default_factory=lambda: dict(ABOUT))
