"""What a store of many clips costs: the commands that look at it, commits, and finding the one item that is new.

    python -m benchmarks.large_store [--save] [--clips 100000]

The filter keeps every other clip. Of these the clip and its middle image have a caption each, so that there are as many
captions as clips; and three items for two captions, since what is seen of a clip is one, too.
The store is made by real commits of real rows; only the answers are drawn. Every figure is of a process of its own.

Baselines, in the same run: a plan that looks at every item's file, as each did before items had keys (and as bricks run
does still), and reading a record at a time, three times over, as each commit did then. Requests are what S3 would be
asked: a listing is one for every 1,000 objects.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.record import flags, keep
from bricks_core.pipeline.plan import Step, plan_stage
from bricks_core.pipeline.points import point, read_pointer
from bricks_core.pipeline.resolve import Found, Resolver
from bricks_core.progress import Progress
from bricks_core.spec.caption import CaptionSpec
from bricks_core.spec.clip import Clip, Image, Shot
from bricks_core.spec.ingest import Video
from bricks_core.spec.items import Item, ItemKey, Recipe, recipe
from bricks_core.spec.manifest import StoredObject, content_id
from bricks_core.spec.run import BrickRun, load_run
from bricks_core.spec.score import Score
from bricks_core.spec.stages import until
from bricks_core.stages.caption import stage as caption_stage
from bricks_core.stages.caption.sources import Recipes, Sight, kept_media
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.folder import FolderStore
from bricks_core.storage.in_order import in_order
from bricks_core.storage.items import Items
from bricks_core.storage.store import Entry, Store
from bricks_core.storage.work import Joined, Work

ROOT = Path(__file__).parents[1]
CLIPS_A_FILM = 100
FRAMES = 60
RUN = "large"
COMMANDS = {
    "bricks plan": ["plan", "FILE"],
    f"bricks show {RUN}/clip": ["show", f"{RUN}/clip", "--rows", "2"],
    f"bricks show {RUN}/caption": ["show", f"{RUN}/caption", "--rows", "2"],
    "bricks status": ["status"],
}


AT_HAND = "commit of captions, records at hand"
BEFORE: dict[str, dict[str, Any]] = {
    "bricks plan, first": {"cpu_s": 51.1, "wall_s": 56.3, "peak_mb": 327},
    "bricks plan": {"cpu_s": 23.4, "wall_s": 36.4, "peak_mb": 326},
    f"bricks show {RUN}/clip": {"cpu_s": 18.8, "wall_s": 29.0, "peak_mb": 387},
    f"bricks show {RUN}/caption": {"cpu_s": 2.3, "wall_s": 2.8, "peak_mb": 189},
    "bricks status": {"cpu_s": 0.4, "wall_s": 0.4, "peak_mb": 54},
    "commit of 200,000 captions, judged before it": {"cpu_s": 21.0, "wall_s": 24.0, "requests": {"get": 300_000}},
}
"""The same with the code and the layout of fe25134, measured once, on the machine of the result of 2026-11-30. A record
held the captions of a clip and its image. Records and files lay in the page cache, as here. That
commit made no keys and judged no caption, as each now does: the most of its CPU seconds."""

BEFORE_COMMITS: dict[str, dict[str, Any]] = {
    AT_HAND: {"cpu_s": 47.4, "wall_s": 129.0, "peak_mb": 446},
    "commit of captions by a new process": {"cpu_s": 63.5, "wall_s": 123.3, "peak_mb": 519},
    "commit of captions, one more": {"cpu_s": 49.5, "wall_s": 109.8, "peak_mb": 508},
}
"""With the code of 56d897b, on the same machine, which others used as well. Each task was told three times then, and
each record at hand was read alone."""


def main() -> None:
    """Make the store, then measure each thing in a process of its own."""
    parser = flags(__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help="one thing, in a store made before")
    arguments = parser.parse_args()
    if arguments.measure:
        what, folder = arguments.measure
        print(json.dumps(MEASURES[what](Large(Path(folder), arguments.clips))))
        return
    with tempfile.TemporaryDirectory(prefix="bricks-") as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        large = Large(Path(name), arguments.clips)
        large.make_sources()
        found: dict[str, Any] = {"num_clips": large.num_clips, "num_captions": large.num_clips}
        found["before (fe25134, 100,000 clips)"] = BEFORE
        found["before (56d897b, 100,000 clips)"] = BEFORE_COMMITS
        for what in MEASURES:
            words = ["-m", "benchmarks.large_store", "--clips", str(large.num_clips), "--measure", what, name]
            done = subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE)
            found[what] = json.loads(done.stdout)
            print(what, found[what], file=sys.stderr)
            if what == AT_HAND:
                time.sleep(4)  # a file's content is remembered once the file is older than the coarsest of clocks
                for command, flagged in COMMANDS.items():
                    found[command] = _command(flagged, large)
                    print(command, found[command], file=sys.stderr)
        keep("large_store", found, save=arguments.save)


class Drawn(NamedTuple):
    """A drawn clip: its rows, and what its items are made of."""

    shot: Shot
    clip: Clip
    image: Image
    score: Score
    cut: Recipe
    measured: Recipe


class Large:
    """A run of many clips, drawn: the same each time."""

    def __init__(self, folder: Path, num_clips: int):
        self.num_clips = num_clips
        self.films, self.file, self.place = folder / "films", folder / "run.yaml", folder / "store"

    def make_sources(self) -> None:
        """Films of a few bytes, and the run's file."""
        self.films.mkdir()
        for number in range(self.num_clips // CLIPS_A_FILM):
            (self.films / f"film-{number:05d}.mp4").write_bytes(str(number).encode())
        document: dict[str, Any] = yaml.safe_load((ROOT / "k8s/runs/quickstart.yaml").read_text(encoding="utf-8"))
        document["metadata"]["name"] = RUN
        document["spec"]["ingest"]["sources"] = [str(self.films)]
        document["spec"]["caption"] = {"provider": "openai", "model": "a-vision-model"}
        self.file.write_text(yaml.safe_dump(document), encoding="utf-8")

    def run(self) -> BrickRun:
        return load_run(self.file)

    def videos(self) -> Iterator[tuple[Video, Recipe]]:
        """The films, in no order."""
        for number in range(self.num_clips // CLIPS_A_FILM):
            name = f"film-{number:05d}.mp4"
            sha256 = _sha256(str(number))
            facts: dict[str, Any] = {"name": name, "source": str(self.films), "licence": "CC0-1.0", "credit": ""}
            num_frames = FRAMES * CLIPS_A_FILM
            seen = {"width_px": 1920, "height_px": 1080, "num_frames": num_frames, "fps": 24.0, "codec": "h264"}
            row = Video(
                id=content_id("film", name), sha256=sha256, size_bytes=len(str(number)), state="ok", **facts, **seen
            )
            yield row, recipe("film", sha256=sha256)

    @cached_property
    def clips(self) -> list[Drawn]:
        """The clips of all films, in no order."""
        return list(self._clips())

    def _clips(self) -> Iterator[Drawn]:
        size: dict[str, Any] = {"width_px": 1920, "height_px": 1080}
        for video, _ in self.videos():
            for place in range(CLIPS_A_FILM):
                first, end = place * FRAMES, place * FRAMES + FRAMES
                cut = recipe("clip", sha256=video.sha256, span=[first, end], encoder={})
                of: dict[str, Any] = {"video_id": video.id, "source_sha256": video.sha256, "item": "/".join(cut.key)}
                span: dict[str, Any] = {"first_frame": first, "end_frame": end}
                mp4, jpg = self.files(cut)
                clip = Clip(
                    id=content_id(video.id, first, end), num_frames=FRAMES, fps=24.0, **_file(mp4), **span, **size, **of
                )
                image = Image(
                    id=content_id(video.id, first, "image"),
                    clip_id=clip.id,
                    frame=first + 30,
                    **_file(jpg),
                    **size,
                    **of,
                )
                shot = Shot(id=clip.id, video_id=video.id, state="clip", **span)
                measured = recipe("measures", of="/".join(cut.key))
                yield Drawn(shot, clip, image, _score(clip, is_kept=place % 2 == 0), cut, measured)

    def files(self, cut: Recipe) -> list[StoredObject]:
        """The files of a clip's item: a byte each."""
        names = (f"{cut.key.place}.{_sha256(each)[:8]}.{each}" for each in ("mp4", "jpg"))
        return [StoredObject(key=name, size_bytes=1, sha256=_sha256(name[-1])) for name in names]

    def records(self, stage: str) -> Iterator[tuple[Recipe, str]]:
        """The records of a stage's items, and what they are made of."""
        if stage == "ingest":
            yield from ((made, _record(made, {"num_frames": FRAMES})) for _, made in self.videos())
        elif stage == "clip":
            yield from ((each.cut, _record(each.cut, _CUT, self.files(each.cut))) for each in self.clips)
        elif stage == "score":
            yield from ((each.measured, _record(each.measured, _MEASURES)) for each in self.clips)
        else:
            recipes = Recipes.of(self.run().spec.caption)
            for task in kept_media(self.work("caption", FolderStore(str(self.place), self.place))):
                seen = recipes.sight(task)
                sight = Sight(frames=[task.first_frame + frame for frame in (12, 30, 47)])
                yield seen, _record(seen, sight.model_dump())
                yield from ((each.recipe, _record(each.recipe, _ANSWER)) for each in recipes.questions(task, sight))

    @cached_property
    def caption_keys(self) -> list[ItemKey]:
        """The items of all captions: what was seen of each clip, and two answers."""
        return [made.key for made, _ in self.records("caption")]

    def joined(self, stage: str) -> Joined:
        """What a stage before the captions commits."""
        keys = [made.key for made, _ in self.records(stage)]
        if stage == "ingest":
            return Joined({"videos": in_order((row for row, _ in self.videos()), Video), "given": []}, keys)
        if stage == "score":
            return Joined({"scores": in_order((each.score for each in self.clips), Score)}, keys)
        return Joined(
            {
                "shots": in_order((each.shot for each in self.clips), Shot),
                "clips": in_order((each.clip for each in self.clips), Clip),
                "images": in_order((each.image for each in self.clips), Image),
            },
            keys,
        )

    def commit(self, stage: str, store: Counting) -> dict[str, Any]:
        """Commit a stage whose records are at hand, and point the run at it."""
        items = Items(store)
        items._spool.add((made.key, record) for made, record in self.records(stage))
        work = self.work(stage, store, items)
        told = self.told_of(
            lambda _: commit_captions(work) if stage == "caption" else work.commit(self.joined(stage)), store
        )
        *_, step = self.stages(store, stage)
        assert step.address is not None
        point(RUN, store, step.address.pointer())
        return told

    def work(self, stage: str, store: Store, items: Items | None = None) -> Work:
        """A stage's working place, once those before it are done."""
        *_, step = self.stages(store, stage)
        address = step.address
        assert address is not None
        inputs = {need: open_artifact(store, need, address.inputs[need]) for need in address.stage.needs}
        return Work(
            store,
            address.stage,
            address.spec,
            address.digest,
            address.inputs,
            inputs,
            Progress(stage),
            items=items or Items(store),
        )

    def stages(self, store: Store, stop_after: str = "caption", *, items: bool = False) -> Iterator[Step]:
        """The run's stages, as they are."""
        run, found = self.run(), Found()
        resolver = Resolver(run, store)
        for stage in until(stop_after):
            step = plan_stage(run, store, resolver, stage, found, items=items)
            if step.address is not None and step.manifest is not None:
                found[stage.name] = step.address, step.manifest
            yield step

    def last(self, stage: str, store: Store) -> Artifact:
        """The run's last artifact of a stage."""
        pointer = read_pointer(store, RUN, stage)
        assert pointer is not None
        return open_artifact(store, stage, pointer.digest)

    def told_of(self, do: Callable[[Counting], Any], store: Counting | None = None) -> dict[str, Any]:
        """What it takes to do something with the store."""
        store = store or Counting(self.place)
        store.num.clear()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        do(store)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        requests = dict(sorted(store.num.items()))
        return {"cpu_s": round(cpu_s, 1), "wall_s": round(wall_s, 1), "peak_mb": peak_mb, "requests": requests}


class Counting(FolderStore):
    """A folder that counts what S3 would have been asked for."""

    def __init__(self, root: Path):
        super().__init__(str(root), root)
        self.num: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.num["get"] += 1
        return super().get(key)

    def local(self, key: str, *, sha256: str | None = None) -> Any:
        self.num["get"] += 1
        return super().local(key, sha256=sha256)

    def heads(self, keys: Iterable[str], *, num_at_once: int = 32) -> Iterator[tuple[str, Entry | None]]:
        keys = list(keys)
        self.num["head"] += len(keys)
        return super().heads(keys, num_at_once=num_at_once)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        self.num["put"] += 1
        return super().put(key, data, if_absent=if_absent)

    def put_file(self, key: str, path: Path) -> StoredObject:
        self.num["put"] += 1
        return super().put_file(key, path)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for number, entry in zip(count(), super().list(prefix), strict=False):
            self.num["list"] += number % 1000 == 0
            yield entry


def make_store(large: Large) -> dict[str, Any]:
    """Ingest, clip and score, and the files of clips."""
    for each in large.clips:
        for stored in large.files(each.cut):
            path = large.place / stored.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stored.key[-1].encode())
    store = Counting(large.place)
    return {stage: large.commit(stage, store)["requests"] for stage in ("ingest", "clip", "score")}


def commit_at_hand(large: Large) -> dict[str, Any]:
    """Right after the work, in the same process."""
    return large.commit("caption", Counting(large.place))


def commit_captions(work: Work, *, tag: str = "", more: Iterable[ItemKey] = ()) -> None:
    """As whoever ends the stage does it: is anything pending, what is there, and the tables. `tag`: its address is
    another for each."""
    spec = work.spec
    assert isinstance(spec, CaptionSpec)
    assert not work.pending(caption_stage.tasks(spec, work))
    joined = caption_stage.join(spec, work)
    work.commit(replace(joined, items=[*joined.items, *more], depends_on={"tag": tag} if tag else {}))


def plan_before(large: Large) -> dict[str, Any]:
    """A plan that looks at the file of every item."""
    return large.told_of(lambda store: list(large.stages(store, items=True)))


def commit_before(large: Large) -> dict[str, Any]:
    """The records alone, one at a time, three times over: what a commit read before, without its tables."""
    keys = large.caption_keys

    def read(store: Counting) -> None:
        for _ in range(3):
            for key in keys:
                Item.opened(store.get(key.record), key)

    return large.told_of(read)


def write_records(large: Large) -> dict[str, Any]:
    """The records of all captions, each an object, as they are while no artifact has them."""
    num_records = 0
    for num_records, (made, record) in enumerate(large.records("caption"), start=1):  # noqa: B007  the count is told
        path = large.place / made.key.record
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Item.model_validate_json(record).sealed())
    return {"num_records": num_records}


def commit_from_store(large: Large) -> dict[str, Any]:
    """A process that has done none of the work finds all of it done, and commits."""
    return large.told_of(lambda store: commit_captions(large.work("caption", store), tag="from the store"))


def commit_one_more(large: Large) -> dict[str, Any]:
    """There is one item more than in the run's last artifact."""
    more = recipe("answer", shown="one more")

    def commit(store: Counting) -> None:
        items = Items(store, large.last("caption", store).bundle())
        items.put(more, _ANSWER)
        commit_captions(large.work("caption", store, items), tag="one more", more=[more.key])

    return large.told_of(commit)


def find_new(large: Large, num_new: int, *, with_bundle: bool) -> dict[str, Any]:
    """Which items of all are new, asked by a process that knows nothing yet."""
    known = large.caption_keys
    new = [recipe("answer", shown=["new", number]).key for number in range(num_new)]

    def find(store: Counting) -> None:
        items = Items(store, large.last("caption", store).bundle() if with_bundle else ())
        assert len(items.load([*known, *new])) == len(known)

    return large.told_of(find)


MEASURES: dict[str, Callable[[Large], dict[str, Any]]] = {
    "store": make_store,
    AT_HAND: commit_at_hand,
    "plan that looks at every item's file": plan_before,
    "records written": write_records,
    "records read one at a time, three times": commit_before,
    "commit of captions by a new process": commit_from_store,
    "commit of captions, one more": commit_one_more,
    "finding 1 new, with the last artifact": partial(find_new, num_new=1, with_bundle=True),
    "finding 1000 new, with the last artifact": partial(find_new, num_new=1000, with_bundle=True),
    "finding 1 new, without": partial(find_new, num_new=1, with_bundle=False),
}


def _command(command: Iterable[str], large: Large) -> dict[str, Any]:
    """What a command takes, by a small process that has no other child."""
    words = [str(large.file) if word == "FILE" else word for word in command]
    return _of_a_child(["-m", "jobs.bricks", *words, "--store", str(large.place)])


_WATCH = """
import json, resource, subprocess, sys, time
begun = time.perf_counter()
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu_s, wall_s = used.ru_utime + used.ru_stime, time.perf_counter() - begun
print(json.dumps({"cpu_s": round(cpu_s, 2), "wall_s": round(wall_s, 2), "peak_mb": used.ru_maxrss // 1000}))
"""


def _of_a_child(words: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _WATCH, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _record(made: Recipe, answer: dict[str, Any], objects: Iterable[StoredObject] = ()) -> str:
    item = Item(
        kind=made.key.kind,
        key=made.key.key,
        made_of=made.made_of,
        answer=answer,
        objects=list(objects),
        by=_BY,
        code_version="1.0.0",
    )
    return item.model_dump_json()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file(stored: StoredObject) -> dict[str, Any]:
    return stored.model_dump()


def _score(clip: Clip, *, is_kept: bool) -> Score:
    state: dict[str, Any] = (
        {"state": "kept", "reasons": []} if is_kept else {"state": "dropped", "reasons": ["too still"]}
    )
    facts = state | {"split": "train"}
    return Score(id=clip.id, video_id=clip.video_id, num_frames=clip.num_frames, **facts, **_MEASURES)


_BY = "a-vision-model-2026-11"
_ANSWER = {
    "text": "A bright scene on green ground in front of a light blue background. White stands out. One red thing moves "
    "to the right at the pace of a walk, and the camera stands still.",
    "model": _BY,
    "refused": "",
    "prompt_tokens": 1000,
    "output_tokens": 60,
}
_CUT = {"image_frame": 30, "width_px": 1920, "height_px": 1080, "fps": 24.0}
_MEASURES: dict[str, Any] = {
    "motion": 20.0,
    "motion_x": 0.1,
    "motion_y": 0.1,
    "camera_x": 0.0,
    "camera_y": 0.0,
    "sharpness": 100.0,
    "brightness": 100.0,
    "contrast": 50.0,
    "plain_share": 0.1,
    "duplicate_frame_share": 0.0,
    "picture_fps": 24.0,
    "perceptual_hash": ["0123456789abcdef"] * 3,
}


if __name__ == "__main__":
    main()
