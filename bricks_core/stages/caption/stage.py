"""Caption every kept clip and every image of one: each caption has a status, and only ok ones go on.

What is asked of a model is an item of its own, named by the pictures shown, the prompt, the model and its sampling: a
clip that is cut again, a film that is renamed, another filter or another run asks nothing again. What a run's rules
make of an answer is decided when the table is made.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
from pydantic import BaseModel

from bricks_core.errors import TryLater
from bricks_core.spec.caption import Caption, CaptionSpec, CaptionStatus
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Given
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.score import Score
from bricks_core.stages.caption import measured
from bricks_core.stages.caption.gate import judge, num_words, tidied
from bricks_core.stages.caption.pictures import NOTHING, Seen, read_picture, see, see_picture, shows_nothing, to_jpeg
from bricks_core.stages.caption.prompt import image_prompt, video_prompt
from bricks_core.storage.in_order import in_order
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.work import Joined, Work
from bricks_core.video.read import read_rgb

if TYPE_CHECKING:
    from bricks_core.stages.caption.vision_model import VisionModel

PICTURES = 1
"""Version of how frames become the pictures that are shown."""

Kind = Literal["video", "image"]


class Sight(BaseModel):
    """What can be told of a clip, or of an image by itself, before anybody is asked."""

    frames: list[int] = []
    """Those that stand for the clip, counted in its source."""
    status: CaptionStatus = "ok"
    reason: str = ""
    image_is_plain: bool = False
    """Whether the clip's image shows nothing."""


class Description(BaseModel):
    """Captions by measuring. Without a text there is a status."""

    video: str = ""
    image: str = ""
    status: CaptionStatus = "ok"
    """Of the clip."""
    reason: str = ""


class CaptionTask(NamedTuple):
    """A kept clip with its middle image; or an image that is a file of its own."""

    id: str
    keys: tuple[ItemKey, ...]
    """What is seen of it, and as soon as this is known what is to be asked."""
    clip_id: str
    kind: Kind
    key: str
    sha256: str
    """Of the file."""
    source: str
    """sha256 of what it was cut from."""
    first_frame: int = 0
    """Counted in the source, as the others."""
    end_frame: int = 1
    fps: float = 0.0
    image_id: str = ""
    """The clip's middle image; empty where there is none. Of an image: its own."""
    image_frame: int = -1
    image_key: str = ""
    image_sha256: str = ""

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.first_frame


class Question(NamedTuple):
    """A question to a model: which pictures it is shown, and where these are."""

    recipe: Recipe
    task: CaptionTask
    kind: Kind
    frames: tuple[int, ...]
    """Counted in the source."""

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        return (self.recipe.key,)


def tasks(spec: CaptionSpec, work: Work) -> Iterator[CaptionTask]:
    """The clips that the filter kept with the images of these, and the images that it kept by themselves. Captions that
    tables give are no work."""
    if spec.provider == "given":
        return
    found = list(_kept_media(work))
    there = work.items.load(_first_key(task, spec) for task in found)
    for task in found:
        first = _first_key(task, spec)
        questions: tuple[ItemKey, ...] = ()
        if spec.provider == "openai" and first in there:
            sight = work.items.answer(first, Sight)
            questions = tuple(each.recipe.key for each in _questions(task, sight, spec))
        yield task._replace(id=first.key, keys=(first, *questions))


def run(spec: CaptionSpec, work: Work) -> None:
    """Caption clips, several at once: as many as there are cores, or as calls may be in flight.

    Raises:
        TryLater: caption.max_calls is reached, or the server's rate limit.
        SpecError, ServiceUnavailable: see `VisionModel`.
    """
    cv2.setNumThreads(1)
    pending = list(work.todo(tasks(spec, work), unit="clips"))
    if spec.provider == "measured":
        in_threads(lambda task: _measure(task, spec, work), pending, num_cores())
    elif spec.provider == "openai" and pending:
        _ask_all(pending, spec, work)


def join(spec: CaptionSpec, work: Work) -> Joined:
    """All captions by id, counted by status, and what they cost in tokens."""
    statuses: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    used: list[ItemKey] = []
    rows = in_order(_counted(_rows(spec, work, used), statuses, tokens), Caption)
    rows = _begun(rows)  # counts and keys are whole once the rows are sorted, before the first one comes
    counts = {"ok": statuses.pop("ok", 0), **dict(sorted(statuses.items())), **{k: n for k, n in tokens.items() if n}}
    return Joined({"captions": rows}, items=used, counts=counts)


def _kept_media(work: Work) -> Iterator[CaptionTask]:
    kept = {score.id for score in work.rows("score", "scores", Score) if score.state == "kept"}
    images: dict[str, Image] = {}
    alone: list[CaptionTask] = []
    for image in work.rows("clip", "images", Image):
        if image.clip_id not in kept:
            continue
        if image.video_id == image.id:  # a file of its own, not a frame of the clip's
            task = CaptionTask("", (), image.clip_id, "image", image.key, image.sha256, image.source_sha256)
            alone.append(task._replace(image_id=image.id, image_frame=0, image_key=image.key))
        else:
            images[image.clip_id] = image
    for clip in work.rows("clip", "clips", Clip):
        if clip.id in kept:
            task = CaptionTask(
                "",
                (),
                clip.id,
                "video",
                clip.key,
                clip.sha256,
                clip.source_sha256,
                clip.first_frame,
                clip.end_frame,
                clip.fps,
            )
            found = images.pop(clip.id, None)
            yield (
                task
                if found is None
                else task._replace(
                    image_id=found.id, image_frame=found.frame, image_key=found.key, image_sha256=found.sha256
                )
            )
    yield from alone


def _first_key(task: CaptionTask, spec: CaptionSpec) -> ItemKey:
    """What is done first for a clip."""
    return (_description_of if spec.provider == "measured" else _sight_of)(task, spec).key


def _sight_of(task: CaptionTask, spec: CaptionSpec) -> Recipe:
    return recipe("sight", **_seen_of(task, spec))


def _description_of(task: CaptionTask, spec: CaptionSpec) -> Recipe:
    return recipe("description", **_seen_of(task, spec))


def _seen_of(task: CaptionTask, spec: CaptionSpec) -> dict[str, Any]:
    if task.kind == "image":
        return {"source": task.source, "image": 0}
    span = {"span": [task.first_frame, task.end_frame], "shares": spec.frame_shares}
    return {"source": task.source, **span, "image": task.image_frame if task.image_id else None}


def _questions(task: CaptionTask, sight: Sight, spec: CaptionSpec) -> Iterator[Question]:
    """What has to be asked: nothing that can be told without a model, since it would have to answer the same."""
    if task.kind == "video" and sight.status == "ok":
        yield _question(task, "video", tuple(sight.frames), video_prompt(spec), spec)
    if task.image_id and not sight.image_is_plain:
        yield _question(task, "image", (task.image_frame,), image_prompt(spec), spec)


def _question(task: CaptionTask, kind: Kind, frames: tuple[int, ...], prompt: str, spec: CaptionSpec) -> Question:
    pictures = {"source": task.source, "frames": frames, "max_side_px": spec.max_side_px, "version": PICTURES}
    sampling = {"max_output_tokens": spec.max_output_tokens}
    made = recipe("answer", kind_of=kind, pictures=pictures, prompt=prompt, model=spec.model, sampling=sampling)
    return Question(made, task, kind, frames)


# ---------------------------------------------------------------------------------------------------------- measuring


def _measure(task: CaptionTask, spec: CaptionSpec, work: Work) -> None:
    seen = _seen(task, spec, work)
    found = Description(status=seen.status, reason=seen.reason)
    if seen.status != "not_enough_information":
        scene = measured.measure(seen)
        found.image = measured.image_sentences(scene)
        if seen.status == "ok" and task.kind == "video":
            found.video = measured.video_sentences(scene)
            if not found.video:
                found.status, found.reason = "no_movement", "nothing in it moves far enough to be told"
    work.items.put(_description_of(task, spec), found)
    work.progress.advance(note=(found.video or found.image)[:60] or found.status.replace("_", " "))


def _seen(task: CaptionTask, spec: CaptionSpec, work: Work) -> Seen:
    with work.local("clip", task.key, sha256=task.sha256) as path:
        if task.kind == "image":
            return see_picture(path)
        return see(path, task.num_frames, task.fps, spec.frame_shares)


# -------------------------------------------------------------------------------------------------------------- asking


def _ask_all(pending: Sequence[CaptionTask], spec: CaptionSpec, work: Work) -> None:
    """Look at the clips, then ask what is not answered yet; nothing that another process is asking just now."""
    from bricks_core.stages.caption.vision_model import VisionModel  # its client takes a second to import

    proven = any(True for _ in work.store.list("items/answer/"))
    with VisionModel(spec, proven=proven) as model:
        # One alone first: a wrong key or name then costs one call, not as many as run at once, and no clip more.
        num_looked = 0
        for task in pending:
            num_looked += 1
            _look(task, spec, work)
            for question in _missing([task], spec, work):
                _need_call(model, spec, len(pending), 0)
                _ask(question, spec, work, model)
                break
            if model.num_calls:
                break
        in_threads(lambda each: _look(each, spec, work), pending[num_looked:], num_cores())
        questions = _missing(pending, spec, work)
        left = Counter(question.task.id for question in questions)
        work.progress.advance(sum(1 for task in pending if not left[task.id]))
        shared = work.claims.each(questions, lambda each: each.keys, lambda some: _answered(some, left, work))

        def ask(question: Question) -> None:
            with shared.doing(question):
                note = _ask(question, spec, work, model)
            _one_less(question, left, work, note)

        with shared.coming() as coming:
            in_threads(ask, coming, spec.concurrency, may_begin=lambda num: _need_call(model, spec, len(+left), num))


def _look(task: CaptionTask, spec: CaptionSpec, work: Work) -> None:
    """Choose the frames that stand for a clip, and tell what can be told without a model."""
    made = _sight_of(task, spec)
    if work.items.get(made.key) is not None:
        return
    began_s = time.monotonic()
    if task.kind == "image":
        with work.local("clip", task.key, sha256=task.sha256) as path:
            sight = Sight(image_is_plain=shows_nothing(read_picture(path)))
    else:
        seen = _seen(task, spec, work)
        frames = [task.first_frame + frame for frame in seen.chosen]
        sight = Sight(frames=frames, status=seen.status, reason=seen.reason)
        if task.image_id:
            with work.local("clip", task.image_key, sha256=task.image_sha256) as path:
                sight.image_is_plain = shows_nothing(read_picture(path))
    work.items.put(made, sight, cost={"seconds": round(time.monotonic() - began_s, 3)})


def _missing(some: Iterable[CaptionTask], spec: CaptionSpec, work: Work) -> list[Question]:
    """The questions of clips that were looked at and have no answer yet, each once."""
    asked: dict[ItemKey, Question] = {}
    for task in some:
        for question in _questions(task, work.items.answer(_sight_of(task, spec).key, Sight), spec):
            asked.setdefault(question.recipe.key, question)
    there = work.items.load(asked)
    return [question for key, question in asked.items() if key not in there]


def _answered(some: Sequence[Question], left: Counter[str], work: Work) -> list[bool]:
    """Which questions another process has asked meanwhile."""
    there = work.items.load(each.recipe.key for each in some)
    done = [each.recipe.key in there for each in some]
    for question, is_done in zip(some, done, strict=True):
        if is_done:
            _one_less(question, left, work, "asked by another process")
    return done


def _one_less(question: Question, left: Counter[str], work: Work, note: str) -> None:
    left[question.task.id] -= 1
    if not left[question.task.id]:
        work.progress.advance(note=note)


def _need_call(model: VisionModel, spec: CaptionSpec, num_left: int, num_begun: int) -> bool:
    """Whether another call may be made.

    Raises:
        TryLater: none, and none is under way.
    """
    if spec.max_calls is None or model.num_calls + num_begun + 1 <= spec.max_calls:
        return True
    if num_begun:
        return False
    raise TryLater(
        f"caption.max_calls, {spec.max_calls}, is reached with {num_left} clips left to caption. What is done is kept: "
        "the same command goes on with the next."
    )


def _ask(question: Question, spec: CaptionSpec, work: Work, model: VisionModel) -> str:
    """Show the pictures, ask, and keep the answer. -> what a person would like to see of it"""
    task = question.task
    if question.kind == "image":
        with work.local("clip", task.image_key, sha256=task.image_sha256 or task.sha256) as path:
            jpegs = [to_jpeg(read_picture(path)[..., ::-1], spec.max_side_px)]
        prompt = image_prompt(spec)
    else:
        with work.local("clip", task.key, sha256=task.sha256) as path:
            pictures = read_rgb(path, [frame - task.first_frame for frame in question.frames])
        jpegs = [to_jpeg(picture, spec.max_side_px) for picture in pictures]
        prompt = video_prompt(spec)
    answer = model.ask(prompt, jpegs)
    cost = {"calls": 1, "prompt_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
    work.items.put(question.recipe, answer, by=answer.model, cost=cost)
    return answer.text[:60] or answer.refused[:60]


# ---------------------------------------------------------------------------------------------------------------- rows


def _rows(spec: CaptionSpec, work: Work, used: list[ItemKey]) -> Iterator[Caption]:
    """Every caption, in no order. `used`: takes the items they were made from."""
    if spec.provider == "given":
        yield from _given_rows(spec, work)
        return
    found = list(tasks(spec, work))
    work.items.load(key for task in found for key in task.keys)
    for task in found:
        used += task.keys
        yield from (_measured_rows if spec.provider == "measured" else _asked_rows)(task, spec, work)


def _measured_rows(task: CaptionTask, spec: CaptionSpec, work: Work) -> Iterator[Caption]:
    found = work.items.answer(_description_of(task, spec).key, Description)
    make = partial(_row, task, spec, by="measured")
    if task.kind == "video":
        yield make("video", text=found.video, status=found.status, reason=found.reason)
    if task.image_id:
        is_seen = found.status != "not_enough_information"
        status: CaptionStatus = "ok" if is_seen else found.status
        yield make("image", text=found.image, status=status, reason="" if is_seen else found.reason)


def _asked_rows(task: CaptionTask, spec: CaptionSpec, work: Work) -> Iterator[Caption]:
    sight = work.items.answer(_sight_of(task, spec).key, Sight)
    make = partial(_row, task, spec)
    answers = {question.kind: work.items.need(question.recipe.key).answer for question in _questions(task, sight, spec)}
    if task.kind == "video" and "video" in answers:
        yield make("video", **_said(answers["video"]))
    elif task.kind == "video":
        yield make("video", by="measured", status=sight.status, reason=sight.reason)
    if "image" in answers:
        yield make("image", **_said(answers["image"]))
    elif task.image_id:
        yield make("image", by="measured", status="not_enough_information", reason=NOTHING)


def _said(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a caption that an answer fills."""
    return {
        "text": answer["text"],
        "by": answer["model"],
        "status": "failed" if answer["refused"] else "ok",
        "reason": answer["refused"],
        "prompt_tokens": answer["prompt_tokens"],
        "output_tokens": answer["output_tokens"],
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
    kept = {score.id for score in work.rows("score", "scores", Score) if score.state == "kept"}
    takers: list[tuple[str, str, Kind]] = [
        (clip.id, clip.id, "video") for clip in work.rows("clip", "clips", Clip) if clip.id in kept
    ]
    takers += [(each.id, each.clip_id, "image") for each in work.rows("clip", "images", Image) if each.clip_id in kept]
    with closing(_stream(work)) as given:
        row = next(given, None)
        for id_, clip_id, kind in sorted(takers):
            while row is not None and row.id < id_:
                row = next(given, None)
            yield _given_row(id_, clip_id, kind, row if row is not None and row.id == id_ else None, spec)


def _stream(work: Work) -> Any:
    return work.rows("ingest", "given", Given)


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


def _begun(rows: Iterator[Caption]) -> Iterator[Caption]:
    """The same rows, the first of them made already."""
    first = next(rows, None)

    def all_of_them() -> Iterator[Caption]:
        if first is not None:
            yield first
            yield from rows

    return all_of_them()
