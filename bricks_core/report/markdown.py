"""report.md: the verdict and the measures as text, no wider than 80 columns, for terminals and pull requests."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from bricks_core.report.facts import Facts
from bricks_core.report.figures import SETS, figure, first_capital, is_finite, is_noise, name_of, told_of
from bricks_core.report.intervals import Interval
from bricks_core.report.measures import KeptFacts, Measures, MotionNumber
from bricks_core.report.verdict import verdict_of
from bricks_core.report.words import WEIGHTS, change, loss, number, several

WIDTH = 80


def report_md(facts: Facts) -> str:
    """The whole text."""
    verdict, training = verdict_of(facts.evidence), facts.training
    parts = [f"# {'' if training.is_finished else 'So far: '}{verdict.title}", *map(_wrapped, verdict.reasons)]
    if verdict.advice:
        parts.append(_wrapped(f"**What to do:** {verdict.advice}"))
    if verdict.unknown:
        parts.append(_wrapped(f"Not measured: {', '.join(verdict.unknown)}."))
    parts += _held_out(facts)
    if facts.measures:
        parts += _measures(facts.measures)
    parts.append(_wrapped("All numbers are in report.json; the page is index.html."))
    return "\n\n".join(parts) + "\n"


def _held_out(facts: Facts) -> Iterator[str]:
    rows = [
        [
            each.bucket or "all",
            WEIGHTS[each.weights],
            loss(each.before),
            loss(each.after),
            _spaced(change(each.improvement_percent)),
        ]
        for each in facts.held_out.changes
    ]
    if rows:
        yield "## Held-out loss"
        yield table(["bucket", "weights", "before", "after", "change"], rows)


def _measures(measures: Measures) -> Iterator[str]:
    told, tuned = told_of(measures), measures.tuned
    prompts = ", ".join(f"{num} of {SETS[name]}" for name, num in measures.num_prompts.items())
    yield "## Samples"
    yield _wrapped(
        f"{several(tuned.num_samples, 'sample')} of {name_of(tuned)}, and as many of the base model from the same "
        f"noise: {prompts}, with {several(measures.num_seeds, 'seed')} each. In brackets: {told.level} intervals. A "
        "change whose interval holds zero is noise."
    )
    for each in told.adherence:
        yield f"### Facts shown: {each.title[0].lower()}{each.title[1:]}"
        yield table(["fact", "base", "tuned", "chance", "change"], [_kept(row) for row in each.rows])
    yield from _style(measures)
    if told.motion:
        yield "### Motion"
        yield table(["number", "base", "tuned", "real", "tuned is"], [_motion(row) for row in told.motion])
    for drift in measures.drift:
        yield f"### Departure from the first pictures, step {number(drift.step)}, CIELAB units"
        rows = [[number(each.num_frames), _found(each.departure[each.num_frames])] for each in drift.courses]
        yield table(["frames", "at the end"], [*rows, ["each doubling", _found(drift.per_doubling)]])
    yield from _copies(measures)
    yield from _others(measures)
    if measures.missing:
        yield "### Not measured"
        yield "\n".join(_wrapped(f"- {first_capital(what)}: {why}", "  ") for what, why in measures.missing.items())


def _kept(row: KeptFacts) -> list[str]:
    chance = figure(row.chance.value, "share") if row.chance else "–"
    change = _found(row.change, "points")
    if row.change and is_noise(row.change):
        change = f"noise ({change.partition(' (')[2]}" if is_finite(row.change) else "noise"
    return [row.kind, _found(row.base, "share"), _found(row.tuned, "share"), _spaced(chance), change]


def _style(measures: Measures) -> Iterator[str]:
    style = measures.tuned.style
    if style is None:
        return
    yield "### Style"
    if style.position:
        yield _wrapped(
            f"Samples stand at {_found(style.position)}: 0 is where the base model's stand, 1 where held-out clips do "
            f"({several(style.num_clips, 'clip')} from {several(style.num_films, 'film')}, features {style.features})."
        )
    else:
        yield _wrapped("Samples of the base model are no farther from held-out clips than these are from each other.")
    rows = [
        ["base to held-out", _found(style.base_to_real)],
        ["tuned to held-out", _found(style.tuned_to_real)],
        ["one held-out film to the others", _found(style.real_to_real)],
    ]
    yield table(["distance", ""], rows)


def _motion(row: MotionNumber) -> list[str]:
    nearer = row.nearer
    word = "–" if nearer is None else "as near" if is_noise(nearer) else "nearer" if nearer.value > 0 else "farther"
    name = row.name.replace("_", " ")
    return [name, _short(row.base, False), _short(row.tuned), _short(row.real, False), word]


def _short(found: Interval | None, with_ends: bool = True) -> str:
    """With as many decimals as the largest of its numbers needs to have two digits."""
    if found is None:
        return "–"
    numbers = [found.value, found.low, found.high] if with_ends and is_finite(found) else [found.value]
    largest = max(map(abs, numbers))
    decimals = min(4, max(0, 1 - math.floor(math.log10(largest)))) if largest else 0
    value, *ends = (f"{each:.{decimals}f}".replace("-", "−") for each in numbers)
    return f"{value} ({' to '.join(ends)})" if ends else value


def _copies(measures: Measures) -> Iterator[str]:
    found = measures.memorisation
    if found is None or not found.parts:
        return
    yield f"### Copies of training clips ({found.num_training} of {found.of_training} looked at)"
    rows = [
        [
            "what they show" if each.part == "content" else "how it moves",
            f"{each.num} of {each.of}",
            _found(each.share, "share"),
            _spaced(figure(each.expected, "share")),
        ]
        for each in found.parts
    ]
    yield table(["in", "copies", "share", "by luck"], rows)


def _others(measures: Measures) -> Iterator[str]:
    if not measures.others:
        return
    yield "### Beside other checkpoints"
    rows = []
    for model in (measures.tuned, *measures.others):
        own, plain = model.kept("style"), model.kept("plain")
        rows.append(
            [
                textwrap.shorten(name_of(model), 24, placeholder="…"),
                _found(own.tuned if own else None, "share"),
                _found(plain.tuned if plain else None, "share"),
                _found(model.style.position if model.style else None),
            ]
        )
    yield table(["checkpoint", "own prompts", "plain", "style"], rows)


def _found(found: Interval | None, unit: str = "plain") -> str:
    """81 % (74 to 88), without the ends where they are not known."""
    if found is None:
        return "–"
    value = _spaced(figure(found.value, unit))
    if not is_finite(found):
        return value
    low, high = (figure(end, unit).removesuffix("\u00a0%") for end in (found.low, found.high))
    return f"{value} ({low}–{high})" if unit == "share" else f"{value} ({low} to {high})"


def _spaced(text: str) -> str:
    return text.replace("\u00a0", " ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown that reads well as text, too: columns are padded."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = ["-" * (width + 2) if not place else "-" * (width + 1) + ":" for place, width in enumerate(widths)]
    return "\n".join([line(head), f"|{'|'.join(rule)}|", *map(line, rows)])


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
