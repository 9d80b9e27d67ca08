"""Items of what a caption artifact of schema 1 knows: answers that were paid for, and captions by measuring.

Which frames a model was shown is told nowhere. They are chosen again, by looking at the clip once as was done then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import cv2

from bricks_core.errors import BricksError
from bricks_core.judge.pictures import see
from bricks_core.spec.caption import CaptionSpec
from bricks_core.stages.caption.prompt import image_prompt, video_prompt
from bricks_core.stages.caption.sources import PICTURES, Answer, CaptionTask, Description, Recipes, Sight
from bricks_core.storage.earlier import Cut, Derived, Earlier, Left
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.store import Store

ASKED = "c81ec5e282d0bd9f"
"""Of the prompts of then, with default settings: an answer to another prompt is another answer."""
EMPTY = "the answer is empty"
_PICTURES_THEN = 1
_COLUMNS = ["id", "kind", "status", "text", "reason", "by", "prompt_tokens", "output_tokens"]
_AT_ONCE = 256

Rows = Mapping[str, Mapping[str, Any]]


def derived(earlier: Earlier) -> Iterator[Derived | Left]:
    """Answers, and what was seen of the clips they are about; or captions by measuring. Those that tables give are no
    items."""
    spec = CaptionSpec.model_validate(earlier.spec)
    if spec.provider == "given":
        return
    kind = "answer" if spec.provider == "openai" else "description"
    rows = {row["id"]: row for row in earlier.rows("captions", _COLUMNS)}
    cuts = earlier.needs["clip"].cuts if "clip" in earlier.needs else {}
    for name in rows.keys() - cuts.keys():
        del rows[name]
        yield Left(kind, "the clip is not known any more")
    recipes = Recipes.of(spec)
    tasks = [task for task in _tasks(cuts) if _name(task) in rows or task.image_id in rows]
    if spec.provider == "measured":
        yield from (_described(task, rows, recipes) for task in tasks)
    elif _prompts() != ASKED or PICTURES != _PICTURES_THEN:
        yield from (Left(kind, "the same is asked in other words today") for row in rows.values() if _is_paid(row))
    else:
        yield from _answered(tasks, rows, spec, earlier)


def _tasks(cuts: Mapping[str, Cut]) -> Iterator[CaptionTask]:
    """What the stage would do with these clips and images, were they all kept."""
    images = {cut.clip_id: (name, cut) for name, cut in cuts.items() if cut.kind == "image" and not cut.is_given}
    for name, cut in cuts.items():
        about: dict[str, Any] = {"id": "", "keys": (), "key": cut.file.key, "sha256": cut.file.sha256}
        if cut.kind == "video":
            task = CaptionTask(
                **about,
                clip_id=name,
                kind="video",
                source=cut.source_sha256,
                first_frame=cut.first_frame,
                end_frame=cut.first_frame + cut.num_frames,
                fps=cut.fps,
            )
            if name in images:
                image_id, image = images[name]
                task = task._replace(image_id=image_id, image_frame=image.first_frame)
            yield task
        elif cut.is_given:
            yield CaptionTask(
                **about, clip_id=cut.clip_id, kind="image", source=cut.source_sha256, image_id=name, image_frame=0
            )


def _name(task: CaptionTask) -> str:
    """The id of the clip, or of the image that is by itself."""
    return task.clip_id if task.kind == "video" else task.image_id


def _described(task: CaptionTask, rows: Rows, recipes: Recipes) -> Derived | Left:
    image = rows.get(task.image_id, {})
    if task.kind == "image":
        seen = image["status"] != "not_enough_information"
        status, reason = (
            ("single_image", "all its pictures are the same") if seen else (image["status"], image["reason"])
        )
        found = Description(image=image["text"], status=status, reason=reason)
    else:
        video = rows.get(task.clip_id, {})
        if not video or not image:
            return Left("description", "what its middle picture shows was not told")
        said = video["text"]
        found = Description(video=said, image=image["text"])
        if not said:
            found = Description(image=image["text"], status=video["status"], reason=video["reason"])
    return Derived(recipes.description(task), found.model_dump(), by="measured")


def _answered(
    tasks: Sequence[CaptionTask], rows: Rows, spec: CaptionSpec, earlier: Earlier
) -> Iterator[Derived | Left]:
    cv2.setNumThreads(1)
    recipes = Recipes.of(spec)
    left = iter(tasks)
    while some := list(islice(left, _AT_ONCE)):
        sights: dict[str, Sight | str] = {}

        def look(task: CaptionTask, sights: dict[str, Sight | str] = sights) -> None:
            sights[_name(task)] = _sight(task, rows, spec, earlier)

        in_threads(look, some, num_cores())
        for task in some:
            sight = sights[_name(task)]
            if isinstance(sight, str):
                yield Left("answer", sight)
                # The image's question names its frame alone, so that its answer is known all the same.
                sight = Sight(status="no_movement", image_is_plain=_is_plain(rows.get(task.image_id)))
            else:
                yield Derived(recipes.sight(task), sight.model_dump())
            for question in recipes.questions(task, sight):
                row = rows.get(task.clip_id if question.kind == "video" else task.image_id)
                if row is not None and _is_paid(row):
                    yield _answer(question.recipe, row)


def _sight(task: CaptionTask, rows: Rows, spec: CaptionSpec, earlier: Earlier) -> Sight | str:
    """What is seen of a clip; or why that cannot be told."""
    plain = _is_plain(rows.get(task.image_id))
    if task.kind == "image":
        return Sight(image_is_plain=plain)
    wanted = [round(share * (task.num_frames - 1)) for share in spec.frame_shares]
    row = rows.get(task.clip_id)
    status, reason = ("ok", "") if row is None or _is_paid(row) else (row["status"], row["reason"])
    if status == "ok" and len(wanted) > 1:  # then one may have been moved to where something else is to be seen
        if not earlier.may_decode:
            return "which frames were shown is only known when the clips are decoded: leave --no-decode out"
        try:
            wanted = _chosen(task, spec, earlier.store)
        except BricksError as error:
            return f"the clip cannot be looked at ({error})"
    frames = [task.first_frame + frame for frame in wanted]
    return Sight(frames=frames, status=status, reason=reason, image_is_plain=plain)


def _chosen(task: CaptionTask, spec: CaptionSpec, store: Store) -> list[int]:
    with store.local(task.key, sha256=task.sha256) as path:
        return see(path, task.num_frames, task.fps, spec.frame_shares).chosen


def _answer(recipe: Any, row: Mapping[str, Any]) -> Derived:
    refused = row["reason"] if row["status"] == "failed" and row["reason"] != EMPTY else ""
    tokens = {name: row[name] for name in ("prompt_tokens", "output_tokens")}
    answer = Answer(text=row["text"], model=row["by"], refused=refused, **tokens)
    return Derived(recipe, answer.model_dump(), by=row["by"], cost={"calls": 1, **tokens})


def _is_paid(row: Mapping[str, Any]) -> bool:
    """Whether a model was asked."""
    return bool(row["by"] != "measured")


def _is_plain(row: Mapping[str, Any] | None) -> bool:
    return row is not None and not _is_paid(row) and row["status"] == "not_enough_information"


def _prompts() -> str:
    spec = CaptionSpec()
    return hashlib.sha256((video_prompt(spec) + image_prompt(spec)).encode()).hexdigest()[:16]
