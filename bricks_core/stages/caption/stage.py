"""Caption every kept clip and its middle image: two captions, each with a status; only ok ones go on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2

from bricks_core.errors import TryLater
from bricks_core.spec.caption import Caption, CaptionSpec, CaptionStatus
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.score import Score
from bricks_core.spec.strict import Row
from bricks_core.stages.caption import measured
from bricks_core.stages.caption.gate import judge, num_words, tidied
from bricks_core.stages.caption.pictures import NOTHING, see, shows_nothing, to_jpeg
from bricks_core.stages.caption.prompt import image_prompt, video_prompt
from bricks_core.storage.in_order import in_order
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.work import Joined, Work
from bricks_core.video.read import read_rgb

if TYPE_CHECKING:
    from bricks_core.stages.caption.vision_model import Answer, VisionModel

CALLS_PER_CLIP = 2


class CaptionItem(NamedTuple):
    """A kept clip and its image."""

    id: str
    key: str
    num_frames: int
    fps: float
    image_id: str
    image_frame: int
    """Counted in the clip."""


def items(spec: CaptionSpec, work: Work) -> Iterator[CaptionItem]:
    """The clips that the filter kept."""
    kept = {score.id for score in work.rows("score", "scores", Score) if score.state == "kept"}
    images = {
        image.clip_id: (image.id, image.frame) for image in work.rows("clip", "images", Image) if image.clip_id in kept
    }
    for clip in work.rows("clip", "clips", Clip):
        if clip.id in kept:
            image_id, frame = images[clip.id]
            yield CaptionItem(clip.id, clip.key, clip.num_frames, clip.fps, image_id, frame - clip.first_frame)


def run(spec: CaptionSpec, work: Work) -> None:
    """Caption clips, several at once: as many as there are cores, or as calls may be in flight.

    Raises:
        TryLater: caption.max_calls is reached, or the server's rate limit.
        SpecError, ServiceUnavailable: see `VisionModel`.
    """
    cv2.setNumThreads(1)
    todo = work.todo(items(spec, work), unit="clips")
    if spec.provider == "measured":
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        in_threads(lambda item: _caption(item, work, lambda path: _by_measuring(item, path, spec)), todo, num_cores)
        return
    from bricks_core.stages.caption.vision_model import VisionModel  # its client takes a second to import

    with VisionModel(spec, proven=any(True for _ in work.parts())) as model:

        def ask(item: CaptionItem) -> None:
            _caption(item, work, lambda path: _by_asking(item, path, spec, model))

        def may_begin(num_begun: int) -> bool:
            if spec.max_calls is None or model.num_calls + CALLS_PER_CLIP * (num_begun + 1) <= spec.max_calls:
                return True
            if num_begun:
                return False
            raise TryLater(
                f"caption.max_calls, {spec.max_calls}, is reached with {work.progress.total - work.progress.done} "
                "clips left to caption. What is done is kept: the same command goes on with the next."
            )

        for item in todo:  # one alone first: a wrong key or name then costs one call, not as many as run at once
            may_begin(0)
            ask(item)
            if model.num_calls:
                break
        in_threads(ask, todo, spec.concurrency, may_begin=may_begin)


def join(spec: CaptionSpec, work: Work) -> Joined:
    """All captions by id, counted by status, and what they cost in tokens."""
    statuses: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for row in work.part_rows("captions", Caption):
        statuses[row.status.replace("_", " ")] += 1
        tokens["prompt tokens"] += row.prompt_tokens
        tokens["output tokens"] += row.output_tokens
    counts = {"ok": statuses.pop("ok", 0), **dict(sorted(statuses.items())), **{k: n for k, n in tokens.items() if n}}
    return Joined({"captions": in_order(work.part_rows("captions", Caption), Caption)}, counts=counts)


def _caption(item: CaptionItem, work: Work, write: Callable[[Path], list[Caption]]) -> None:
    with work.local("clip", item.key) as path:
        rows = write(path)
    work.done(item.id, {"captions": list[Row](rows)}, note=rows[0].text[:60] or rows[0].status.replace("_", " "))


def _by_measuring(item: CaptionItem, path: Path, spec: CaptionSpec) -> list[Caption]:
    seen = see(path, item.num_frames, item.fps, spec.frame_shares)
    make = partial(_row, item, spec, by="measured")
    if seen.status == "not_enough_information":
        return [make(kind, status=seen.status, reason=seen.reason) for kind in ("video", "image")]
    scene = measured.measure(seen)
    image = make("image", text=measured.image_sentences(scene))
    if seen.status != "ok":
        return [make("video", status=seen.status, reason=seen.reason), image]
    if text := measured.video_sentences(scene):
        return [make("video", text=text), image]
    return [make("video", status="no_movement", reason="nothing in it moves far enough to be told"), image]


def _by_asking(item: CaptionItem, path: Path, spec: CaptionSpec, model: VisionModel) -> list[Caption]:
    seen = see(path, item.num_frames, item.fps, spec.frame_shares)
    pictures = read_rgb(path, [*seen.chosen, item.image_frame])
    jpegs = [to_jpeg(picture, spec.max_side_px) for picture in pictures]
    make = partial(_row, item, spec)
    # What can be told without a model costs nothing: these answers it would have to give as well.
    if seen.status == "ok":
        video = make("video", **_said(model.ask(video_prompt(spec), jpegs[:-1])))
    else:
        video = make("video", by="measured", status=seen.status, reason=seen.reason)
    if shows_nothing(pictures[-1][..., ::-1]):
        return [video, make("image", by="measured", status="not_enough_information", reason=NOTHING)]
    return [video, make("image", **_said(model.ask(image_prompt(spec), jpegs[-1:])))]


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
    item: CaptionItem,
    spec: CaptionSpec,
    kind: Literal["video", "image"],
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
        id=item.id if kind == "video" else item.image_id,
        clip_id=item.id,
        kind=kind,
        status=status,
        text=text,
        reason=reason,
        num_words=num_words(text),
        by=by,
        **tokens,
    )
