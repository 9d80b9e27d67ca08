"""The files of a run's sources, each an item of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bricks_core.spec.ingest import IngestSpec, Source
from bricks_core.spec.manifest import content_id
from bricks_core.storage.store import SourceFile, list_source

BESIDE_FILMS = frozenset(
    {".ass", ".bmp", ".csv", ".jpeg", ".jpg", ".json", ".jsonl", ".md", ".nfo", ".part", ".pdf", ".png", ".srt"}
    | {".tsv", ".txt", ".vtt", ".webp", ".xml", ".yaml", ".yml", ".ytdl"}
)
"""What downloaders, editors and people leave beside films: facts, subtitles, posters, half a download."""


@dataclass(frozen=True)
class FoundFile:
    """A file of a source, whatever it is."""

    id: str
    place: int
    """The number of its source in the run file: the first of two equal films is the one kept."""
    source: Source
    file: SourceFile


def find_files(spec: IngestSpec) -> Iterator[FoundFile]:
    """Every file of every source, in the order of the run file, then by name. A source named twice is listed once."""
    seen = set()
    for place, source in enumerate(spec.sources):
        if source.path in seen:
            continue
        seen.add(source.path)
        for file in list_source(source.path):
            found_id = content_id("ingest", source.path, file.name, file.size_bytes, file.fingerprint())
            yield FoundFile(found_id, place, source, file)


def is_beside_films(name: str) -> bool:
    """Whether a file's name says that it is no film: it gets a row, but nobody wonders why it cannot be decoded."""
    return Path(name).suffix.lower() in BESIDE_FILMS
