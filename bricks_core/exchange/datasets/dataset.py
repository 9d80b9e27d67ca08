"""What of a run makes a dataset: its kept clips and their images that have an accepted caption, with all that is known.

Everything is read through the caption artifact: its inputs name the very clips, scores and videos it was made from. A
run that has moved on since, and whose captions are stale therefore, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from bricks_core.errors import DataError, UsageError, nearest
from bricks_core.pipeline.points import read_points
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image
from bricks_core.spec.ingest import Given, Video
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.score import Score
from bricks_core.spec.strict import Row
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.store import Store

Split = Literal["train", "held_out"]
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Sample:
    """A clip or an image with its caption."""

    id: str
    kind: Literal["video", "image"]
    key: str
    """Its file in the clip artifact."""
    size_bytes: int
    sha256: str
    text: str
    caption_by: str
    num_frames: int
    """1 of an image."""
    height_px: int
    width_px: int
    fps: float
    """0 of an image."""
    split: Split
    clip_id: str
    """Of an image the clip it is a frame of, if it is; of a clip its own."""
    video_id: str
    """The video it was cut from, or itself; as is video_name, also when it came in a table that says so."""
    video_name: str
    first_frame: int
    end_frame: int
    licence: str
    credit: str
    consent: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    def facts(self) -> dict[str, Any]:
        """Everything but the file and the text, in the words of the tables that we write (docs/dataset.md)."""
        return {
            "num_frames": self.num_frames,
            "height": self.height_px,
            "width": self.width_px,
            "aspect_ratio": self.height_px / self.width_px,
            "fps": self.fps if self.kind == "video" else None,
            "resolution": self.height_px * self.width_px,
            "id": self.id,
            "clip_id": self.clip_id,
            "video_id": self.video_id,
            "video_name": self.video_name,
            "first_frame": self.first_frame,
            "end_frame": self.end_frame,
            "licence": self.licence,
            "credit": self.credit,
            "consent": self.consent,
            "split": self.split,
            "caption_by": self.caption_by,
            "sha256": self.sha256,
        }


class _Origin(NamedTuple):
    """What of a video its samples carry on."""

    name: str
    licence: str
    credit: str
    consent: str
    is_given: bool


@dataclass(frozen=True)
class Dataset:
    """The dataset of a run."""

    run: str
    store: Store
    ingest: Artifact
    clip: Artifact
    score: Artifact
    caption: Artifact

    @classmethod
    def of(cls, store: Store, run: str) -> Dataset:
        """The dataset of the captions that a run made last.

        Raises:
            DataError: the run has no captions, they are stale, or what they were made from is gone.
        """
        if "/" in run:
            raise UsageError(
                f"{run}: a dataset is a whole run's; give its name alone, such as {run.partition('/')[0]}."
            )
        points = read_points(store, run)
        pointer = points.stages.get("caption")
        if pointer is None:
            runs = sorted({entry.key.split("/")[1] for entry in store.list("runs/")})
            if run in runs:
                raise DataError(f"Run {run} has no captions yet: bricks run its file first, at least --until caption.")
            known = f" It has: {', '.join(runs[:10])}." if runs else " It has none."
            raise DataError(f"{store.uri} has no run {run}{nearest(run, runs)}.{known}")
        if why := points.stale().get("caption"):
            raise DataError(
                f"The captions of run {run} are stale ({why}), so they would not go with its clips: run its file first "
                "(bricks run FILE --until caption), and export then."
            )
        caption = open_artifact(store, "caption", pointer.digest)
        inputs = {
            name: open_artifact(store, name, caption.manifest.inputs[name]) for name in ("ingest", "clip", "score")
        }
        return cls(run, store, caption=caption, **inputs)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """What the stages said of their work, by stage."""
        stages = (self.ingest, self.clip, self.score, self.caption)
        return {artifact.manifest.stage: artifact.manifest for artifact in stages}

    def samples(self) -> Iterator[Sample]:
        """Clips, then images, each in the order of their ids: the same every time, and streamed.

        Memory holds a few words of every video and kept clip, not the captions.
        """
        splits = {row.id: row.split for row in self.score.rows("scores", Score) if row.state == "kept"}
        videos = {
            row.id: _Origin(row.name, row.licence, row.credit, row.consent, row.kind != "film")
            for row in self.ingest.rows("videos", Video)
            if row.state in ("ok", "damaged")
        }
        clips = (row for row in self.clip.rows("clips", Clip) if row.id in splits)
        for clip, caption, given in self._told(clips):
            about = _about(clip, caption, videos[clip.video_id], given, (clip.first_frame, clip.end_frame))
            yield Sample(
                **about, kind="video", num_frames=clip.num_frames, fps=clip.fps, clip_id=clip.id, split=splits[clip.id]
            )
        images = (row for row in self.clip.rows("images", Image) if row.clip_id in splits)
        for image, caption, given in self._told(images):
            about = _about(image, caption, videos[image.video_id], given, (image.frame, image.frame + 1))
            clip_id = (given.clip_id if given is not None else "") or image.clip_id
            yield Sample(**about, kind="image", num_frames=1, fps=0.0, clip_id=clip_id, split=splits[image.clip_id])

    def _told(self, rows: Iterable[R]) -> Iterator[tuple[R, Caption, Given | None]]:
        """Rows that have an accepted caption, with it and with what a table says."""
        captions = _InStep(self.caption.rows("captions", Caption))
        given = _InStep(self.ingest.rows("given", Given))
        for row in rows:
            caption = captions.of(row.id)
            if caption is not None and caption.status == "ok":
                yield row, caption, given.of(row.id)


class _InStep(Generic[R]):
    """Rows in the order of their ids, found by ids that come in the same order."""

    def __init__(self, rows: Iterator[R]):
        self._rows = rows
        self._row = next(rows, None)

    def of(self, wanted: str) -> R | None:
        while self._row is not None and self._row.id < wanted:
            self._row = next(self._rows, None)
        return self._row if self._row is not None and self._row.id == wanted else None


def _about(row: Clip | Image, caption: Caption, video: _Origin, given: Given | None, span: tuple[int, int]) -> Any:
    """The fields that clips and images have in common."""
    if given is not None and given.first_frame >= 0 and given.end_frame >= 0:
        span = given.first_frame, given.end_frame
    # A file given by its whole path: that is nobody else's business.
    name = PurePosixPath(video.name).name if video.is_given else video.name
    return {
        "id": row.id,
        "key": row.key,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256,
        "text": caption.text,
        "caption_by": caption.by,
        "height_px": row.height_px,
        "width_px": row.width_px,
        "video_id": (given.video_id if given is not None else "") or row.video_id,
        "video_name": (given.video_name if given is not None else "") or name,
        "first_frame": span[0],
        "end_frame": span[1],
        "licence": video.licence,
        "credit": video.credit,
        "consent": video.consent,
    }
