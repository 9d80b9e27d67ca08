"""Items of what an ingest artifact of schema 1 knows: which films were probed, and what came out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bricks_core.errors import BricksError
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.items import recipe
from bricks_core.spec.manifest import content_id
from bricks_core.stages.ingest.sources import FoundFile, find_files
from bricks_core.stages.ingest.stage import Content, _content
from bricks_core.storage.earlier import Derived, Earlier, Left

FACTS = (
    *("container", "codec", "pixel_format", "stream_index", "width_px", "height_px", "rotation_deg", "num_frames"),
    *("fps", "variable_frame_rate", "duration_s", "colour_primaries", "colour_transfer", "colour_range", "hdr"),
)
"""Of a row, in the words of `Facts`; what these do not say was never asked for."""


def derived(earlier: Earlier) -> Iterator[Derived | Left]:
    """The films and pictures that could be read. Why another could not may have been a limit, which is no answer."""
    seen = set()
    for row in earlier.rows("videos", ["kind", "sha256", "state", "reason", "num_corrupt_frames", *FACTS]):
        kind = "picture" if row["kind"] == "image" else "film"
        if row["state"] in ("ok", "damaged"):
            if (kind, row["sha256"]) not in seen:
                seen.add((kind, row["sha256"]))
                yield Derived(recipe(kind, sha256=row["sha256"]), _facts(row))
        elif row["state"] == "unreadable" and row["sha256"]:
            yield Left(kind, "it could not be read, perhaps because of a limit: it is looked at again")
    yield from _contents(earlier)


def _contents(earlier: Earlier) -> Iterator[Derived | Left]:
    """Of objects in buckets that are still what they were: which content they have, so that it need not be read."""
    spec = IngestSpec.model_validate(earlier.spec)
    buckets = [source for source in spec.sources if source.path.startswith("s3://")]
    if not buckets:
        return
    known = {str(part.get("item")): part for part in earlier.parts}
    for source in buckets:
        try:
            for found in find_files(spec.model_copy(update={"sources": [source]})):
                videos = known.get(_id_then(found), {}).get("rows", {}).get("videos")
                if videos:
                    yield Derived(_content(found), Content(sha256=videos[0]["sha256"]).model_dump())
        except BricksError as error:
            yield Left("content", f"its source cannot be listed ({error})")


def _id_then(found: FoundFile) -> str:
    """What a file's part is called: as long as the file is the same."""
    if found.file is None:
        return ""
    about = (found.file.name, found.file.size_bytes, found.fingerprint)
    return content_id("ingest", found.source.path, *([found.row] if found.row else []), *about)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in FACTS}
    return facts | {"state": row["state"], "reason": row["reason"], "num_damaged_frames": row["num_corrupt_frames"]}
