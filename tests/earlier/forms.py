"""What lies in stores and clusters, and the form of each: for tests, and written anew by

python -m tests.earlier.forms
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from bricks_core.cluster.pin import Pin
from bricks_core.pipeline.points import Points
from bricks_core.spec.items import Item
from bricks_core.spec.latents import LatentAnswer, TextAnswer
from bricks_core.spec.manifest import Manifest, Try
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Row
from bricks_core.stages.caption.sources import Answer, Description, Sight
from bricks_core.stages.clip.stage import Cut, Shots
from bricks_core.stages.evaluate.audit import Answer as Audit
from bricks_core.stages.ingest.stage import Content
from bricks_core.stages.score.stage import Sides
from bricks_core.stages.train.checkpoint import State
from bricks_core.stages.train.held_out import Measured
from bricks_core.storage.artifacts import ItemRow, RecordRow
from bricks_core.storage.began import Began
from bricks_core.storage.claim import Claim
from bricks_core.storage.earlier import EarlierRecord
from bricks_core.storage.takedowns import Takedown
from bricks_core.storage.trainings import Begun, Record
from bricks_core.video.probe import Facts

FOLDER = Path(__file__).parent
KEPT = FOLDER / "forms.txt"
RUN_FILE_FIELDS = FOLDER / "run_file_fields.txt"
"""All that any version has known. None is ever taken out."""

OBJECTS: dict[str, type[BaseModel]] = {
    "checkpoint_in_artifact": EarlierRecord,
    "began": Began,
    "claim": Claim,
    "item": Item,
    "manifest": Manifest,
    "points": Points,
    "record": Record,
    "sides": Sides,
    "state": State,
    "takedown": Takedown,
    "trainings": Begun,
    "try": Try,
}
"""JSON objects of a store. An example of each version of each is in stored/<name>/<version>.json."""

ANSWERS: dict[str, type] = {
    "content": Content,
    "film": Facts,
    "shots": Shots,
    "clip": Cut,
    "sight": Sight,
    "description": Description,
    "answer": Answer,
    "latent": LatentAnswer,
    "text": TextAnswer,
    "held_out": Measured,
    "guidance": Audit,
}
"""What is in the records of items, by kind."""

ROWS: dict[str, type[Row]] = {
    f"{stage.name}/{name}": row for stage in STAGES.values() for name, row in stage.tables.items()
} | {"items": ItemRow, "records": RecordRow}
"""Rows of tables."""


def ever_known() -> set[str]:
    """Fields of run files of any version."""
    return set(RUN_FILE_FIELDS.read_text(encoding="utf-8").split())


def forms() -> str:
    """A line for every field of everything that is stored."""
    answers = {f"{kind} item": answer for kind, answer in ANSWERS.items()}
    tables = {f"{name} row": row for name, row in ROWS.items()}
    whole = {**OBJECTS, **answers, **tables, "pin": Pin}
    return "\n".join(sorted(line for name, model in whole.items() for line in _lines(name, model))) + "\n"


def _lines(name: str, model: type) -> Iterator[str]:
    schema = TypeAdapter(model).json_schema()
    parts = {name: schema} | {f"{name}/{part}": each for part, each in schema.get("$defs", {}).items()}
    for part, each in parts.items():
        for field, told in each.get("properties", {}).items():
            need = "required" if field in each.get("required", ()) else "optional"
            yield f"{part}: {field}  {need}  {json.dumps(_bare(told), sort_keys=True)}"


def run_file_fields() -> set[str]:
    """The place of every field of a run file, without numbers of lists."""
    schema = BrickRun.model_json_schema()
    return set(_places(schema, schema, ""))


def _places(schema: dict[str, Any], node: dict[str, Any], place: str) -> Iterator[str]:
    for choice in node.get("anyOf", []):
        yield from _places(schema, choice, place)
    for tag, ref in node.get("discriminator", {}).get("mapping", {}).items():
        yield from _places(schema, {"$ref": ref}, f"{place}.{tag}")
    if "$ref" in node:
        yield from _places(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], place)
    if isinstance(node.get("items"), dict):
        yield from _places(schema, node["items"], place)
    for name, each in node.get("properties", {}).items():
        below = f"{place}.{name}" if place else name
        yield below
        yield from _places(schema, each, below)
    if isinstance(node.get("additionalProperties"), dict):
        yield from _places(schema, node["additionalProperties"], f"{place}.*")


def _bare(schema: Any) -> Any:
    """Without what is there for people."""
    if isinstance(schema, dict):
        return {name: _bare(each) for name, each in schema.items() if name not in ("title", "description", "x-bricks")}
    return [_bare(each) for each in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    RUN_FILE_FIELDS.write_text("\n".join(sorted(run_file_fields() | ever_known())) + "\n", encoding="utf-8")
    KEPT.write_text(forms(), encoding="utf-8")
