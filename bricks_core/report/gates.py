"""What an evaluation's report comes to: each gate of the run held against the numbers.

The numbers are those of report.json (bricks_core/report/files.py); the gates are the run's as it is now, so
that a gate which was too strict is judged anew without anything running again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bricks_core.spec.gates import COUNTS, KEPT_FACTS, Gate

Judgement = Literal["passed", "failed", "unknown"]


@dataclass(frozen=True)
class Measured:
    """A number of the report."""

    metric: str
    value: float | None
    """None: the report does not have it."""
    base: float | None = None
    """The base model's, before the first step; None: there is no such thing."""
    num_clips: int = 0
    """Clips it was measured on; 0: not said."""

    @property
    def delta(self) -> float | None:
        """The change from the base, as a share of it."""
        if self.value is None or not self.base or not math.isfinite(self.base):
            return None
        return (self.value - self.base) / self.base


@dataclass(frozen=True)
class Judged:
    """A gate, and what the report says to it."""

    gate: Gate
    measured: Measured
    judgement: Judgement
    bounds: str
    """The gate in words: at most 0.98 of base."""


@dataclass(frozen=True)
class Outcome:
    """All gates of a run, judged."""

    verdict: str
    """The report's own, as a headline, and why; empty: it has none."""
    gates: list[Judged]
    others: list[Measured]
    """Held-out losses and measures of samples that no gate is on."""

    @property
    def passed(self) -> bool:
        """No gate failed, and none could not be judged: what nobody measured has not been reached."""
        return all(each.judgement == "passed" for each in self.gates)

    @property
    def words(self) -> str:
        """What came of the gates, in one sentence."""
        if not self.gates:
            return "No gate is set, so there is nothing to pass."
        bad = [f"{each.gate.metric} ({each.judgement})" for each in self.gates if each.judgement != "passed"]
        if not bad:
            return "The gate is passed." if len(self.gates) == 1 else f"All {len(self.gates)} gates are passed."
        return f"{len(bad)} of {len(self.gates)} gates are not passed: {', '.join(bad)}."


def judge(report: Mapping[str, Any], gates: Sequence[Gate]) -> Outcome:
    """Hold a report's numbers against gates."""
    measured = measurements(report)
    judged = [_judged(gate, measured.get(gate.metric, Measured(gate.metric, None))) for gate in gates]
    gated = {gate.metric for gate in gates}
    # Of the counts there are many, and they rarely change: they are shown where somebody asks for something of them.
    others = [each for each in measured.values() if each.metric not in gated and each.metric not in COUNTS]
    return Outcome(_verdict(report), judged, others)


def _verdict(report: Mapping[str, Any]) -> str:
    told = _mapping(report.get("verdict"))
    title, reasons = told.get("title"), told.get("reasons")
    if not isinstance(title, str):
        return ""
    why = [each for each in reasons if isinstance(each, str)] if isinstance(reasons, list) else []
    return f"{title}. {why[0]}" if why else f"{title}."


def measurements(report: Mapping[str, Any]) -> dict[str, Measured]:
    """Every number that a gate can be on, by metric; what a report lacks is left out."""
    found: dict[str, Measured] = {}
    changes = _mapping(report.get("held_out")).get("changes")
    overall = []
    for change in changes if isinstance(changes, list) else []:
        told = _mapping(change)
        weights, bucket, after = told.get("weights"), told.get("bucket"), _number(told.get("after"))
        if not isinstance(weights, str) or not isinstance(bucket, str) or after is None:
            continue
        metric = f"held_out.loss.{weights}" + (f".{bucket}" if bucket else "")
        num_clips = told.get("num_clips")
        found[metric] = Measured(
            metric, after, _number(told.get("before")), num_clips if isinstance(num_clips, int) else 0
        )
        if not bucket:
            overall.append(found[metric])
    if overall:
        best = min(overall, key=lambda each: math.inf if each.value is None or math.isnan(each.value) else each.value)
        found["held_out.loss.best"] = Measured("held_out.loss.best", best.value, best.base)
    found |= _of_samples(_mapping(report.get("evidence")))
    dataset = _mapping(report.get("dataset"))
    for metric in COUNTS:
        value = _number(dataset.get(metric.removeprefix("dataset.")))
        if value is not None:
            found[metric] = Measured(metric, value)
    return found


def _of_samples(evidence: Mapping[str, Any]) -> dict[str, Measured]:
    """What was measured on samples: the numbers that the verdict rests on."""

    def value(name: str, part: str) -> float | None:
        told = _mapping(evidence.get(name))
        return _number(_mapping(told.get(part)).get("value") if part else told.get("value"))

    found = [Measured(metric, value(metric, "tuned"), value(metric, "base")) for metric in KEPT_FACTS]
    found += [Measured("style.position", value("style", "")), Measured("copies.share", value("copies", "share"))]
    return {each.metric: each for each in found if each.value is not None}


def _judged(gate: Gate, measured: Measured) -> Judged:
    value, base = measured.value, measured.base
    # (what it is held to, whether it is a ceiling, how that is said); None where the base is not known.
    bounds: list[tuple[float | None, bool, str]] = []
    if gate.at_most is not None:
        bounds.append((gate.at_most, True, f"at most {gate.at_most:g}"))
    if gate.at_least is not None:
        bounds.append((gate.at_least, False, f"at least {gate.at_least:g}"))
    if gate.at_most_of_base is not None:
        bounds.append((_share(gate.at_most_of_base, base), True, f"at most {gate.at_most_of_base:g} of base"))
    if gate.at_least_of_base is not None:
        bounds.append((_share(gate.at_least_of_base, base), False, f"at least {gate.at_least_of_base:g} of base"))
    results = [_holds(value, bound, ceiling) for bound, ceiling, _ in bounds]
    judgement: Judgement = "failed" if False in results else "unknown" if None in results else "passed"
    return Judged(gate, measured, judgement, ", ".join(words for _, _, words in bounds))


def _holds(value: float | None, bound: float | None, ceiling: bool) -> bool | None:
    if value is None or bound is None:
        return None
    if math.isnan(value):  # a training that fell apart has reached nothing
        return False
    return value <= bound if ceiling else value >= bound


def _share(share: float, base: float | None) -> float | None:
    return None if base is None or not math.isfinite(base) else share * base


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
