"""The JSON schema of report.json, made from what the report is made of: `python -m bricks_core.report.schema`.

It is committed as docs/report.schema.json. Fields may be added: who reads a report should not mind
those that it does not know.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from bricks_core.report.evidence import Evidence
from bricks_core.report.facts import Dataset, HeldOut, StageFacts, Training
from bricks_core.report.measures import Measures
from bricks_core.report.verdict import Verdict


@dataclass(frozen=True)
class Report:
    """All numbers of an evaluation. Intervals are of 95 %; an end that is not known is null."""

    verdict: Verdict
    evidence: Evidence
    stages: list[StageFacts]
    dataset: Dataset
    training: Training
    held_out: HeldOut
    measures: Measures | None
    settings: dict[str, dict[str, Any]]


def report_schema() -> str:
    """As committed."""
    schema = TypeAdapter(Report).json_schema(mode="serialization")
    for name, told_too, kind in (("Verdict", "title", "string"), ("Change", "improvement_percent", "number")):
        schema["$defs"][name]["properties"][told_too] = {"type": kind}
        schema["$defs"][name]["required"].append(told_too)
    for end in ("low", "high"):
        told = schema["$defs"]["Interval"]["properties"][end]
        told["type"] = [told["type"], "null"]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(report_schema())
