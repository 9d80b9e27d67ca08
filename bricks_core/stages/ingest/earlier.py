"""Items of what an ingest artifact of schema 1 knows: which films were probed, and what came out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bricks_core.spec.items import recipe
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


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in FACTS}
    return facts | {"state": row["state"], "reason": row["reason"], "num_damaged_frames": row["num_corrupt_frames"]}
