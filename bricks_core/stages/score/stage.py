"""Measure every clip, alone; then judge them together: percentiles, repetitions, and the held-out split.

Measures are items, so another filter or split reads numbers and decodes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import ValidationError

from bricks_core.errors import DataError, NoSuchObject
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Given
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.score import Score, ScoreSpec
from bricks_core.spec.strict import Strict
from bricks_core.stages.score.judgement import Judgement, Said
from bricks_core.stages.score.motion import Pixels, measure, to_luma
from bricks_core.storage.in_order import in_order
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.items import digest_of, seconds_since
from bricks_core.storage.work import Joined, Work
from bricks_core.video.motion import small_size
from bricks_core.video.read import Frame, frames

log = logging.getLogger("bricks")


class Sides(Strict):
    """runs/<run>/sides.json: on which side of the split each film has come, while the split is asked for alike."""

    held_out_share: float
    split_seed: int
    sides: dict[str, Literal["train", "held_out"]]
    """By video."""


class ScoreTask(NamedTuple):
    """A clip to measure, or an image that stands for itself."""

    id: str
    """The key of its measures: a clip is measured once, whatever it is called."""
    clip_id: str
    item: str
    """The clip's."""
    key: str
    sha256: str
    num_frames: int
    fps: float
    video_id: str
    kind: Literal["video", "image"] = "video"

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (ItemKey("measures", self.id),)


def tasks(spec: ScoreSpec, work: Work) -> Iterator[ScoreTask]:
    """All clips, and the images that belong to no clip."""
    for image in work.rows("clip", "images", Image):
        if image.clip_id == image.id:
            made = _measures_of(image.item).key.key
            yield ScoreTask(made, image.id, image.item, image.key, image.sha256, 1, 0.0, image.video_id, "image")
    for clip in work.rows("clip", "clips", Clip):
        made = _measures_of(clip.item).key.key
        yield ScoreTask(made, clip.id, clip.item, clip.key, clip.sha256, clip.num_frames, clip.fps, clip.video_id)


def run(spec: ScoreSpec, work: Work) -> None:
    """Measure every clip: one thread per core."""
    cv2.setNumThreads(1)
    pending = work.todo(tasks(spec, work), unit="clips")
    work.share(pending, partial(_measure, work=work), partial(in_threads, num_threads=num_cores()))


def join(spec: ScoreSpec, work: Work) -> Joined:
    """Judge all clips together. Films that have come on a side of the split before, in this run, stay there."""
    keys = [task.keys[0] for task in tasks(spec, work)]
    work.items.load(keys)
    said = {row.id: Said(row.split, row.video_id) for row in work.rows("ingest", "given", Given)}
    before = _sides_before(spec, work)
    judgement = Judgement(spec, said, before)
    for score in _scores(spec, work):
        judgement.add(score)
    judgement.judge()
    sides = judgement.sides()
    _keep_sides(before | sides, spec, work)
    judged = (judgement.of(score) for score in _scores(spec, work))
    # Only where what came before matters: else every run that asks for the same finds the same.
    depends_on = {"sides": digest_of(map(" ".join, sides.items()))} if judgement.depends_on_before else {}
    return Joined(
        {"scores": in_order(judged, Score)},
        items=keys,
        counts=judgement.counts(),
        depends_on=depends_on,
    )


def _measures_of(item: str) -> Recipe:
    return recipe("measures", of=item)


def _measure(task: ScoreTask, work: Work) -> None:
    began_s = time.monotonic()
    with work.local("clip", task.key, sha256=task.sha256) as path:
        if task.kind == "image":
            measured = measure_image(task, path)
        else:
            with closing(frames(path)) as film:
                measured = measure_clip(task, film)
    work.items.put(_measures_of(task.item), measured, cost=seconds_since(began_s))
    work.progress.advance(note=f"motion {measured['motion']:.0f}")


def measure_clip(task: ScoreTask, film: Iterable[Frame]) -> dict[str, Any]:
    """A clip's numbers: the measured fields of a `Score`.

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
    return measured


def measure_image(task: ScoreTask, path: Path) -> dict[str, Any]:
    """The numbers of an image that stands for itself: as of a clip of one frame.

    Raises:
        DataError: it cannot be decoded.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise DataError(f"{task.key} cannot be decoded: run the clip stage again.")
    height, width = picture.shape[:2]
    small = cv2.resize(picture, small_size(width, height), interpolation=cv2.INTER_AREA)
    return measure([to_luma(np.asarray(small, np.uint8))], 1, 0.0)


def score_of(task: ScoreTask, measured: dict[str, Any]) -> Score:
    """A row, kept and in training until all clips are known: join() judges."""
    return Score(
        id=task.clip_id,
        kind=task.kind,
        video_id=task.video_id,
        num_frames=task.num_frames,
        state="kept",
        reasons=[],
        split="train",
        **measured,
    )


def _scores(spec: ScoreSpec, work: Work) -> Iterator[Score]:
    for task in tasks(spec, work):
        yield score_of(task, work.items.need(task.keys[0]).answer)


def _sides_before(spec: ScoreSpec, work: Work) -> dict[str, Literal["train", "held_out"]]:
    """The sides that films of this run came on before, unless another share or seed is asked for now."""
    if work.run is None:
        return {}
    try:
        before = Sides.model_validate_json(work.store.get(_sides_key(work.run.name)))
    except NoSuchObject:
        return {}
    except ValidationError:
        log.warning("%s cannot be read: the split is drawn anew.", _sides_key(work.run.name))
        return {}
    same = (before.held_out_share, before.split_seed) == (spec.held_out_share, spec.split_seed)
    return before.sides if same else {}


def _keep_sides(sides: dict[str, Literal["train", "held_out"]], spec: ScoreSpec, work: Work) -> None:
    if work.run is not None:
        kept = Sides(held_out_share=spec.held_out_share, split_seed=spec.split_seed, sides=dict(sorted(sides.items())))
        work.store.put(_sides_key(work.run.name), kept.model_dump_json(indent=1).encode())


def _sides_key(run: str) -> str:
    return f"runs/{run}/sides.json"
