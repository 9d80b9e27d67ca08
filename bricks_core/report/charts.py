"""Charts as SVG, drawn here so that the report needs no library and no network, and follows the page's colours.

Text and shapes carry classes; the page's style sheet gives them their colours, light and dark. Coordinates are those of
a viewBox of 480 x 270: on a phone a chart is about as wide as that, on a wide screen several stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from bricks_core.report.facts import Histogram, Point, nice_step
from bricks_core.report.intervals import Interval

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 70, 466, 14, 220
_LEFT_OF_LINES, _TOP_OF_LINES, _LINE_HEIGHT = 116, 24, 27
_ENOUGH_TICKS = 5
_FACTOR_FOR_LOG = 5


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[Point]
    style: str
    """A class of the style sheet: s1 to s6."""
    marks: bool = False
    """Draw each point, with its numbers as a tooltip: for few points."""
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart and what stands around it."""

    title: str
    note: str
    svg: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Name and class of each line or colour; empty when one needs no telling."""


def number(value: float) -> str:
    """A number as an axis shows it: 0.0001 is 1e-4, 1500 is 1,500."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, _, exponent = (
            f"{value:.3g}".partition("e") if "e" in f"{value:.3g}" else f"{value:.2e}".partition("e")
        )
        return f"{float(mantissa):g}e{int(exponent or 0)}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    y_label: str,
    x_label: str = "training step",
    bands: Sequence[tuple[str, float, float]] = (),
    note: str = "",
    from_zero: bool = False,
    log_scale: bool = False,
) -> Chart:
    """Lines over steps. `bands` are stretches of the x axis with a name: the phases of a training.

    With `log_scale` the y axis is one, where that shows more: values above 0 that differ by a factor of 5 or more.
    """
    lines = [line for line in series if line.points]
    points = [point for line in lines for point in line.points]
    if not points:
        return Chart(title, note or "No numbers.", _frame(title + ": no numbers", ""))
    x_low, x_high = _range([x for x, _ in points] + [edge for _, *edges in bands for edge in edges])
    values = [y for line in lines for y in _seen(line)]
    is_log = log_scale and min(values) > 0 and max(values) >= _FACTOR_FOR_LOG * min(values)
    scale: Callable[[float], float] = math.log10 if is_log else float
    y_low, y_high = _range([scale(y) for y in values] + ([0.0] if from_zero else []), padding=0.06)
    if from_zero:
        y_low = 0.0
    y_high += 0.12 * (y_high - y_low) * (len(bands) > 1)  # room for the bands' names
    y_ticks = log_ticks(y_low, y_high) if is_log else ticks(y_low, y_high)

    def x_of(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT)

    def y_of(y: float) -> float:
        return BOTTOM - (min(max(scale(y), y_low), y_high) - y_low) / (y_high - y_low) * (BOTTOM - TOP)

    axis = f"{y_label}, log scale" if is_log else y_label
    parts = [_bands(bands, x_of), _axes(ticks(x_low, x_high), y_ticks, x_of, y_of, x_label, axis)]
    parts += [_line(line, x_of, y_of, y_label) for line in lines]
    told = "; ".join(
        f"{line.name or y_label} from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in lines
    )
    legend = [(line.name, line.style + " faint" * line.faint) for line in lines if line.name]
    return Chart(title, note, _frame(f"{title}: {told}", "".join(parts)), legend if len(legend) > 1 else [])


def bar_chart(bars: Histogram, *, note: str = "", kept: str = "kept", dropped: str = "dropped") -> Chart:
    """A histogram; what was dropped stands on top of what was kept."""
    totals = [a + b for a, b in zip(bars.kept, bars.dropped, strict=True)]
    y_high = max(*totals, 1) * 1.06
    x_low, x_high = bars.edges[0], bars.edges[-1]
    y_ticks = [tick for tick in ticks(0, y_high) if float(tick).is_integer()]

    def x_of(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT)

    def y_of(y: float) -> float:
        return BOTTOM - y / y_high * (BOTTOM - TOP)

    parts = [
        _axes(ticks(x_low, x_high), y_ticks, x_of, y_of, bars.unit, "clips" if bars.unit != "words" else "captions")
    ]
    for low, high, num_kept, num_dropped in zip(bars.edges[:-1], bars.edges[1:], bars.kept, bars.dropped, strict=True):
        left, width = x_of(low) + 0.8, x_of(high) - x_of(low) - 1.6
        tip = f"{number(low)} to {number(high)}: {num_kept} {kept}" + (
            f", {num_dropped} {dropped}" if any(bars.dropped) else ""
        )
        parts.append(f"<g><title>{escape(tip)}</title>")
        parts.append(_bar("bar kept", left, width, y_of(num_kept), y_of(0)))
        parts.append(_bar("bar dropped", left, width, y_of(num_kept + num_dropped), y_of(num_kept)))
        parts.append("</g>")
    told = f"{bars.name}, {bars.unit}: {sum(bars.kept)} {kept}" + (
        f", {sum(bars.dropped)} {dropped}" if any(bars.dropped) else ""
    )
    legend = [(kept, "kept"), (dropped, "dropped")] if any(bars.dropped) else []
    return Chart(bars.name, note, _frame(told, "".join(parts)), legend)


@dataclass(frozen=True)
class Whisker:
    """A value with its interval, on a line of a chart."""

    name: str
    found: Interval
    style: str
    """A class of the style sheet: s0 (grey) to s6."""


@dataclass(frozen=True)
class Line:
    """A line of whiskers: what they are about, and a value that they are held against."""

    label: str
    whiskers: Sequence[Whisker]
    against: float | None = None


def whisker_chart(
    title: str,
    lines: Sequence[Line],
    *,
    ends: tuple[float, float],
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
    against: str = "",
) -> Chart:
    """Intervals above each other, on an axis between `ends`. `marks`: places of the axis that have a name."""
    low, high = ends
    bottom = _TOP_OF_LINES + _LINE_HEIGHT * len(lines)

    def x_of(x: float) -> float:
        return _LEFT_OF_LINES + (min(max(x, low), high) - low) / (high - low) * (RIGHT - _LEFT_OF_LINES)

    parts = [f'<g class="axes"><path class="base" d="M{_LEFT_OF_LINES} {bottom}H{RIGHT}"/>']
    for tick in ticks(low, high):
        x = x_of(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP_OF_LINES - 6}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{number(tick)}</text>')
    for place, name in marks:
        anchor = "start" if place <= low else "end" if place >= high else "middle"
        parts.append(f'<path class="base" d="M{x_of(place):.1f} {_TOP_OF_LINES - 6}V{bottom}"/>')
        parts.append(f'<text x="{x_of(place):.1f}" y="12" text-anchor="{anchor}">{escape(name)}</text>')
    parts.append(f'<text class="label" x="{RIGHT}" y="{bottom + 40}" text-anchor="end">{escape(x_label)}</text></g>')
    for place, line in enumerate(lines):
        parts += _whiskers(line, _TOP_OF_LINES + _LINE_HEIGHT * (place + 0.5), x_of, against)
    told = "; ".join(f"{line.label}: " + ", ".join(map(_told, line.whiskers)) for line in lines)
    legend = list(dict.fromkeys((each.name, each.style) for line in lines for each in line.whiskers if each.name))
    if against and any(line.against is not None for line in lines):
        legend.append((against, "against"))
    return Chart(title, "", _frame(f"{title}: {told}", "".join(parts), bottom + 46), legend if len(legend) > 1 else [])


def _whiskers(line: Line, y: float, x_of: Callable[[float], float], against: str) -> Iterator[str]:
    yield f'<text x="{_LEFT_OF_LINES - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(line.label)}</text>'
    if line.against is not None:
        x, tip = x_of(line.against), f"{line.label}, {against}: {line.against:.3g}"
        yield f'<g><title>{escape(tip)}</title><path class="against" d="M{x:.1f} {y - 10:.1f}v20"/></g>'
    for place, each in enumerate(line.whiskers):
        at = y + 9 * (place - (len(line.whiskers) - 1) / 2)
        found = each.found
        yield (
            f'<g class="mark {each.style}"><title>{escape(f"{line.label}, {_told(each)}")}</title>'
            f'<path class="line {each.style}" d="M{x_of(found.low):.1f} {at:.1f}H{x_of(found.high):.1f}"/>'
            f"{_mark(each.style, x_of(found.value), at)}</g>"
        )


def _told(each: Whisker) -> str:
    ends = f" ({each.found.low:.3g} to {each.found.high:.3g})" if math.isfinite(each.found.low) else ""
    return f"{each.name} {each.found.value:.3g}{ends}"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about five of them."""
    step = nice_step((high - low) / _ENOUGH_TICKS)
    return [
        round(index * step, 12) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from 10^low to 10^high: powers of ten, and what has room between them."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in found if low <= math.log10(tick) <= high]
        if len(found) <= _ENOUGH_TICKS + 2:
            break
    return found


def _seen(line: Series) -> list[float]:
    """The values that decide the y axis: of a faint line, all but its wildest."""
    values = sorted(y for _, y in line.points)
    if not line.faint or len(values) < 20:
        return values
    tail = len(values) // 50
    return values[tail : len(values) - tail]


def _range(values: Sequence[float], padding: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    room = (high - low) * padding
    return low - room, high + room


def _frame(label: str, inside: str, height: float = HEIGHT) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{inside}</svg>'
    )


def _axes(
    x_ticks: list[float],
    y_ticks: list[float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    x_label: str,
    y_label: str,
) -> str:
    parts = [f'<g class="axes"><path class="base" d="M{LEFT} {BOTTOM}H{RIGHT}"/>']
    exponent = _exponent(y_ticks)
    for tick in y_ticks:
        y = y_of(tick)
        told = number(tick) if exponent == 0 else f"{tick / 10.0**exponent:.3g}"
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{told}</text>')
    if exponent:
        y_label += f" (× 1e{exponent})"
    for tick in x_ticks:
        x = x_of(tick)
        parts.append(f'<path class="base" d="M{x:.1f} {BOTTOM}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{number(tick)}</text>')
    middle = (TOP + BOTTOM) / 2
    parts.append(f'<text class="label" x="{RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text></g>"
    )
    return "".join(parts)


def _exponent(y_ticks: list[float]) -> int:
    """The power of ten to take out of very small or large ticks, so that none of them needs one; mostly 0."""
    largest = max(map(abs, y_ticks), default=0.0)
    return math.floor(math.log10(largest)) if largest and not 5e-3 <= largest < 1e6 else 0


def _bands(bands: Sequence[tuple[str, float, float]], x_of: Callable[[float], float]) -> str:
    if len(bands) < 2:
        return ""
    parts = []
    for index, (name, first, end) in enumerate(bands):
        left, right = x_of(first), x_of(end)
        parts.append(
            f'<rect class="band b{index % 2}" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{BOTTOM - TOP}"/><text class="phase" x="{(left + right) / 2:.1f}" y="{TOP + 14}" '
            f'text-anchor="middle">{escape(name)}</text>'
        )
    return "".join(parts)


def _line(line: Series, x_of: Callable[[float], float], y_of: Callable[[float], float], y_label: str) -> str:
    path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points)
    faint = " faint" if line.faint else ""
    parts = [f'<path class="line {line.style}{faint}" d="M{path}"/>']
    if line.marks:
        for x, y in line.points:
            tip = f"{line.name or y_label}, step {number(x)}: {y:.4g}"
            parts.append(
                f'<g class="mark {line.style}"><title>{escape(tip)}</title>{_mark(line.style, x_of(x), y_of(y))}</g>'
            )
    return "".join(parts)


def _mark(style: str, x: float, y: float) -> str:
    """Round for one line and square for another, so that colour is not all that tells them apart."""
    if style in ("s0", "s2"):
        return f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'


def _bar(style: str, left: float, width: float, top: float, bottom: float) -> str:
    if bottom - top < 0.01:
        return ""
    width, height = max(width, 0.8), bottom - top
    return f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
