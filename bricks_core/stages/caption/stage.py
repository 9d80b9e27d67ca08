"""Caption every kept clip and every image of one: each caption has a status, and only ok ones go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2

from bricks_core.errors import TryLater
from bricks_core.spec.caption import Caption, CaptionSpec, CaptionStatus
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Given
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Score
from bricks_core.spec.strict import Row
from bricks_core.stages.caption import measured
from bricks_core.stages.caption.gate import judge, num_words, tidied
from bricks_core.stages.caption.pictures import NOTHING, Pixels, read_picture, see, see_picture, shows_nothing, to_jpeg
from bricks_core.stages.caption.prompt import image_prompt, video_prompt
from bricks_core.storage.in_order import in_order
from bricks_core.storage.in_threads import in_threads, num_cores
from bricks_core.storage.work import Joined, Work
from bricks_core.video.read import read_rgb

if TYPE_CHECKING:
    from bricks_core.stages.caption.vision_model import Answer, VisionModel

CALLS_PER_CLIP = 2
GIVEN_PER_ITEM = 256


class CaptionItem(NamedTuple):
    """A kept clip with its middle image; or a clip or an image as a table gave it, each by itself."""

    id: str
    clip_id: str
    kind: Literal["video", "image"]
    key: str
    num_frames: int = 1
    fps: float = 0.0
    image_id: str = ""
    """The clip's middle image; empty where there is none."""
    image_frame: int = 0
    """Counted in the clip."""


class GivenItem(NamedTuple):
    """Kept clips and images that take the captions of a table."""

    id: str
    takers: tuple[tuple[str, str, Literal["video", "image"]], ...]
    """Id, clip's id and kind, in the order of the ids."""


def items(spec: CaptionSpec, work: Work) -> Iterator[CaptionItem] | Iterator[GivenItem]:
    """The clips that the filter kept and the images of these, and the images that it kept by themselves."""
    return _given_items(work) if spec.provider == "given" else _items(work)


def _items(work: Work) -> Iterator[CaptionItem]:
    kept = _kept(work)
    images = {
        image.clip_id: image
        for image in work.rows("clip", "images", Image)
        if image.clip_id in kept and image.video_id != image.id
    }
    for clip in work.rows("clip", "clips", Clip):
        if clip.id in kept:
            alone = CaptionItem(clip.id, clip.id, "video", clip.key, clip.num_frames, clip.fps)
            image = images.get(clip.id)
            yield (
                alone
                if image is None
                else alone._replace(image_id=image.id, image_frame=image.frame - clip.first_frame)
            )
    for image in work.rows("clip", "images", Image):
        if image.clip_id in kept and image.video_id == image.id:  # a file of its own, not a frame of the clip's
            yield CaptionItem(image.id, image.clip_id, "image", image.key)


def _given_items(work: Work) -> Iterator[GivenItem]:
    kept = _kept(work)
    takers: list[tuple[str, str, Literal["video", "image"]]] = [
        (clip.id, clip.id, "video") for clip in work.rows("clip", "clips", Clip) if clip.id in kept
    ]
    takers += [(each.id, each.clip_id, "image") for each in work.rows("clip", "images", Image) if each.clip_id in kept]
    takers.sort()
    for first in range(0, len(takers), GIVEN_PER_ITEM):
        these = tuple(takers[first : first + GIVEN_PER_ITEM])
        yield GivenItem(content_id("given", *(taker[0] for taker in these)), these)


def _kept(work: Work) -> set[str]:
    return {score.id for score in work.rows("score", "scores", Score) if score.state == "kept"}


def run(spec: CaptionSpec, work: Work) -> None:
    """Caption clips, several at once: as many as there are cores, or as calls may be in flight.

    Raises:
        TryLater: caption.max_calls is reached, or the server's rate limit.
        SpecError, ServiceUnavailable: see `VisionModel`.
    """
    cv2.setNumThreads(1)
    if spec.provider == "given":
        _take_given(spec, work)
        return
    todo = work.todo(_items(work), unit="clips")
    if spec.provider == "measured":
        in_threads(lambda item: _caption(item, work, lambda path: _by_measuring(item, path, spec)), todo, num_cores())
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
        if row.status == "ok" and row.reason:
            statuses["of the ok ones: given, and against a rule"] += 1
        tokens["prompt tokens"] += row.prompt_tokens
        tokens["output tokens"] += row.output_tokens
    counts = {"ok": statuses.pop("ok", 0), **dict(sorted(statuses.items())), **{k: n for k, n in tokens.items() if n}}
    return Joined({"captions": in_order(work.part_rows("captions", Caption), Caption)}, counts=counts)


def _take_given(spec: CaptionSpec, work: Work) -> None:
    """The tables' captions, which come in the order of their ids, as the items do: one reading serves all."""
    given = work.rows("ingest", "given", Given)
    row = next(given, None)
    for item in work.todo(_given_items(work), unit="groups of captions"):
        rows: list[Row] = []
        for id_, clip_id, kind in item.takers:
            while row is not None and row.id < id_:
                row = next(given, None)
            found = row if row is not None and row.id == id_ else None
            rows.append(_given_row(id_, clip_id, kind, found, spec))
        work.done(item.id, {"captions": rows}, note=f"{len(rows)} captions")


def _given_row(
    id_: str, clip_id: str, kind: Literal["video", "image"], given: Given | None, spec: CaptionSpec
) -> Caption:
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


def _caption(item: CaptionItem, work: Work, write: Callable[[Path], list[Caption]]) -> None:
    with work.local("clip", item.key) as path:
        rows = write(path)
    work.done(item.id, {"captions": list[Row](rows)}, note=rows[0].text[:60] or rows[0].status.replace("_", " "))


def _by_measuring(item: CaptionItem, path: Path, spec: CaptionSpec) -> list[Caption]:
    is_image = item.kind == "image"
    seen = see_picture(path) if is_image else see(path, item.num_frames, item.fps, spec.frame_shares)
    make = partial(_row, item, spec, by="measured")
    kinds: list[Literal["video", "image"]] = ["video"] if not is_image else []
    kinds += ["image"] if is_image or item.image_id else []
    if seen.status == "not_enough_information":
        return [make(kind, status=seen.status, reason=seen.reason) for kind in kinds]
    scene = measured.measure(seen)
    rows = {"image": make("image", text=measured.image_sentences(scene))}
    if seen.status != "ok":
        rows["video"] = make("video", status=seen.status, reason=seen.reason)
    elif text := measured.video_sentences(scene):
        rows["video"] = make("video", text=text)
    else:
        rows["video"] = make("video", status="no_movement", reason="nothing in it moves far enough to be told")
    return [rows[kind] for kind in kinds]


def _by_asking(item: CaptionItem, path: Path, spec: CaptionSpec, model: VisionModel) -> list[Caption]:
    make = partial(_row, item, spec)

    def about_image(rgb: Pixels) -> Caption:
        if shows_nothing(rgb[..., ::-1]):
            return make("image", by="measured", status="not_enough_information", reason=NOTHING)
        return make("image", **_said(model.ask(image_prompt(spec), [to_jpeg(rgb, spec.max_side_px)])))

    if item.kind == "image":
        return [about_image(read_picture(path)[..., ::-1])]
    seen = see(path, item.num_frames, item.fps, spec.frame_shares)
    pictures = read_rgb(path, [*seen.chosen, item.image_frame])
    jpegs = [to_jpeg(picture, spec.max_side_px) for picture in pictures[:-1]]
    # What can be told without a model costs nothing: these answers it would have to give as well.
    if seen.status == "ok":
        video = make("video", **_said(model.ask(video_prompt(spec), jpegs)))
    else:
        video = make("video", by="measured", status=seen.status, reason=seen.reason)
    return [video, about_image(pictures[-1])] if item.image_id else [video]


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
        id=item.id if kind == item.kind else item.image_id,
        clip_id=item.clip_id,
        kind=kind,
        status=status,
        text=text,
        reason=reason,
        num_words=num_words(text),
        by=by,
        **tokens,
    )
