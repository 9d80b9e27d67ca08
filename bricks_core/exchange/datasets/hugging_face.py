"""A folder that `datasets.load_dataset` reads, and the Hugging Face hub shows: clips, images, and a data card.

Clips are the default configuration. The library takes one kind of file for all configurations of a data set, so images
are another folder of it: load_dataset(folder, data_dir="images").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bricks_core.exchange.datasets.data_card import data_card
from bricks_core.exchange.datasets.dataset import Dataset, Sample
from bricks_core.exchange.datasets.export_folder import ExportFolder
from bricks_core.progress import Progress
from bricks_core.storage.in_threads import in_threads

CARD = "README.md"
TABLE = "metadata.parquet"
FOLDERS = {"video": "videos", "image": "images"}
SPLIT_NAMES = {"train": "train", "held_out": "validation"}
NUM_AT_ONCE = 8
_TEXTS = ("id", "clip_id", "video_id", "video_name", "licence", "credit", "consent", "caption_by", "sha256")
_COUNTS = ("num_frames", "height", "width", "resolution", "first_frame", "end_frame")
# Parquet, not JSON lines: there the library guesses types from texts, and differently for each side of the split.
SCHEMA = pa.schema(
    [("file_name", pa.string()), ("text", pa.string())]
    + [(name, pa.float64()) for name in ("fps", "aspect_ratio")]
    + [(name, pa.int64()) for name in _COUNTS]
    + [(name, pa.string()) for name in _TEXTS]
)


def export_hugging_face(dataset: Dataset, folder: ExportFolder, progress: Progress) -> str:
    """Clips and images as files, a table for each side of each, and the card last. Returns the card's name."""

    def copy(sample: Sample) -> None:
        file = f"{folder_of(sample)}/{file_name(sample)}"
        folder.copy(file, dataset.clip, sample.key, size_bytes=sample.size_bytes, sha256=sample.sha256)
        progress.advance(note=file)

    in_threads(copy, dataset.samples(), NUM_AT_ONCE)
    wanted = {f"{folder_of(sample)}/{file_name(sample)}" for sample in dataset.samples()}
    folder.keep_only(list(FOLDERS.values()), wanted)
    for kind, kind_folder in FOLDERS.items():
        for split, name in SPLIT_NAMES.items():
            rows = (_row(each) for each in dataset.samples() if (each.kind, each.split) == (kind, split))
            _write_table(folder, f"{kind_folder}/{name}/{TABLE}", rows)
    card = data_card(dataset)
    folder.write(CARD, lambda file: file.write_text(card, encoding="utf-8"))
    return CARD


def folder_of(sample: Sample) -> str:
    """Where a sample's table lies."""
    return f"{FOLDERS[sample.kind]}/{SPLIT_NAMES[sample.split]}"


def file_name(sample: Sample) -> str:
    """A sample's file, relative to its table. The hub takes no more than 10,000 files in one folder: here are 256."""
    return f"{sample.id[:2]}/{sample.id}{sample.suffix}"


def _row(sample: Sample) -> dict[str, Any]:
    facts = {name: value for name, value in sample.facts().items() if name != "split"}
    return {"file_name": file_name(sample), "text": sample.text, **facts}


def _write_table(folder: ExportFolder, name: str, rows: Iterator[dict[str, Any]]) -> None:
    """A table in groups of rows; none for a side that is empty, which the library would not load."""
    first = next(rows, None)
    if first is None:
        (folder.path / name).unlink(missing_ok=True)
        return

    def write(aside: Path) -> None:
        group: Iterable[dict[str, Any]] = [first, *islice(rows, 999)]
        with pq.ParquetWriter(aside, SCHEMA, compression="zstd") as writer:
            while group:
                writer.write_table(pa.Table.from_pylist(list(group), schema=SCHEMA))
                group = list(islice(rows, 1000))

    folder.write(name, write)
