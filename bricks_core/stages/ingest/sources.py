"""The files of a run's sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from bricks_core.spec.ingest import IngestSpec, Source
from bricks_core.storage.media_table import MediaTable, TableRow, is_table
from bricks_core.storage.places import list_source
from bricks_core.storage.store import SourceFile

BESIDE_FILMS = frozenset(
    {".ass", ".bmp", ".csv", ".jpeg", ".jpg", ".json", ".jsonl", ".md", ".nfo", ".part", ".pdf", ".png", ".srt"}
    | {".tsv", ".txt", ".vtt", ".webp", ".xml", ".yaml", ".yml", ".ytdl"}
)
"""What downloaders, editors and people leave beside films: facts, subtitles, posters, half a download."""


@dataclass(frozen=True)
class FoundFile:
    """A file of a source, whatever it is."""

    source: Source
    file: SourceFile | None
    """None: a table's row that is of no use."""
    fingerprint: str = ""
    """Changes when the content does: see `SourceFile.fingerprint`."""
    row: int = 0
    """Its row in the table; 0 for a file that no table names."""
    kind: Literal["film", "clip", "image"] = "film"
    problem: str = ""
    """Why the row is of no use."""

    @property
    def is_beside(self) -> bool:
        """Whether it is no film by its name, and nobody wonders why it cannot be decoded."""
        return self.file is not None and not self.row and Path(self.file.name).suffix.lower() in BESIDE_FILMS


def find_files(spec: IngestSpec) -> Iterator[FoundFile]:
    """Every file of every source, in the order of the run file, then by name; of a table every row, in its order.

    A source named twice is listed once.
    """
    seen = set()
    for source in spec.sources:
        if source.path in seen:
            continue
        seen.add(source.path)
        if is_table(source.path):
            for row, file in MediaTable(source.path).files():
                fingerprint = file.fingerprint() if file is not None else ""
                yield FoundFile(source, file, fingerprint, row.number, row.kind, row.problem)
            continue
        for file in list_source(source.path):
            yield FoundFile(source, file, file.fingerprint())


def with_rows(files: Iterable[FoundFile]) -> Iterator[tuple[FoundFile, TableRow | None]]:
    """Files with their tables' rows, read again as they are needed: many rows' texts are too much to hold.

    The files must come in the order of `find_files`.
    """
    for path, group in groupby(files, key=lambda found: found.source.path):
        rows = MediaTable(path).rows() if is_table(path) else iter(())
        for found in group:
            row = next((row for row in rows if row.number == found.row), None) if found.row else None
            yield found, row
