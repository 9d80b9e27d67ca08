"""Measures as the page and report.md say them: which of them, in which order, in which words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from bricks_core.report.charts import Chart, Line, Whisker, whisker_chart
from bricks_core.report.intervals import Interval
from bricks_core.report.measures import KeptFacts, Measures, Model, MotionNumber, Style
from bricks_core.report.words import WEIGHTS, number, step_label

SETS = {
    "style": "the run’s own prompts",
    "held_out": "captions of held-out clips",
    "plain": "plain prompts",
}
MOTION_SHOWN = ("amount", "smoothness", "holds", "flicker", "drift", "drift_sharpness")
LEVEL = "95 %"


@dataclass(frozen=True)
class Adherence:
    """Of a set of prompts."""

    title: str
    rows: list[KeptFacts]
    chart: Chart


@dataclass(frozen=True)
class Told:
    """What the page shows of measures, beside the figures themselves."""

    tuned: str
    sets: dict[str, str]
    level: str
    adherence: list[Adherence]
    style_chart: Chart | None
    motion: list[MotionNumber]


def told_of(measures: Measures) -> Told:
    """What the page shows of them."""
    tuned = measures.tuned
    return Told(
        tuned=name_of(tuned),
        sets=SETS,
        level=LEVEL,
        adherence=[found for name in SETS if (found := _adherence(tuned, name)) is not None],
        style_chart=_style_chart(measures, tuned.style) if tuned.style and tuned.style.position else None,
        motion=[each for each in tuned.motion if each.name in MOTION_SHOWN and each.tuned is not None],
    )


def name_of(model: Model) -> str:
    """The checkpoint and its weights."""
    return model.of or f"{step_label(model.step)}, {WEIGHTS[model.weights]} weights"


def figure(value: float, unit: str = "plain") -> str:
    """A number as it is read: a share in percent, a change of one in points, others to three digits."""
    if not math.isfinite(value):
        return "–"
    if unit == "share":
        return f"{100 * value:.0f}\u00a0%"
    if unit == "points":
        sign = "−" if round(100 * value) < 0 else "+" if round(100 * value) > 0 else "±"
        return f"{sign}{abs(100 * value):.0f}\u00a0%"
    return number(value).replace("-", "−") if abs(value) >= 0.001 or value == 0 else "0.00"


def exact(value: float) -> str:
    """The number as report.json has it."""
    return json.dumps(value)


def is_noise(found: Interval) -> bool:
    return not found.leaves_out(0.0)


def is_finite(found: Interval) -> bool:
    return math.isfinite(found.low) and math.isfinite(found.high)


def first_capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _adherence(model: Model, prompt_set: str) -> Adherence | None:
    rows = [each for each in model.adherence if each.prompt_set == prompt_set]
    if not rows:
        return None
    lines = [
        Line(
            row.kind,
            [Whisker(name, each, style) for name, each, style in _sides(row)],
            row.chance.value if row.chance else None,
        )
        for row in rows
    ]
    title = first_capital(SETS[prompt_set])
    drawn = whisker_chart(title, lines, ends=(0.0, 1.0), x_label="share of facts shown", against="chance")
    return Adherence(title, rows, drawn)


def _sides(row: KeptFacts) -> list[tuple[str, Interval, str]]:
    base = [("base", row.base, "s0")] if row.base else []
    return [*base, ("tuned", row.tuned, "s1")]


def _style_chart(measures: Measures, style: Style) -> Chart:
    """The tuned models between the base's samples, at 0, and held-out clips, at 1."""
    models = [each for each in (measures.tuned, *measures.others) if each.style and each.style.position]
    lines = [
        Line(each.of or step_label(each.step), [Whisker("", each.style.position, "s1" if not place else "s4")])
        for place, each in enumerate(models)
        if each.style and each.style.position
    ]
    found = [whisker.found for line in lines for whisker in line.whiskers]
    ends = [end for each in found for end in (each.low, each.value, each.high) if math.isfinite(end)]
    low, high = max(-1.0, min([-0.2, *ends])), min(2.0, max([1.2, *ends]))
    marks = ((0.0, "base samples"), (1.0, "held-out clips"))
    return whisker_chart("Where samples stand", lines, ends=(low, high), x_label="steps from base to real", marks=marks)
