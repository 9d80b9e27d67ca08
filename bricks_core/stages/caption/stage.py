"""Caption every kept clip and every image of one: each caption has a status, and only ok ones go on.

What is asked of a model is an item of its own (sources.py). What a run's rules make of an answer is decided when the
table is made: a changed rule that is not in the prompt asks nothing again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import Any, cast

import cv2

from bricks_core.errors import AlteredObject
from bricks_core.judge import measured
from bricks_core.judge.pictures import NOTHING, see, see_picture
from bricks_core.spec.caption import Caption, CaptionSpec, CaptionStatus
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Given
from bricks_core.spec.items import ItemKey
from bricks_core.stages.caption.gate import judge, num_words, tidied
from bricks_core.stages.caption.sources import (
    Answer,
    CaptionTask,
    Description,
    Kind,
    Recipes,
    Sight,
    asked,
    kept_ids,
    kept_media,
)
from bricks_core.storage.in_order import in_order
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.items import seconds_since
from bricks_core.storage.work import Joined, Work


def tasks(spec: CaptionSpec, work: Work) -> Iterator[CaptionTask]:
    """The clips that the filter kept with the images of these, and the images that it kept by themselves. Captions that
    tables give are no work."""
    if spec.provider == "given":
        return
    if work.tasks is None:
        found = list(_tasks(spec, work))
        if spec.provider == "openai" and any(task.sight is None for task in found):
            yield from found
            return
        work.tasks = found  # nothing that could come moves their keys any more
    yield from work.tasks


def _tasks(spec: CaptionSpec, work: Work) -> Iterator[CaptionTask]:
    recipes = Recipes.of(spec)
    first_of = recipes.description if spec.provider == "measured" else recipes.sight
    found = [(task, first_of(task).key) for task in kept_media(work)]
    there = work.items.load(key for _, key in found) if spec.provider == "openai" else set()
    sights = work.items.answers((key for _, key in found if key in there), Sight)
    for task, key in found:
        sight = next(sights) if key in there else None
        questions = () if sight is None else tuple(each.recipe.key for each in recipes.questions(task, sight))
        yield task._replace(id=recipes.task_id(task, key), keys=(key, *questions), sight=sight)


def run(spec: CaptionSpec, work: Work) -> None:
    """Caption clips, several at once: as many as there are cores, or as calls may be in flight.

    Raises:
        TryLater: caption.max_calls is reached, or the server's rate limit.
        SpecError, ServiceUnavailable: see `VisionModel`.
    """
    cv2.setNumThreads(1)
    found = list(tasks(spec, work))
    pending = work.todo(found, unit="clips")
    if spec.provider == "measured":
        recipes = Recipes.of(spec)
        at_once = partial(in_threads, num_threads=num_cores())
        work.share(pending, lambda task: _measure(task, recipes, spec, work), at_once)
    elif spec.provider == "openai" and pending:
        from bricks_core.stages.caption.asking import ask_about  # the model's client takes a second to import

        still = {task.keys for task in pending}
        proven = any(len(task.keys) > 1 and task.keys not in still for task in found if work.is_mine(task.id))
        ask_about(pending, spec, work, proven=proven)


def join(spec: CaptionSpec, work: Work) -> Joined:
    """All captions by id, counted by status, and what they cost in tokens."""
    statuses: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    used: list[ItemKey] = []
    rows = in_order(_counted(_rows(spec, work, used), statuses, tokens), Caption)
    # All are made and counted before the first one comes, since they are sorted.
    rows = chain(list(islice(rows, 1)), rows)
    counts = {"ok": statuses.pop("ok", 0), **dict(sorted(statuses.items())), **{k: n for k, n in tokens.items() if n}}
    return Joined({"captions": rows}, items=used, counts=counts)


def _measure(task: CaptionTask, recipes: Recipes, spec: CaptionSpec, work: Work) -> None:
    began_s = time.monotonic()
    with work.local("clip", task.key, sha256=task.sha256) as path:
        is_image = task.kind == "image"
        seen = see_picture(path) if is_image else see(path, task.num_frames, task.fps, spec.frame_shares)
    found = Description(status=seen.status, reason=seen.reason)
    if seen.status != "not_enough_information":
        scene = measured.measure(seen)
        found.image = measured.image_sentences(scene)
        if seen.status == "ok" and task.kind == "video":
            found.video = measured.video_sentences(scene)
            if not found.video:
                found.status, found.reason = "no_movement", "nothing in it moves far enough to be told"
    work.items.put(recipes.description(task), found, cost=seconds_since(began_s))
    work.progress.advance(note=(found.video or found.image)[:60] or found.status.replace("_", " "))


def _rows(spec: CaptionSpec, work: Work, used: list[ItemKey]) -> Iterator[Caption]:
    """Every caption, in no order. `used`: takes the items they were made from."""
    if spec.provider == "given":
        yield from _given_rows(spec, work)
        return
    found = list(tasks(spec, work))
    work.items.load(key for task in found for key in task.keys)
    used += [key for task in found for key in task.keys]
    if spec.provider == "measured":
        described = work.items.answers((task.keys[0] for task in found), Description)
        for task, description in zip(found, described, strict=True):
            yield from _measured_rows(task, description, spec)
    else:
        answers = work.items.answers((key for task in found for key in task.keys[1:]), Answer)
        for task in found:
            yield from _asked_rows(task, answers, spec)


def _measured_rows(task: CaptionTask, found: Description, spec: CaptionSpec) -> Iterator[Caption]:
    make = partial(_row, task, spec, by="measured")
    if task.kind == "video":
        yield make("video", text=found.video, status=found.status, reason=found.reason)
    if task.image_id:
        is_seen = found.status != "not_enough_information"
        status: CaptionStatus = "ok" if is_seen else found.status
        yield make("image", text=found.image, status=status, reason="" if is_seen else found.reason)


def _asked_rows(task: CaptionTask, answers: Iterator[Answer], spec: CaptionSpec) -> Iterator[Caption]:
    """`answers`: those to the task's questions come next."""
    sight = task.sight
    if sight is None:
        raise AlteredObject(task.keys[0].record, "is missing.")
    make = partial(_row, task, spec)
    said = {kind: next(answers) for kind in asked(task, sight)}
    if "video" in said:
        yield make("video", **_said(said["video"]))
    elif task.kind == "video":
        yield make("video", by="measured", status=sight.status, reason=sight.reason)
    if "image" in said:
        yield make("image", **_said(said["image"]))
    elif task.image_id:
        yield make("image", by="measured", status="not_enough_information", reason=NOTHING)


def _said(answer: Answer) -> dict[str, Any]:
    """The fields of a caption that an answer fills."""
    return {
        "text": answer.text,
        "by": answer.model,
        "status": "failed" if answer.refused else "ok",
        "reason": answer.refused,
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
    }


def _row(
    task: CaptionTask,
    spec: CaptionSpec,
    kind: Kind,
    *,
    by: str,
    text: str = "",
    status: CaptionStatus = "ok",
    reason: str = "",
    **tokens: int,
) -> Caption:
    """A caption's row; a text that would be ok goes through the gate first, whoever wrote it."""
    text = tidied(text)
    if status == "ok":
        status, reason = judge(text, spec)
    return Caption(
        id=task.clip_id if kind == "video" else task.image_id,
        clip_id=task.clip_id,
        kind=kind,
        status=status,
        text=text,
        reason=reason,
        num_words=num_words(text),
        by=by,
        **tokens,
    )


def _given_rows(spec: CaptionSpec, work: Work) -> Iterator[Caption]:
    """The tables' captions, which come in the order of their ids, as clips and images do: one reading serves all."""
    kept = kept_ids(work)
    takers: list[tuple[str, str, Kind]] = [
        (clip.id, clip.id, "video") for clip in work.rows("clip", "clips", Clip) if clip.id in kept
    ]
    takers += [(each.id, each.clip_id, "image") for each in work.rows("clip", "images", Image) if each.clip_id in kept]
    with closing(cast(Generator[Given, None, None], work.rows("ingest", "given", Given))) as given:
        row = next(given, None)
        for id_, clip_id, kind in sorted(takers):
            while row is not None and row.id < id_:
                row = next(given, None)
            yield _given_row(id_, clip_id, kind, row if row is not None and row.id == id_ else None, spec)


def _given_row(id_: str, clip_id: str, kind: Kind, given: Given | None, spec: CaptionSpec) -> Caption:
    """A table's caption as it stands there: whoever chose it knows better than the rules, which are only told."""
    if given is None:
        status, reason = "not_given", "it was cut from a film, and only tables give captions"
    elif not given.text.strip():
        status, reason = "not_given", "its row has no caption"
    else:
        verdict, broken = judge(given.text, spec)
        status, reason = "ok", "" if verdict == "ok" else f"kept as it was given: {broken}"
    text = given.text if given is not None and status == "ok" else ""
    return Caption(
        id=id_,
        clip_id=clip_id,
        kind=kind,
        status=status,
        text=text,
        reason=reason,
        num_words=num_words(text),
        by=(given.caption_by if given is not None else "") or "given",
    )


def _counted(rows: Iterable[Caption], statuses: Counter[str], tokens: Counter[str]) -> Iterator[Caption]:
    for row in rows:
        statuses[row.status.replace("_", " ")] += 1
        if row.status == "ok" and row.reason:
            statuses["of the ok ones: given, and against a rule"] += 1
        tokens["prompt tokens"] += row.prompt_tokens
        tokens["output tokens"] += row.output_tokens
        yield row
