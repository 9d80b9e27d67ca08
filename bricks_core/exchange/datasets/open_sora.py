"""A folder as Open-Sora wants it: clips, images, and one CSV that names them.

Open-Sora's loader reads the columns path, text, num_frames, height and width with pandas; aspect_ratio (height /
width), fps (of an image: empty) and resolution (height x width) are those that its own tools add. The columns after
them make the way back lossless.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bricks_core.exchange.datasets.dataset import Dataset, Sample
from bricks_core.exchange.datasets.export_folder import ExportFolder
from bricks_core.progress import Progress
from bricks_core.storage.in_threads import in_threads

TABLE = "meta.csv"
THEIR_COLUMNS = ["path", "text", "num_frames", "height", "width", "aspect_ratio", "fps", "resolution"]
OUR_COLUMNS = ["file", "id", "clip_id", "video_id", "video_name", "first_frame", "end_frame"]
OUR_COLUMNS += ["licence", "credit", "consent", "split", "caption_by", "sha256"]
NUM_AT_ONCE = 8


def export_open_sora(dataset: Dataset, folder: ExportFolder, progress: Progress) -> str:
    """Clips and images as files, and the table last. Returns the table's name."""

    def copy(sample: Sample) -> None:
        file = file_of(sample)
        folder.copy(file, dataset.clip, sample.key, size_bytes=sample.size_bytes, sha256=sample.sha256)
        progress.advance(note=file)

    in_threads(copy, dataset.samples(), NUM_AT_ONCE)
    where = folder.path.resolve()
    rows = (row_of(sample, where) for sample in dataset.samples())
    folder.write(TABLE, lambda file: write_csv(file, THEIR_COLUMNS + OUR_COLUMNS, rows))
    # After the table: one of an earlier export still names them until now.
    folder.keep_only(["clips", "images"], {file_of(sample) for sample in dataset.samples()})
    return TABLE


def file_of(sample: Sample) -> str:
    """A sample's file, relative to the table."""
    return f"{'clips' if sample.kind == 'video' else 'images'}/{sample.id}{sample.suffix}"


def row_of(sample: Sample, folder: Path) -> dict[str, Any]:
    """A sample's row. `path` is absolute, so that Open-Sora finds it from wherever it runs; `file` moves along."""
    file = file_of(sample)
    return {"path": str(folder / file), "text": sample.text, "file": file, **sample.facts()}


def write_csv(file: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows so that Python's csv module and pandas both read the very same texts: commas, quotes, line ends."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        # RFC 4180's line end: with a bare \\n the csv module leaves a carriage return within a text unquoted.
        writer = csv.DictWriter(opened, list(columns), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
