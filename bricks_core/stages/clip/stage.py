"""Find each film's shots, cut those that can be clips, and take the middle frame of each as a picture.

Clips and images that a table named are taken as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2

from bricks_core.errors import DataError
from bricks_core.spec.clip import Clip, ClipSpec, Image, Shot
from bricks_core.spec.ingest import Given, Video
from bricks_core.spec.manifest import StoredObject, content_id
from bricks_core.spec.strict import Row
from bricks_core.stages.clip import scenes
from bricks_core.stages.clip.cut import CutClip, cut
from bricks_core.storage.in_order import in_order
from bricks_core.storage.media_table import MediaTable, is_table
from bricks_core.storage.os_errors import told
from bricks_core.storage.places import list_source
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import SourceFile
from bricks_core.storage.work import Joined, Work
from bricks_core.video.isolate import Isolation
from bricks_core.video.read import frames

SILENCE_S = 300.0
MEMORY_BYTES = 6 << 30


@dataclass(frozen=True)
class Film:
    """A video to cut, or to take whole: where it is, and what it must be."""

    id: str
    kind: Literal["film", "clip", "image"]
    source: str
    name: str
    sha256: str
    num_frames: int
    width_px: int
    height_px: int
    fps: float
    clip_id: str = ""
    """Of an image: the clip it belongs to, or its own id."""


def items(spec: ClipSpec, work: Work) -> Iterator[Film]:
    """Every video that can be read, or a part of it, and every given clip and image."""
    clips_of = _clips_of_images(work)
    for video in work.rows("ingest", "videos", Video):
        if video.state in ("ok", "damaged"):
            yield Film(
                video.id,
                video.kind,
                video.source,
                video.name,
                video.sha256,
                video.num_frames,
                video.width_px,
                video.height_px,
                video.fps,
                clips_of.get(video.id, video.id if video.kind == "image" else ""),
            )


def run(spec: ClipSpec, work: Work) -> None:
    """Cut the videos, as many at once as there are CPUs, each in a process of its own."""
    with Isolation(silence_s=SILENCE_S, memory_bytes=MEMORY_BYTES) as isolation:

        def cut_one(found: tuple[Film, SourceFile]) -> None:
            film, file = found
            with file.local() as path:
                if file.sha256() != film.sha256:
                    raise DataError(
                        f"{film.name} in {film.source} is not what it was when it was ingested: run ingest again."
                    )
                if film.kind == "film":
                    _cut_film(film, path, spec, work, isolation)
                else:
                    _take_whole(film, path, work)

        isolation.each(cut_one, _found(work.todo(items(spec, work), unit="videos")))


def join(spec: ClipSpec, work: Work) -> Joined:
    """All parts' rows, by id."""
    dropped: Counter[str] = Counter()
    num_clips = 0
    for shot in work.part_rows("shots", Shot):
        if shot.state == "clip":
            num_clips += 1
        else:
            dropped[_kind(shot.reason)] += 1
    num_images = sum(film.kind == "image" for film in items(spec, work))
    return Joined(
        {
            "shots": in_order(work.part_rows("shots", Shot), Shot),
            "clips": in_order(work.part_rows("clips", Clip), Clip),
            "images": in_order(work.part_rows("images", Image), Image),
        },
        counts={"clips": num_clips}
        | ({"given images": num_images} if num_images else {})
        | {f"dropped: {kind}": num for kind, num in sorted(dropped.items())},
    )


def find_and_cut(path: Path, folder: Path, spec: ClipSpec) -> tuple[list[scenes.Shot], list[CutClip]]:
    """All shots of a film, and those among them that are clips, written into a folder. Runs in a process of its own."""
    cv2.setNumThreads(1)
    with closing(frames(path)) as film:
        measured = scenes.measure(film, adaptive_threshold=spec.adaptive_threshold)
    found = scenes.find_shots(measured, cut_threshold=spec.cut_threshold)
    shots = list(scenes.split_shots(found, min_frames=spec.min_frames, max_frames=spec.max_frames))
    wanted = [shot for shot in shots if not shot.reason]
    return shots, cut(path, wanted, folder, crf=spec.crf, preset=spec.preset)


def _found(films: Iterator[Film]) -> Iterator[tuple[Film, SourceFile]]:
    """The files of the videos, found again in their sources."""
    wanted: dict[tuple[str, str], list[Film]] = {}  # a table can name a file twice
    for film in films:
        wanted.setdefault((film.source, film.name), []).append(film)
    for source in sorted({source for source, _ in wanted}):
        names = [name for path, name in wanted if path == source]
        for file in MediaTable(source).named(names) if is_table(source) else list_source(source):
            for film in wanted.pop((source, file.name), ()):
                yield film, file
    for (source, name), _ in wanted.items():
        raise DataError(f"{name} is not in {source} any more: put it back, or run again from ingest.")


def _clips_of_images(work: Work) -> dict[str, str]:
    """The clips that given images belong to, where these are here as well."""
    clips = {row.id for row in work.rows("ingest", "given", Given) if row.kind == "clip"}
    return {row.id: row.clip_id for row in work.rows("ingest", "given", Given) if row.clip_id in clips}


def _take_whole(film: Film, path: Path, work: Work) -> None:
    """A given clip or image, byte for byte. Its frames were decoded and counted when it was ingested."""
    suffix = Path(film.name).suffix.lower()
    size: dict[str, Any] = {"width_px": film.width_px, "height_px": film.height_px}
    if film.kind == "image":
        stored = work.put_file(f"images/{film.id}{suffix}", path)
        image = Image(id=film.id, clip_id=film.clip_id, video_id=film.id, frame=0, **size, **_about(stored))
        work.done(film.id, {"images": [image]}, [stored], note=film.name)
        return
    stored = work.put_file(f"clips/{film.id}{suffix}", path)
    span: dict[str, Any] = {"first_frame": 0, "end_frame": film.num_frames}
    shot = Shot(id=film.id, video_id=film.id, state="clip", **span)
    clip = Clip(
        id=film.id, video_id=film.id, num_frames=film.num_frames, fps=film.fps, **span, **size, **_about(stored)
    )
    work.done(film.id, {"shots": [shot], "clips": [clip]}, [stored], note=film.name)


def _about(stored: StoredObject) -> dict[str, Any]:
    return {"key": stored.key, "size_bytes": stored.size_bytes, "sha256": stored.sha256}


def _cut_film(film: Film, path: Path, spec: ClipSpec, work: Work, isolation: Isolation) -> None:
    with scratch() as folder:
        try:
            with told(folder, "write"):
                shots, clips = isolation.call(find_and_cut, path, folder, spec)
        except DataError as error:  # a Crash is one too
            shots, clips = [scenes.Shot(0, film.num_frames, str(error))], []
        rows: dict[str, list[Row]] = {"shots": [_shot_row(film, shot) for shot in shots], "clips": [], "images": []}
        objects: list[StoredObject] = []
        for clip in clips:
            clip_row, image_row, stored = _store(film, clip, work)
            rows["clips"].append(clip_row)
            rows["images"].append(image_row)
            objects += stored
    work.done(film.id, rows, objects, note=f"{len(clips)} clips from {film.name}")


def _store(film: Film, clip: CutClip, work: Work) -> tuple[Clip, Image, list[StoredObject]]:
    clip_id = _shot_id(film, clip.shot)
    image_id = content_id(film.id, clip.image_frame, "image")
    video = work.put_file(f"clips/{clip_id}.mp4", clip.file)
    picture = work.put_file(f"images/{image_id}.jpg", clip.image_file)
    clip_row = Clip(
        id=clip_id,
        video_id=film.id,
        first_frame=clip.shot.first_frame,
        end_frame=clip.shot.end_frame,
        num_frames=clip.shot.num_frames,
        width_px=clip.width_px,
        height_px=clip.height_px,
        fps=clip.fps,
        key=video.key,
        size_bytes=video.size_bytes,
        sha256=video.sha256,
    )
    image_row = Image(
        id=image_id,
        clip_id=clip_id,
        video_id=film.id,
        frame=clip.image_frame,
        width_px=clip.width_px,
        height_px=clip.height_px,
        key=picture.key,
        size_bytes=picture.size_bytes,
        sha256=picture.sha256,
    )
    return clip_row, image_row, [video, picture]


def _shot_row(film: Film, shot: scenes.Shot) -> Shot:
    return Shot(
        id=_shot_id(film, shot),
        video_id=film.id,
        first_frame=shot.first_frame,
        end_frame=shot.end_frame,
        state="dropped" if shot.reason else "clip",
        reason=shot.reason,
    )


def _shot_id(film: Film, shot: scenes.Shot) -> str:
    return content_id(film.id, shot.first_frame, shot.end_frame)


def _kind(reason: str) -> str:
    """What shots of the same kind of reason are counted as: what stands before its facts."""
    return reason.partition(":")[0]
