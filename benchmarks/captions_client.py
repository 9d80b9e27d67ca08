"""What asking a model costs the machine that asks: CPU seconds for 24,000 captions, all but the model itself.

    python -m benchmarks.captions_client [--save] [--captions 2000] [--concurrency 8]

A server in a process of its own answers every question after 20 ms. The clips are the same few small pictures under
other names, so that what is measured is the client: finding what is pending, decoding and packing pictures, claims,
requests, records, and the table at the end. Clips as large as films have take more to decode: a few milliseconds each
for a frame of 1080p, up to the last that is shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import flags, keep
from bricks_core.progress import Progress
from bricks_core.spec.caption import CaptionSpec
from bricks_core.spec.clip import Clip, ClipSpec, Image
from bricks_core.spec.ingest import IngestSpec
from bricks_core.spec.items import recipe
from bricks_core.spec.manifest import content_id
from bricks_core.spec.score import Score, ScoreSpec
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Strict
from bricks_core.stages.caption import asking, stage
from bricks_core.stages.caption.vision_model import VisionModel
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Items
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.storage.work import Joined, Work
from bricks_core.video.write import jpeg, write_mp4

ANSWER_S = 0.02
WHOLE = 24_000
NUM_FRAMES, HEIGHT, WIDTH = 18, 96, 160
CLIPS_A_FILM = 40
DIGESTS = {"ingest": "1" * 32, "clip": "2" * 32, "score": "3" * 32}
SAID = "A red block moves over a green field to the right. The evening sun stands low."

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("calls", VisionModel, "ask"),
    ("pictures", asking._Shown, "look"),
    ("pictures", asking._Shown, "pictures"),
    ("pictures", asking, "read_picture"),
    ("pictures", asking, "to_jpeg"),
    ("records", Items, "put"),
    ("claims", Claims, "take"),
    ("claims", Claims, "release"),
)
"""What is told apart: its name, and where it is done."""
BEFORE = {
    "the first look at a clip left out, on a quiet machine": {
        "calls": 35.2,
        "all_of_asking": 152.4,
        "table": 5.3,
        "nothing_to_ask": 13.0,
    },
    "as now, on a machine that others used as well": {
        "calls": 65.6,
        "all_of_asking": 1101.0,
        "table": 7.8,
        "nothing_to_ask": 13.8,
    },
}
"""With the code of 8d46358, on the machine of the result of 2026-11-30. A look at a clip of 18 small frames took 58 ms;
now it is part of `pictures`."""


def main() -> None:
    """Ask; then run again with nothing left to ask."""
    parser = flags(__doc__)
    parser.add_argument("--captions", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bricks-") as name, Answering() as server:
        os.environ |= {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none"}
        store = open_store(str(Path(name) / "store"))
        put_inputs(store, Path(name), arguments.captions // 2)
        spec = CaptionSpec(provider="openai", model="stub", concurrency=arguments.concurrency)
        for part, owner, method in PARTS:
            setattr(owner, method, timed(part, getattr(owner, method)))
        asked = caption(store, spec, "4" * 32)
        parts = dict(SPENT)
        again = caption(store, spec.model_copy(update={"concurrency": 4}), "5" * 32)
    all_of_asking = asked["asking_cpu_s"]
    cpu_s = {
        **parts,
        "the_rest_of_asking": all_of_asking - sum(parts.values()),
        "all_of_asking": all_of_asking,
        "table": asked["table_cpu_s"],
        "nothing_to_ask": again["asking_cpu_s"] + again["table_cpu_s"],
    }
    found = {
        "num_captions": arguments.captions,
        "concurrency": arguments.concurrency,
        "answer_after_s": ANSWER_S,
        "asked": asked,
        "nothing_to_ask": again,
        f"cpu_s_for_{WHOLE}": {name: round(each * WHOLE / arguments.captions, 1) for name, each in cpu_s.items()},
        f"before, cpu_s_for_{WHOLE}": BEFORE,
    }
    keep("captions_client", found, save=arguments.save)


SPENT: defaultdict[str, float] = defaultdict(float)
"""CPU seconds by part."""
_LOCK = threading.Lock()
_OF_THREAD = threading.local()


def timed(part: str, do: Callable[..., Any]) -> Callable[..., Any]:
    """Counts what `do` takes on its thread as this part's, unless it is part of another's."""

    def counted(*arguments: Any, **named: Any) -> Any:
        if getattr(_OF_THREAD, "is_counting", False):
            return do(*arguments, **named)
        _OF_THREAD.is_counting, began_s = True, time.thread_time()
        try:
            return do(*arguments, **named)
        finally:
            _OF_THREAD.is_counting = False
            with _LOCK:
                SPENT[part] += time.thread_time() - began_s

    return counted


def caption(store: Store, spec: CaptionSpec, digest: str) -> dict[str, float]:
    """Run the stage in this process: its seconds, and those of CPU."""
    work = work_on(store, "caption", spec, digest, "ingest", "clip", "score")
    began_s, began_cpu_s = time.perf_counter(), cpu_now_s()
    stage.run(spec, work)
    asked_s, asked_cpu_s = time.perf_counter(), cpu_now_s()
    manifest = work.commit(stage.join(spec, work))
    work.claims.close()
    assert manifest.counts["ok"] == manifest.tables["captions"].num_rows
    return {
        "asking_s": round(asked_s - began_s, 2),
        "asking_cpu_s": round(asked_cpu_s - began_cpu_s, 2),
        "table_s": round(time.perf_counter() - asked_s, 2),
        "table_cpu_s": round(cpu_now_s() - asked_cpu_s, 2),
    }


def cpu_now_s() -> float:
    """CPU seconds of this process up to now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def put_inputs(store: Store, folder: Path, num_clips: int) -> None:
    """What ingest, clip and score leave of films whose clips all look the same."""
    pictures = np.full((NUM_FRAMES, HEIGHT, WIDTH, 3), (90, 160, 80), np.uint8)
    pictures[:, ::8, ::5] = (40, 60, 30)
    for index in range(NUM_FRAMES):
        pictures[index, 40:60, 10 + 5 * index : 30 + 5 * index] = (200, 30, 30)
    write_mp4(folder / "clip.mp4", pictures, 24)
    (folder / "image.jpg").write_bytes(jpeg(pictures[NUM_FRAMES // 2]))
    work_on(store, "ingest", IngestSpec(sources=["films"]), DIGESTS["ingest"]).commit(
        Joined({"videos": [], "given": []})
    )
    work = work_on(store, "clip", ClipSpec(), DIGESTS["clip"], "ingest")
    made = recipe("clip", source="0" * 64, span=[0, NUM_FRAMES])
    files = [
        work.items.put_file(made.key, folder / "clip.mp4", ".mp4"),
        work.items.put_file(made.key, folder / "image.jpg", ".jpg"),
    ]
    work.items.put(made, {}, files)
    clips, images, scores = [], [], []
    for number in range(num_clips):
        film, place = divmod(number, CLIPS_A_FILM)
        source, first = hashlib.sha256(str(film).encode()).hexdigest(), 100 * place
        each, video = content_id("clip", film, place), content_id("video", film)
        size = {"width_px": WIDTH, "height_px": HEIGHT}
        about = [
            {"key": file.key, "size_bytes": file.size_bytes, "sha256": file.sha256, "source_sha256": source}
            | {"item": "/".join(made.key), "video_id": video}
            for file in files
        ]
        span = {"first_frame": first, "end_frame": first + NUM_FRAMES, "num_frames": NUM_FRAMES, "fps": 24.0}
        clips.append(Clip(id=each, **span, **size, **about[0]))
        middle = first + NUM_FRAMES // 2
        images.append(Image(id=content_id("image", film, place), clip_id=each, frame=middle, **size, **about[1]))
        scores.append(score(each, video))
    work.commit(Joined({"clips": by_id(clips), "images": by_id(images), "shots": []}, [made.key]))
    work_on(store, "score", ScoreSpec(), DIGESTS["score"], "ingest", "clip").commit(Joined({"scores": by_id(scores)}))


def score(clip: str, video: str) -> Score:
    """A clip that was kept."""
    numbers: dict[str, Any] = dict.fromkeys(
        ("motion", "motion_x", "motion_y", "camera_x", "camera_y", "sharpness", "brightness", "contrast"), 20.0
    )
    return Score(
        id=clip,
        video_id=video,
        num_frames=NUM_FRAMES,
        plain_share=0.1,
        duplicate_frame_share=0.0,
        picture_fps=24.0,
        perceptual_hash=["0" * 16] * 3,
        state="kept",
        reasons=[],
        split="train",
        **numbers,
    )


def by_id(rows: list[Any]) -> list[Any]:
    """Rows as a table has them."""
    return sorted(rows, key=lambda row: row.id)


def work_on(store: Store, name: str, spec: Strict, digest: str, *needs: str) -> Work:
    """A stage's working place."""
    digests = {need: DIGESTS[need] for need in needs}
    inputs = {need: open_artifact(store, need, digest) for need, digest in digests.items()}
    return Work(store, STAGES[name], spec, digest, digests, inputs, Progress(name))


class Answering:
    """A server that speaks as much of chat completions as is needed, in a process of its own, while in the context."""

    def __enter__(self) -> Answering:
        here, there = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        self.url = f"http://127.0.0.1:{here.recv()}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(told: Connection) -> None:
    asyncio.run(_serving(told))


async def _serving(told: Connection) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0, limit=1 << 22)
    told.send(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in _lines(head) if line.startswith("content-length:"))
            await reader.readexactly(int(length.partition(":")[2]))
            await asyncio.sleep(ANSWER_S)
            data = json.dumps(REPLY).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _lines(head: bytes) -> Iterator[str]:
    yield from (line.lower() for line in head.decode().splitlines())


REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "stub-1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": SAID, "refusal": None}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 900, "completion_tokens": 40, "total_tokens": 940},
}


if __name__ == "__main__":
    main()
