"""Score every clip, alone; then judge them together: percentiles, repetitions, and the held-out split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from bricks_core.errors import DataError
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Given
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Score, ScoreSpec
from bricks_core.spec.strict import Row
from bricks_core.stages.score.judgement import Judgement, Said
from bricks_core.stages.score.motion import Pixels, measure, to_luma
from bricks_core.storage.in_order import in_order
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.work import Joined, Work
from bricks_core.video.motion import small_size
from bricks_core.video.read import Frame, frames

MAX_CLIPS_PER_ITEM = 32


class Task(NamedTuple):
    """A clip to score, or an image that stands for itself."""

    id: str
    key: str
    num_frames: int
    fps: float
    kind: Literal["video", "image"] = "video"


@dataclass(frozen=True)
class ScoreItem:
    """Clips of one video, at most 32: what a kill costs at most."""

    id: str
    video_id: str
    tasks: tuple[Task, ...]


def items(spec: ScoreSpec, work: Work) -> list[ScoreItem]:
    """All clips, by video; and the images that belong to no clip."""
    by_video: dict[str, list[Task]] = {}
    for image in work.rows("clip", "images", Image):
        if image.clip_id == image.id:
            by_video.setdefault(image.video_id, []).append(Task(image.id, image.key, 1, 0.0, "image"))
    for clip in work.rows("clip", "clips", Clip):
        by_video.setdefault(clip.video_id, []).append(Task(clip.id, clip.key, clip.num_frames, clip.fps))
    found = []
    for video_id, tasks in sorted(by_video.items()):
        tasks.sort()
        for first in range(0, len(tasks), MAX_CLIPS_PER_ITEM):
            part = tuple(tasks[first : first + MAX_CLIPS_PER_ITEM])
            found.append(ScoreItem(content_id("score", video_id, *(task.id for task in part)), video_id, part))
    return found


def run(spec: ScoreSpec, work: Work) -> None:
    """Measure every clip: one thread per core, each decoding and measuring one item's clips."""
    cv2.setNumThreads(1)
    todo = work.todo(items(spec, work), unit="groups of clips")
    in_threads(lambda item: _score(item, work), todo, num_cores())


def join(spec: ScoreSpec, work: Work) -> Joined:
    """Judge all clips together."""
    said = {row.id: Said(row.split, row.video_id) for row in work.rows("ingest", "given", Given)}
    judgement = Judgement(spec, said)
    for score in work.part_rows("scores", Score):
        judgement.add(score)
    judgement.judge()
    judged = (judgement.of(score) for score in work.part_rows("scores", Score))
    return Joined({"scores": in_order(judged, Score)}, counts=judgement.counts())


def _score(item: ScoreItem, work: Work) -> None:
    scores = []
    for task in item.tasks:
        with work.local("clip", task.key) as path:
            if task.kind == "image":
                scores.append(score_image(task, item.video_id, path))
                continue
            with closing(frames(path)) as film:
                scores.append(score_clip(task, item.video_id, film))
    work.done(item.id, {"scores": list[Row](scores)}, note=f"motion {max(each.motion for each in scores):.0f}")


def score_clip(task: Task, video_id: str, film: Iterable[Frame]) -> Score:
    """A clip's numbers. Kept and in training until all clips are known: join() judges.

    Raises:
        DataError: the clip has not the frames that its row says.
    """
    num_read = 0

    def pictures() -> Iterator[Pixels]:
        nonlocal num_read
        for frame in film:
            num_read += 1
            yield to_luma(frame.small_bgr(*small_size(frame.picture.width, frame.picture.height)))

    measured = measure(pictures(), task.num_frames, task.fps)
    if num_read != task.num_frames:
        raise DataError(f"{task.key} has {num_read} frames, its row says {task.num_frames}: run the clip stage again.")
    return _row(task, video_id, measured)


def score_image(task: Task, video_id: str, path: Path) -> Score:
    """The numbers of an image that stands for itself: as of a clip of one frame.

    Raises:
        DataError: it cannot be decoded.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise DataError(f"{task.key} cannot be decoded: run the clip stage again.")
    height, width = picture.shape[:2]
    small = cv2.resize(picture, small_size(width, height), interpolation=cv2.INTER_AREA)
    return _row(task, video_id, measure([to_luma(np.asarray(small, np.uint8))], 1, 0.0))


def _row(task: Task, video_id: str, measured: dict[str, Any]) -> Score:
    return Score(
        id=task.id,
        kind=task.kind,
        video_id=video_id,
        num_frames=task.num_frames,
        state="kept",
        reasons=[],
        split="train",
        **measured,
    )
