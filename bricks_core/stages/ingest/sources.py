"""The files of a run's sources, each an item of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bricks_core.spec.ingest import IngestSpec, Source
from bricks_core.spec.manifest import content_id
from bricks_core.storage.store import SourceFile, list_source


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
