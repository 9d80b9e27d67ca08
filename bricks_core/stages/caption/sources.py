"""What is to be captioned, and under which keys: what is seen of a clip, what it is asked, what is measured of it.

A question names the pictures shown (content of the source, frames counted in it, size), the prompt, the model and its
sampling. Neither the file that the pictures come from nor what found the clip is in it: a clip that is cut again, or a
film that is renamed, asks nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel

from bricks_core.spec.caption import CaptionSpec, CaptionStatus
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.items import ItemKey, Recipe, recipe
from bricks_core.spec.score import Score
from bricks_core.spec.strict import what_of
from bricks_core.stages.caption.prompt import image_prompt, video_prompt
from bricks_core.storage.claims import batch_of
from bricks_core.storage.work import Work

PICTURES = 1
"""Version of how frames become the pictures that are shown."""
STRETCH_FRAMES = 512
"""What is asked about so many frames of a source is claimed together: a dozen clips."""

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


class Answer(BaseModel):
    """What the model said to one question."""

    text: str = ""
    model: str = ""
    """Its name as the server gives it."""
    refused: str = ""
    """Why there is no usable text, when the server says so itself."""
    prompt_tokens: int = 0
    output_tokens: int = 0


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
    motion: float = 0.0
    """Of the clip, as it was measured for the filter: what `Motion.change` is."""
    image_id: str = ""
    """The clip's middle image; empty where there is none. Of an image: its own."""
    image_frame: int = -1
    image_key: str = ""
    image_sha256: str = ""
    sight: Sight | None = None
    """What is seen of it, once that is known. Not of captions by measuring."""

    @property
    def num_frames(self) -> int:
        return self.end_frame - self.first_frame


class Question(NamedTuple):
    """A question to a model: which pictures it is shown, and where these are."""

    recipe: Recipe
    kind: Kind
    frames: tuple[int, ...]
    """Counted in the source."""
    prompt: str


@dataclass(frozen=True)
class Recipes:
    """The keys under one run's settings."""

    shown: dict[str, Any]
    """What tells which frames are shown."""
    first_share: float
    prompts: dict[Kind, str]
    pictures: dict[str, Any]
    """What tells how frames become pictures."""
    model: str
    sampling: dict[str, Any]

    @classmethod
    def of(cls, spec: CaptionSpec) -> Self:
        return cls(
            shown=what_of(spec, "frame_shares"),
            first_share=spec.frame_shares[0],
            prompts={"video": video_prompt(spec), "image": image_prompt(spec)},
            pictures={"recipe": PICTURES} | what_of(spec, "max_side_px"),
            model=spec.model,
            sampling=what_of(spec, "max_output_tokens"),
        )

    def sight(self, task: CaptionTask) -> Recipe:
        """Of what is seen before anybody is asked."""
        image = {"image": task.image_frame} if task.image_id else {}
        return recipe("sight", **self._part_of(task), **image)

    def description(self, task: CaptionTask) -> Recipe:
        """Of captions by measuring."""
        rate = {"fps": task.fps} if task.kind == "video" else {}
        return recipe("description", **self._part_of(task), **rate)

    def questions(self, task: CaptionTask, sight: Sight) -> Iterator[Question]:
        """What has to be asked: nothing that can be told without a model, since it would have to answer the same."""
        for kind in asked(task, sight):
            yield self._question(task, kind, tuple(sight.frames) if kind == "video" else (task.image_frame,))

    def stretches(self, task: CaptionTask) -> tuple[ItemKey, ...]:
        """What is to be claimed before a task is begun: the parts of its source that its questions begin in.

        They are known before anybody has looked at the clip, and whoever has the same question has the same: the first
        frame shown is never exchanged for another.
        """
        first = task.first_frame + round(self.first_share * (task.num_frames - 1))
        places = [first] if task.kind == "video" else []
        places += [task.image_frame] if task.image_id else []
        names = dict.fromkeys(f"{task.source}/{place // STRETCH_FRAMES}" for place in places)
        return tuple(ItemKey("answer", hashlib.sha256(name.encode()).hexdigest()[:32]) for name in names)

    def task_id(self, task: CaptionTask, key: ItemKey) -> str:
        """Whole stretches go to a shard, so that shards do not wait for each other."""
        batch = batch_of("answer", self.stretches(task)[0].key).partition("/")[2]
        return f"{batch:0>8}{key.key[:24]}"

    def _part_of(self, task: CaptionTask) -> dict[str, Any]:
        if task.kind == "image":
            return {"source": task.source}
        return {"source": task.source, "span": [task.first_frame, task.end_frame], "shown": self.shown}

    def _question(self, task: CaptionTask, kind: Kind, frames: tuple[int, ...]) -> Question:
        made = recipe(
            "answer",
            pictures={"source": task.source, "frames": list(frames)} | self.pictures,
            prompt=self.prompts[kind],
            model=self.model,
            sampling=self.sampling,
        )
        return Question(made, kind, frames, self.prompts[kind])


def asked(task: CaptionTask, sight: Sight) -> list[Kind]:
    """What a model is asked of a task, in the order of its keys."""
    video: list[Kind] = ["video"] if task.kind == "video" and sight.status == "ok" else []
    return [*video, "image"] if task.image_id and not sight.image_is_plain else video


def kept_media(work: Work) -> Iterator[CaptionTask]:
    """The clips that the filter kept with the images of these, and the images that it kept by themselves."""
    kept = {score.id: score.motion for score in _kept(work)}
    images: dict[str, Image] = {}
    alone: list[Image] = []
    for image in work.rows("clip", "images", Image):
        if image.clip_id in kept and image.video_id == image.id:  # a file of its own, not a frame of the clip's
            alone.append(image)
        elif image.clip_id in kept:
            images[image.clip_id] = image
    for clip in work.rows("clip", "clips", Clip):
        if clip.id in kept:
            yield _of_clip(clip, images.pop(clip.id, None), kept[clip.id])
    yield from map(_of_image, alone)


def kept_ids(work: Work) -> set[str]:
    """Clips, and images that stand for themselves, that the filter kept."""
    return {score.id for score in _kept(work)}


def _kept(work: Work) -> Iterator[Score]:
    return (score for score in work.rows("score", "scores", Score) if score.state == "kept")


def _of_clip(clip: Clip, image: Image | None, motion: float) -> CaptionTask:
    task = CaptionTask(
        id="",
        keys=(),
        clip_id=clip.id,
        kind="video",
        key=clip.key,
        sha256=clip.sha256,
        source=clip.source_sha256,
        first_frame=clip.first_frame,
        end_frame=clip.end_frame,
        fps=clip.fps,
        motion=motion,
    )
    if image is None:
        return task
    return task._replace(image_id=image.id, image_frame=image.frame, image_key=image.key, image_sha256=image.sha256)


def _of_image(image: Image) -> CaptionTask:
    return CaptionTask(
        id="",
        keys=(),
        clip_id=image.clip_id,
        kind="image",
        key=image.key,
        sha256=image.sha256,
        source=image.source_sha256,
        image_id=image.id,
        image_frame=0,
        image_key=image.key,
        image_sha256=image.sha256,
    )
