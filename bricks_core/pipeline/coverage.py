"""How many clips each training bucket can use, known before a GPU is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bricks_core.pipeline.plan import Step
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns
from bricks_core.video.buckets import ClipSize, Coverage, coverage


def bucket_coverage(run: BrickRun, store: Store, steps: list[Step]) -> tuple[str, Coverage] | None:
    """How many clips each training bucket can use, from the last stage that knows: its name, and the coverage.

    None while no stage has cut clips.
    """
    if run.spec.train is None:
        return None
    manifests = {step.stage.name: step.manifest for step in steps if step.state == "cached" and step.manifest}
    if "clip" not in manifests:
        return None
    kept = None
    if "score" in manifests:
        scores = _columns(store, manifests["score"], "scores", ["id", "state"])
        kept = {score["id"] for score in scores if score["state"] == "kept"}
    clips = (
        ClipSize(clip["num_frames"], clip["height_px"], clip["width_px"])
        for clip in _columns(store, manifests["clip"], "clips", ["id", "num_frames", "height_px", "width_px"])
        if kept is None or clip["id"] in kept
    )
    # A later phase may ask for the same shape again: it is one row.
    buckets = {
        (bucket.num_frames, bucket.resolution, bucket.frame_interval): bucket
        for phase in run.spec.train.phases
        for bucket in phase.buckets
    }
    counted = coverage(clips, list(buckets.values()), min_scale=run.spec.latents.min_scale)
    return "clip" if kept is None else "score", counted


def _columns(store: Store, manifest: Manifest, table: str, names: list[str]) -> Iterator[dict[str, Any]]:
    """A few columns of a table that can be large: rows of it, checked one by one, would take seconds."""
    with Artifact(store, manifest).local(manifest.tables[table].key) as file:
        yield from read_columns(file, names)
