"""How many clips each training bucket can use, known before a GPU is asked for."""

from __future__ import annotations

from bricks_core.pipeline.plan import Step
from bricks_core.spec.clip import Clip
from bricks_core.spec.run import BrickRun
from bricks_core.spec.score import Score
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.store import Store
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
        scores = Artifact(store, manifests["score"]).rows("scores", Score)
        kept = {score.id for score in scores if score.state == "kept"}
    clips = (
        ClipSize(clip.num_frames, clip.height_px, clip.width_px)
        for clip in Artifact(store, manifests["clip"]).rows("clips", Clip)
        if kept is None or clip.id in kept
    )
    # A later phase may ask for the same shape again: it is one row.
    buckets = {
        (bucket.num_frames, bucket.resolution, bucket.frame_interval): bucket
        for phase in run.spec.train.phases
        for bucket in phase.buckets
    }
    counted = coverage(clips, list(buckets.values()), min_scale=run.spec.latents.min_scale)
    return "clip" if kept is None else "score", counted
