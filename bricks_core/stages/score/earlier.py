"""Items of what a score artifact of schema 1 knows: the measures of its clips."""

from __future__ import annotations

from collections.abc import Iterator

from bricks_core.stages.score.stage import _measures_of
from bricks_core.storage.earlier import Derived, Earlier, Left

MEASURED = (
    *("motion", "motion_x", "motion_y", "camera_x", "camera_y", "sharpness", "brightness", "contrast", "plain_share"),
    *("duplicate_frame_share", "picture_fps", "perceptual_hash"),
)


def derived(earlier: Earlier) -> Iterator[Derived | Left]:
    """The measures of every clip, and of images that stand for themselves."""
    cuts = earlier.needs["clip"].cuts if "clip" in earlier.needs else {}
    for row in earlier.rows("scores", ["id", *MEASURED]):
        if (cut := cuts.get(row["id"])) is None:
            yield Left("measures", "the clip is not known any more")
        else:
            yield Derived(_measures_of(cut.item), {name: row[name] for name in MEASURED})
