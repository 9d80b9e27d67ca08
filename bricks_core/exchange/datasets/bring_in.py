"""A table of clips with captions becomes a run: the table is checked row by row, and a run file written that uses it.

The stages do the rest, as for films: bricks_core/storage/media_table.py reads the table for both.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from bricks_core.errors import DataError, SpecError, UsageError, nearest
from bricks_core.progress import Progress
from bricks_core.spec.run import BrickRun, Metadata
from bricks_core.storage.media_table import TABLE_SUFFIXES, MediaTable, TableRow, is_table
from bricks_core.storage.os_errors import told

MAX_PROBLEMS = 20

RUN_FILE = """\
# Made by bricks dataset import. Clips and images of the table are used whole, as they are, and so are their captions.
apiVersion: bricks.dev/v1alpha1
kind: BrickRun
metadata:
  name: {name}
spec:
  ingest:
    sources:
      - path: {table}
        licence: unknown # of rows whose licence the table does not tell
    min_side_px: 16

  score:
    # You have chosen these clips, so none is dropped. They are measured all the same: bricks show {name}/score, and set
    # a threshold (docs/score.md) where you want one.
    filter:
      min_motion: 0
      min_brightness: 0
      max_brightness: 255
      max_plain_share: 1
      max_duplicate_frame_share: 1
      max_near_duplicate_distance: null
    held_out_share: 0.1 # of videos; where the table tells the split, that holds

  caption:
    provider: given # measured or openai would write new ones

  # To train on it, add latents, train and evaluate, as in k8s/runs/quickstart.yaml.
"""


@dataclass
class Checked:
    """What a table holds, as far as can be told without decoding its files."""

    table: str
    num_clips: int = 0
    num_images: int = 0
    num_bytes: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    """The first of them, a sentence each."""

    @property
    def num_fine(self) -> int:
        return self.num_clips + self.num_images

    @property
    def num_rows(self) -> int:
        return self.num_fine + self.num_problems

    def add_problem(self, problem: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def check_table(table: str, progress: Progress) -> Checked:
    """Read a table and look for every file that it names.

    Raises:
        UsageError, SpecError: there is no such table.
        DataError: it is none, has no captions, or not one row can be used.
    """
    if not is_table(table):
        raise UsageError(f"{table} is no table by its name: give a file that ends in {' or '.join(TABLE_SUFFIXES)}.")
    opened = MediaTable(table)
    columns = opened.columns()
    if "text" not in columns:
        raise DataError(
            f"{table} has no column text{nearest('text', columns)}, which holds the captions; it has: "
            f"{', '.join(columns)}. To have captions written, make it a source of a run file: docs/dataset.md says how."
        )
    checked = Checked(table)
    seen: dict[str, int] = {}
    progress.begin(sum(1 for _ in opened.rows()), unit="rows")
    for row, file in opened.files():
        if problem := _problem(row, seen):
            checked.add_problem(problem)
        elif file is not None:
            checked.num_clips += row.kind == "clip"
            checked.num_images += row.kind == "image"
            checked.num_bytes += file.size_bytes
            checked.splits[row.split or "to be drawn"] += 1
            checked.licences[row.licence or "unknown"] += 1
        progress.advance(note=f"row {row.number}")
    if not checked.num_fine:
        listed = "\n".join(checked.problems) or "It has no rows."
        raise DataError(f"Not one row of {table} can be used.\n{listed}")
    return checked


def _problem(row: TableRow, seen: dict[str, int]) -> str:
    """Why a row cannot be used, or nothing. `seen`: rows by their ids and files."""
    if row.problem:
        return row.problem
    if not row.text.strip():
        return f"{row.place} has no caption: {row.names[0]} would be left out."
    for name in filter(None, (row.id, row.names[0])):
        first = seen.setdefault(name, row.number)
        if first != row.number:
            return f"{row.place} is the same as row {first}: both have {name}."
    return ""


def write_run_file(out: Path, name: str, table: str) -> None:
    """Write the run file.

    Raises:
        UsageError: no run can have that name.
        SpecError: another file is in its place.
    """
    try:
        Metadata(name=name)
    except ValidationError:
        raise UsageError(
            f"--name {name}: a run's name has lower-case letters, digits and dashes, begins with a letter, and is at "
            "most 30 long."
        ) from None
    text = RUN_FILE.format(name=name, table=json.dumps(table, ensure_ascii=False))
    BrickRun.model_validate(yaml.safe_load(text))
    with told(out, "write"):
        # Anything but a file may have no end to read to, or must not be replaced.
        if out.exists() and not (out.is_file() and out.read_bytes() == text.encode()):
            raise SpecError(f"{out} is there already: give another name with --out, or remove it.")
        aside = out.with_name(f".{out.name}.part")
        aside.write_text(text, encoding="utf-8")
        aside.replace(out)
