"""Find each film's shots, cut those that can be clips, and take the middle frame of each as a picture.

What shots a film has is found once for a detector's settings; which of them are clips follows from their lengths; each
clip is cut once for an encoder's settings. Clips and images that a table named are taken as they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
from pydantic import BaseModel

from bricks_core.errors import DataError
from bricks_core.spec.clip import Clip, ClipSpec, Image, Shot
from bricks_core.spec.ingest import Given, Video
from bricks_core.spec.items import Item, ItemKey, Recipe, recipe
from bricks_core.spec.manifest import StoredObject, Try, content_id
from bricks_core.spec.strict import what_of
from bricks_core.stages.clip import scenes
from bricks_core.stages.clip.cut import CutClip, cut
from bricks_core.storage.in_order import in_order
from bricks_core.storage.items import seconds_since
from bricks_core.storage.media_table import MediaTable, is_table
from bricks_core.storage.os_errors import told
from bricks_core.storage.places import list_source
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import SourceFile
from bricks_core.storage.work import Joined, Work
from bricks_core.video.isolate import Isolation, LimitReached
from bricks_core.video.read import frames

SILENCE_S = 300.0
MEMORY_BYTES = 6 << 30
LIMITS = {"silence_s": SILENCE_S, "memory_bytes": float(MEMORY_BYTES)}


class Shots(BaseModel):
    """The shots of a film, of any length."""

    shots: list[tuple[int, int, str]] = []
    """First frame, one past the last, and why it is no clip if it is none."""
    problem: str = ""
    """Why the film could not be searched."""


class Cut(BaseModel):
    """A clip that was cut: its file is the item's first, the picture of its middle frame the second."""

    problem: str = ""
    """Why it could not be cut; then the rest says nothing."""
    image_frame: int = 0
    """Counted in the film."""
    width_px: int = 0
    height_px: int = 0
    fps: float = 0.0


@dataclass(frozen=True)
class FilmTask:
    """A video to cut, or to take whole: where it is, and what it must be."""

    id: str
    keys: tuple[ItemKey, ...]
    """Its shots, and as soon as these are known its clips."""
    video_id: str
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


def tasks(spec: ClipSpec, work: Work) -> Iterator[FilmTask]:
    """Every video that can be read, or a part of it, and every given clip and image."""
    clips_of = _clips_of_images(work)
    videos = [video for video in work.rows("ingest", "videos", Video) if video.state in ("ok", "damaged")]
    there = work.items.load(_shots_of(video.sha256, spec).key for video in videos if video.kind == "film")
    for video in videos:
        yield FilmTask(
            # Shared out by content, so that each film is one shard's whatever it is called.
            video.sha256[:16],
            tuple(_keys(video, spec, work, there)),
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

        def cut_one(film: FilmTask) -> None:
            file = files[film.source, film.name]
            with file.local() as path:
                if file.sha256() != film.sha256:
                    raise DataError(
                        f"{film.name} in {film.source} is not what it was when it was ingested: run ingest again."
                    )
                if film.kind == "film":
                    _cut_film(film, path, spec, work, isolation)
                else:
                    stored = work.items.put_file(film.keys[0], path, Path(film.name).suffix.lower())
                    work.items.put(_given_file(film.sha256, film.name), {}, [stored])
                    work.progress.advance(note=film.name)

        def are_done(films: list[FilmTask]) -> list[bool]:
            there = work.items.load(_shots_of(film.sha256, spec).key for film in films if film.kind == "film")
            return work.are_done(replace(film, keys=tuple(_keys(film, spec, work, there))) for film in films)

        pending = work.todo(tasks(spec, work), unit="videos")
        files = _files_of(pending)
        work.share(pending, cut_one, isolation.each, are_done=are_done)


def join(spec: ClipSpec, work: Work) -> Joined:
    """All shots, clips and images, by id."""
    films = list(tasks(spec, work))
    keys = list(dict.fromkeys(key for film in films for key in film.keys))
    there = work.items.load(keys)
    tries = work.items.tries([key for key in keys if key not in there])
    dropped: Counter[str] = Counter()
    num_clips = 0
    for film in films:
        for shot, _, _ in _rows(film, spec, work, tries):
            if shot is not None and shot.state == "clip":
                num_clips += 1
            elif shot is not None:
                dropped[shot.reason.partition(":")[0]] += 1  # what stands before its facts
    num_images = sum(film.kind == "image" for film in films)
    return Joined(
        {
            "shots": in_order((shot for film in films for shot, _, _ in _rows(film, spec, work, tries) if shot), Shot),
            "clips": in_order((clip for film in films for _, clip, _ in _rows(film, spec, work, tries) if clip), Clip),
            "images": in_order((im for film in films for _, _, im in _rows(film, spec, work, tries) if im), Image),
        },
        items=[key for key in keys if key in there],
        counts={"clips": num_clips}
        | ({"given images": num_images} if num_images else {})
        | {f"dropped: {kind}": num for kind, num in sorted(dropped.items())},
        pending=sorted(tries.values(), key=lambda each: each.key),
    )


def limits(spec: ClipSpec) -> dict[str, float]:
    """What a decoder is given; under other limits a film that wanted more is tried again."""
    return {f"clip.{name}": limit for name, limit in LIMITS.items()}


def find_shots(path: Path, adaptive_threshold: float, cut_threshold: float) -> list[scenes.Shot]:
    """All shots of a film, of any length. Runs in a process of its own."""
    cv2.setNumThreads(1)
    with closing(frames(path)) as film:
        measured = scenes.measure(film, adaptive_threshold=adaptive_threshold)
    return scenes.find_shots(measured, cut_threshold=cut_threshold)


def _shots_of(sha256: str, spec: ClipSpec) -> Recipe:
    return recipe("shots", sha256=sha256, detector=what_of(spec, "adaptive_threshold", "cut_threshold"))


def _clip_of(sha256: str, shot: scenes.Shot, spec: ClipSpec) -> Recipe:
    span = [shot.first_frame, shot.end_frame]
    return recipe("clip", sha256=sha256, span=span, encoder=what_of(spec, "crf", "preset"))


def _given_file(sha256: str, name: str) -> Recipe:
    return recipe("file", sha256=sha256, suffix=Path(name).suffix.lower())


def _keys(video: Video | FilmTask, spec: ClipSpec, work: Work, there: set[ItemKey]) -> Iterator[ItemKey]:
    if video.kind != "film":
        yield _given_file(video.sha256, video.name).key
        return
    shots = _shots_of(video.sha256, spec).key
    yield shots
    if shots in there:
        yield from (_clip_of(video.sha256, shot, spec).key for shot in _split(shots, spec, work) if not shot.reason)


def _split(shots: ItemKey, spec: ClipSpec, work: Work) -> list[scenes.Shot]:
    """A film's shots, as long as clips may be."""
    found = [scenes.Shot(*each) for each in work.items.answer(shots, Shots).shots]
    return list(scenes.split_shots(found, min_frames=spec.min_frames, max_frames=spec.max_frames))


def _files_of(films: Iterable[FilmTask]) -> dict[tuple[str, str], SourceFile]:
    """The files of the videos, by source and name, found again in their sources."""
    wanted = {(film.source, film.name) for film in films}
    found = {}
    for source in sorted({source for source, _ in wanted}):
        names = [name for path, name in wanted if path == source]
        for file in MediaTable(source).named(names) if is_table(source) else list_source(source):
            if (source, file.name) in wanted:
                found[source, file.name] = file
    for source, name in sorted(wanted - found.keys()):
        raise DataError(f"{name} is not in {source} any more: put it back, or run again from ingest.")
    return found


def _clips_of_images(work: Work) -> dict[str, str]:
    """The clips that given images belong to, where these are here as well."""
    clips = {row.id for row in work.rows("ingest", "given", Given) if row.kind == "clip"}
    return {row.id: row.clip_id for row in work.rows("ingest", "given", Given) if row.clip_id in clips}


def _cut_film(film: FilmTask, path: Path, spec: ClipSpec, work: Work, isolation: Isolation) -> None:
    """Find the film's shots, and cut those clips that are not there yet."""
    shots = _shots_of(film.sha256, spec)
    if work.items.get(shots.key) is None and not _search(shots, film, path, spec, work, isolation):
        return
    wanted = {_clip_of(film.sha256, shot, spec).key: shot for shot in _split(shots.key, spec, work) if not shot.reason}
    there = work.items.load(wanted)
    missing = [shot for key, shot in wanted.items() if key not in there]
    if missing:
        _cut_clips(missing, film, path, spec, work, isolation)
    work.progress.advance(note=f"{len(missing)} clips from {film.name}")


def _search(shots: Recipe, film: FilmTask, path: Path, spec: ClipSpec, work: Work, isolation: Isolation) -> bool:
    """Whether the film's shots are known now."""
    began_s = time.monotonic()
    try:
        found = isolation.call(find_shots, path, spec.adaptive_threshold, spec.cut_threshold)
    except LimitReached as limit:
        _tried(shots.key, limit, work)
        work.progress.advance(note=film.name)
        return False
    except DataError as error:  # a Crash is one too
        work.items.put(shots, Shots(problem=str(error)))
        return True
    answer = Shots(shots=[(shot.first_frame, shot.end_frame, shot.reason) for shot in found])
    work.items.put(shots, answer, cost=seconds_since(began_s))
    return True


def _cut_clips(
    shots: Sequence[scenes.Shot], film: FilmTask, path: Path, spec: ClipSpec, work: Work, isolation: Isolation
) -> None:
    began_s = time.monotonic()
    with scratch() as folder:
        try:
            with told(folder, "write"):
                clips = isolation.call(cut, path, shots, folder, crf=spec.crf, preset=spec.preset)
        except LimitReached as limit:
            for shot in shots:
                _tried(_clip_of(film.sha256, shot, spec).key, limit, work)
            return
        except DataError as error:
            for shot in shots:
                work.items.put(_clip_of(film.sha256, shot, spec), Cut(problem=str(error)))
            return
        cost = seconds_since(began_s, len(clips))
        for clip in clips:
            _keep(clip, _clip_of(film.sha256, clip.shot, spec), cost, work)


def _keep(clip: CutClip, made: Recipe, cost: dict[str, float], work: Work) -> None:
    stored = [work.items.put_file(made.key, clip.file, ".mp4"), work.items.put_file(made.key, clip.image_file, ".jpg")]
    about = Cut(image_frame=clip.image_frame, width_px=clip.width_px, height_px=clip.height_px, fps=clip.fps)
    work.items.put(made, about, stored, cost=cost)


def _tried(key: ItemKey, limit: LimitReached, work: Work) -> None:
    work.tried(key, str(limit), {f"clip.{limit.limit}": LIMITS[limit.limit]})


def _rows(
    film: FilmTask, spec: ClipSpec, work: Work, tries: dict[ItemKey, Try]
) -> Iterator[tuple[Shot | None, Clip | None, Image | None]]:
    """A film's shots, each with its clip and its image if it has them; a given clip or image as one of these."""
    if film.kind != "film":
        yield _given_rows(film, work.items.need(film.keys[0]))
        return
    shots = film.keys[0]
    problem = tries[shots].reason if shots in tries else work.items.answer(shots, Shots).problem
    if problem:
        yield _shot_row(film, scenes.Shot(0, film.num_frames, problem)), None, None
        return
    for shot in _split(shots, spec, work):
        if shot.reason:
            yield _shot_row(film, shot), None, None
            continue
        key = _clip_of(film.sha256, shot, spec).key
        problem = tries[key].reason if key in tries else work.items.answer(key, Cut).problem
        if problem:
            yield _shot_row(film, shot._replace(reason=problem)), None, None
            continue
        yield _shot_row(film, shot), *_cut_rows(film, shot, work.items.need(key))


def _cut_rows(film: FilmTask, shot: scenes.Shot, item: Item) -> tuple[Clip, Image]:
    about = Cut.model_validate(item.answer)
    size = {"width_px": about.width_px, "height_px": about.height_px}
    clip_id = _shot_id(film, shot)
    clip = Clip(
        id=clip_id,
        video_id=film.video_id,
        first_frame=shot.first_frame,
        end_frame=shot.end_frame,
        num_frames=shot.num_frames,
        fps=about.fps,
        **size,
        **_about(film, item, item.objects[0]),
    )
    image = Image(
        id=content_id(film.video_id, about.image_frame, "image"),
        clip_id=clip_id,
        video_id=film.video_id,
        frame=about.image_frame,
        **size,
        **_about(film, item, item.objects[1]),
    )
    return clip, image


def _given_rows(film: FilmTask, item: Item) -> tuple[Shot | None, Clip | None, Image | None]:
    """A given clip or image, byte for byte. Its frames were decoded and counted when it was ingested."""
    size: dict[str, Any] = {"width_px": film.width_px, "height_px": film.height_px}
    about = _about(film, item, item.objects[0])
    own = {"id": film.video_id, "video_id": film.video_id}
    if film.kind == "image":
        return None, None, Image(**own, clip_id=film.clip_id, frame=0, **size, **about)
    span: dict[str, Any] = {"first_frame": 0, "end_frame": film.num_frames}
    clip = Clip(**own, num_frames=film.num_frames, fps=film.fps, **span, **size, **about)
    return Shot(**own, state="clip", **span), clip, None


def _about(film: FilmTask, item: Item, stored: StoredObject) -> dict[str, Any]:
    """The fields of a row that tell of its file."""
    return {
        "key": stored.key,
        "size_bytes": stored.size_bytes,
        "sha256": stored.sha256,
        "source_sha256": film.sha256,
        "item": "/".join(item.item_key),
    }


def _shot_row(film: FilmTask, shot: scenes.Shot) -> Shot:
    return Shot(
        id=_shot_id(film, shot),
        video_id=film.video_id,
        first_frame=shot.first_frame,
        end_frame=shot.end_frame,
        state="dropped" if shot.reason else "clip",
        reason=shot.reason,
    )


def _shot_id(film: FilmTask, shot: scenes.Shot) -> str:
    return content_id(film.video_id, shot.first_frame, shot.end_frame)
