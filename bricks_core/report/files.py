"""The report's files beside the page: its numbers, the settings, and the times, which are no part of the artifact.

What an artifact holds must follow from what it was asked, so times and machines stay out of the page: they go to
timings.js beside it, which the page reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from bricks_core.report.facts import Facts
from bricks_core.report.verdict import verdict_of
from bricks_core.report.words import duration, number
from bricks_core.spec.manifest import Manifest


def report_json(facts: Facts) -> str:
    """All numbers, for programs."""
    changes = [asdict(each) | {"improvement_percent": each.improvement_percent} for each in facts.held_out.changes]
    verdict = verdict_of(facts.evidence)
    numbers = {
        "verdict": asdict(verdict) | {"title": verdict.title},
        "evidence": _finite(asdict(facts.evidence)),
        "stages": [asdict(each) for each in facts.lineage],
        "dataset": asdict(facts.dataset),
        "training": asdict(facts.training),
        "held_out": asdict(facts.held_out) | {"changes": changes},
        "measures": _finite(asdict(facts.measures)) if facts.measures else None,
        "settings": facts.settings,
    }
    return json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The same, with null for ends of intervals that are not known: JSON has no infinity."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def settings_yaml(facts: Facts) -> str:
    """The resolved settings of every stage, as a run file has them under spec."""
    return in_yaml(facts.settings)


@dataclass(frozen=True)
class Timing:
    """When a stage was finished, and on what."""

    stage: str
    started_at: datetime
    """Of the last process that worked on it: an earlier one may have been stopped."""
    finished_at: datetime
    host: dict[str, str]
    num_done: int
    unit: str

    @classmethod
    def of(cls, manifest: Manifest, num_steps: int) -> Timing:
        unit = _UNITS[manifest.stage]
        num_done = num_steps if unit == "steps" else manifest.tables[unit].num_rows
        return cls(manifest.stage, manifest.started_at, manifest.finished_at, manifest.host, num_done, unit)

    @property
    def took_s(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def per_second(self) -> float:
        return self.num_done / self.took_s if self.took_s > 0 else 0.0

    def numbers(self) -> dict[str, Any]:
        return {
            "started_at": self.started_at.isoformat(),
            "finished_at": self.finished_at.isoformat(),
            "took_s": self.took_s,
            f"{self.unit}_per_s": self.per_second,
            "host": self.host,
        }

    def words(self) -> dict[str, str]:
        return {
            "finished": self.finished_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "took": f"{duration(self.took_s)}, {number(self.per_second)} {self.unit}/s",
            "host": f"{self.host.get('hostname', 'unknown')}, {self.host.get('num_cpus', '?')} CPUs",
        }


_UNITS = {
    "ingest": "videos", "clip": "clips", "score": "scores", "caption": "captions", "latents": "latents",
    "train": "steps", "evaluate": "samples",
}  # fmt: skip


def timings_js(timings: Sequence[Timing], run: str) -> str:
    """When each stage ran, how long, and where: what the page shows about them, and the numbers themselves."""
    shown: dict[str, Any] = {each.stage: each.words() for each in timings}
    shown["run"] = f"· run {run}" if run else ""
    numbers: dict[str, Any] = {"run": run, "stages": {each.stage: each.numbers() for each in timings}}
    return "window.bricksTimings = " + json.dumps(numbers | {"shown": shown}, indent=1).replace("<", "\\u003c") + ";\n"


def in_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))
