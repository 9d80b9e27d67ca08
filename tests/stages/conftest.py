"""What tests of several stages need: a store, drawn clips, and the clip stage's artifact made of them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from bricks_core.progress import Progress
from bricks_core.spec.clip import Clip, ClipSpec, Image
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.items import recipe
from bricks_core.spec.manifest import Manifest, content_id
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Strict
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.storage.work import Joined, Work
from bricks_core.video.write import jpeg, write_mp4

WIDTH, HEIGHT = 160, 96
COLOURS = {
    "red": (200, 30, 30),
    "green": (60, 150, 60),
    "blue": (30, 70, 200),
    "yellow": (235, 205, 50),
    "light blue": (150, 205, 245),
    "grey": (130, 130, 132),
    "black": (4, 4, 5),
    "white": (250, 250, 250),
}


class Mover(NamedTuple):
    """A square that moves: where it starts, and how far each picture takes it, in pixels."""

    colour: str = "red"
    x: float = 20
    y: float = 55
    dx: float = 4
    dy: float = 0
    side: int = 16


def scene(
    movers: Iterable[Mover] = (),
    *,
    num_frames: int = 24,
    hold: int = 2,
    ground: str = "green",
    background: str = "light blue",
    pan_px: float = 0,
    jitter_px: float = 0,
    flicker: float = 0,
    light: float = 1,
    seed: int = 0,
) -> np.ndarray:
    """(num_frames, HEIGHT, WIDTH, 3): studs on a ground, towers behind, things that move, held pictures."""
    dice = np.random.default_rng(seed)
    wide = 4 * WIDTH
    stage = np.empty((HEIGHT, wide, 3), np.float32)
    horizon = HEIGHT * 2 // 5
    stage[:horizon], stage[horizon:] = COLOURS[background], COLOURS[ground]
    for x in range(0, wide, 10):
        stage[horizon + 4 :: 8, x : x + 5] *= 0.8
    for x in range(30 + 7 * seed % 40, wide, 70):
        stage[horizon - 16 : horizon, x : x + 12] = COLOURS["grey"]
    pictures = []
    for index in range(-(-num_frames // hold)):
        picture = stage.copy()
        for mover in movers:
            x, y = round(mover.x + index * mover.dx) + WIDTH, round(mover.y + index * mover.dy)
            picture[max(y, 0) : y + mover.side, x : x + mover.side] = COLOURS[mover.colour]
        left = WIDTH + round(index * pan_px)
        shake = np.array([[1, 0, dice.normal(0, jitter_px)], [0, 1, dice.normal(0, jitter_px)]])
        picture = cv2.warpAffine(picture[:, left : left + WIDTH], shake, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        picture *= light * (1 + dice.normal(0, flicker))
        pictures += [np.clip(picture, 0, 255).astype(np.uint8)] * hold
    return np.stack(pictures[:num_frames])


def plain(colour: str, num_frames: int = 24) -> np.ndarray:
    """(num_frames, HEIGHT, WIDTH, 3) of nothing but one colour."""
    return np.full((num_frames, HEIGHT, WIDTH, 3), COLOURS[colour], np.uint8)


@pytest.fixture
def folder_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def put_clips(store: Store, films: Mapping[str, list[np.ndarray]], folder: Path, fps: float = 24) -> dict[str, str]:
    """Commit a clip artifact of these films' clips and middle images. Returns the clips' ids by "film/place"."""
    films_work = Work(store, STAGES["ingest"], IngestSpec(sources=["films"]), "1" * 32, {}, {}, Progress("ingest"))
    films_work.commit(Joined({"videos": [], "given": []}))
    work = Work(store, STAGES["clip"], ClipSpec(), "c" * 32, {"ingest": "1" * 32}, {}, Progress("clip"))
    ids = {}
    clips, images, keys = [], [], []
    for film, scenes in films.items():
        source = hashlib.sha256(film.encode()).hexdigest()
        for place, pictures in enumerate(scenes):
            clip_id, image_id = content_id("clip", film, place), content_id("image", film, place)
            ids[f"{film}/{place}"] = clip_id
            file, picture = folder / f"{clip_id}.mp4", folder / f"{image_id}.jpg"
            write_mp4(file, pictures, fps)
            picture.write_bytes(jpeg(pictures[len(pictures) // 2]))
            first = 1000 * place
            made = recipe("clip", source=source, span=[first, first + len(pictures)])
            stored = work.items.put_file(made.key, file, ".mp4"), work.items.put_file(made.key, picture, ".jpg")
            work.items.put(made, {}, stored)
            keys.append(made.key)
            size = {"width_px": pictures.shape[2], "height_px": pictures.shape[1]}
            derived = {"source_sha256": source, "item": "/".join(made.key)}
            about = [
                {"key": each.key, "size_bytes": each.size_bytes, "sha256": each.sha256} | derived for each in stored
            ]
            video_id = content_id("video", film)
            span = {"first_frame": first, "end_frame": first + len(pictures), "num_frames": len(pictures), "fps": fps}
            clip = Clip(id=clip_id, video_id=video_id, **span, **size, **about[0])
            image = Image(
                id=image_id, clip_id=clip_id, video_id=video_id, frame=first + len(pictures) // 2, **size, **about[1]
            )
            clips.append(clip)
            images.append(image)
    by_id = {"clips": sorted(clips, key=lambda row: row.id), "images": sorted(images, key=lambda row: row.id)}
    work.commit(Joined({"shots": [], **by_id}, keys))
    return ids


def work_on(store: Store, stage: str, spec: Strict, digest: str = "d" * 32, **settings: Any) -> Work:
    """A stage's working place, on the artifacts that `put_clips` and `finish` left."""
    inputs = {
        need: open_artifact(store, need, {"ingest": "1", "clip": "c", "score": "5"}[need] * 32)
        for need in STAGES[stage].needs
    }
    digests = {need: artifact.manifest.digest for need, artifact in inputs.items()}
    return Work(store, STAGES[stage], spec, digest, digests, inputs, Progress(stage), **settings)


def finish(work: Work) -> Manifest:
    """Run the stage, join and commit."""
    module = importlib.import_module(f"bricks_core.stages.{work.stage.name}.stage")
    with work.progress:
        module.run(work.spec, work)
    assert work.pending(module.tasks(work.spec, work)) == []
    return work.commit(module.join(work.spec, work))


class Drawing(NamedTuple):
    """The functions of this file, since test files cannot import it."""

    scene: Callable[..., np.ndarray] = scene
    plain: Callable[..., np.ndarray] = plain
    Mover: type[Mover] = Mover
    put_clips: Callable[..., dict[str, str]] = put_clips
    work_on: Callable[..., Work] = work_on
    finish: Callable[[Work], Manifest] = finish


@pytest.fixture(scope="session")
def drawing() -> Drawing:
    return Drawing()
