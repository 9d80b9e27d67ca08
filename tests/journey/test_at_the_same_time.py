"""Several processes come to the same work at once, and some are killed: everything is done once, and paid for once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.pipeline.plan import differences
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.train import TrainSpec
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.claims import STALE_S, Claims
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import ALIGNMENT_BYTES
from bricks_core.storage.trainings import Trajectory, keyed
from tests.chat_server import Question, Reply, Server, said, serving
from tests.journey.tiny_run import Runner, artifacts, timeless
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow

RUNS = ("tiny", "other")
ALL = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0, "max_duplicate_frame_share": 1.0}
AS_MANY = {"tiny": ALL, "other": ALL | {"min_motion": 0.001}}
"""Two filters that keep the same, which is every clip."""
CONCURRENCY = 2
NUM_SHARDS = 4
MOST_S = 300.0
"""Nothing here takes so long, unless it stands still."""
TRAINS = re.compile(r"train: \d+/\d+ steps")

TELLS_RUN = re.compile(r"(index\.html|report\.json|settings\.yaml)$")
"""Files of a report with the settings of the run that made it."""
COLOURS = ("red", "green", "yellow", "white")


class Process:
    """One of our programs. What it says is heard while it runs."""

    def __init__(self, runner: Runner, *arguments: str, **environment: str) -> None:
        self._popen = runner.start(*arguments, **environment)
        self.pid = self._popen.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self._ears = [
            threading.Thread(target=self._hear, args=pair, daemon=True)
            for pair in ((self._popen.stdout, self.out), (self._popen.stderr, self.err))
        ]
        for ear in self._ears:
            ear.start()

    @staticmethod
    def _hear(pipe: Iterable[str], lines: list[str]) -> None:
        for line in pipe:
            lines.append(line)

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def says(self, words: str | re.Pattern[str]) -> str:
        """The first line with these words, once it is said."""
        until(lambda: self.said(words) or not self.is_running)
        self._popen.poll()
        found = self.said(words) or (self._heard() and self.said(words))
        assert found, f"{words} is not said:\n{self}"
        return found[0]

    def said(self, words: str | re.Pattern[str]) -> list[str]:
        return [line for line in tuple(self.err) if re.search(words, line)]

    def kill(self) -> None:
        """kill -9 of this process alone."""
        self._popen.kill()
        self._popen.wait()

    def ends(self, code: int = 0) -> str:
        """What it has printed, once it has ended as it should."""
        self._popen.wait(MOST_S)
        self._heard()
        assert self._popen.returncode == code, f"ended with {self._popen.returncode}:\n{self}"
        return "".join(self.out)

    def _heard(self) -> bool:
        for ear in self._ears:
            ear.join(10)
        return True

    def __str__(self) -> str:
        return "".join([*self.out, *self.err])


def until(holds: Callable[[], object]) -> None:
    """Return as soon as it holds."""
    start_s = time.monotonic()
    while not holds():
        assert time.monotonic() - start_s < MOST_S
        time.sleep(0.05)


class Meeting:
    """How a server answers: each question in its own way, and one asker, the first of `owners`, is kept waiting.

    The first question of every other rival waits until the owner has some in flight that are not answered, so that
    there is something left for the owner however fast the others are.
    """

    def __init__(self, owners: Iterable[str], others: Iterable[str] = (), *, after: int = 0) -> None:
        """`after`: so many questions of the owner are answered."""
        self._owners, self._others, self._after = set(owners), set(others), after
        self.owner = ""
        self._num: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._all_came, self.stuck, self.over = threading.Event(), threading.Event(), threading.Event()

    def answer(self, question: Question, number: int) -> Reply:
        who = asker(question)
        with self._lock:
            self._num[who] += 1
            num = self._num[who]
            if not self.owner and who in self._owners:
                self.owner = who
            if self.owner and self._others <= set(self._num):
                self._all_came.set()
        if not self.over.is_set() and who == self.owner:
            self._all_came.wait(MOST_S)
            if num > self._after:
                self.stuck.set()
                self.over.wait(MOST_S)
        elif not self.over.is_set() and who in self._others:
            self.stuck.wait(MOST_S)
        return reply(question)


def asker(question: Question) -> str:
    """Who asks: every process has a key of its own."""
    return question.key.removeprefix("Bearer ")


def reply(question: Question) -> Reply:
    """The same to the same question, and mostly another to another one."""
    digest = hashlib.sha256(b"".join(question.jpegs)).digest()
    first, second = COLOURS[digest[0] % len(COLOURS)], COLOURS[digest[1] % len(COLOURS)]
    return said(f"A {first} thing of size {digest[2]} moves over {second} ground. The evening sun stands low.")


def asked(server: Server, by: str = "") -> Counter[tuple[str, str]]:
    """How often each question was asked. `by`: by this one alone."""
    some = (question for question in server.questions if by in ("", asker(question)))
    return Counter((question.prompt, question.pictures) for question in some)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as told:
        yield told


@pytest.fixture
def model(server: Server) -> Server:
    """Asked nothing yet."""
    server.questions.clear()
    server.answer = lambda question, number: reply(question)
    return server


@pytest.fixture(scope="module")
def new_user(new_runner: Callable[..., Runner], tiny: Callable[..., str], server: Server) -> Callable[[], Runner]:
    """Somebody with two run files, of which the second keeps the same clips by another filter."""

    def made() -> Runner:
        user = new_runner()
        for name in RUNS:
            document: dict[str, Any] = yaml.safe_load(tiny(name=name))
            document["spec"]["caption"] = {"provider": "openai", "model": "eyes-1", "concurrency": CONCURRENCY}
            document["spec"]["score"]["filter"] = AS_MANY[name]
            (user.folder / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return user

    return made


@pytest.fixture(scope="module")
def alone(new_user: Callable[[], Runner], server: Server) -> tuple[Path, Counter[tuple[str, str]]]:
    """The store after both runs, one after the other and undisturbed; and what was asked."""
    user = new_user()
    server.questions.clear()
    server.answer = lambda question, number: reply(question)
    for name in RUNS:
        user.bricks("run", f"{name}.yaml", OPENAI_BASE_URL=server.url, OPENAI_API_KEY="alone")
    questions = asked(server)
    # Some are asked more than once: films that show the same are other films.
    assert questions.total() == len(list(user.folder.glob("bricks-store/items/answer/*/*.json"))) > 8
    assert wasted(folder_objects(user.folder / "bricks-store")) == []
    return user.folder / "bricks-store", questions


def folder_objects(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def wasted(objects: Mapping[str, bytes]) -> list[str]:
    """Packs that hold anything that is no item's, and so was encoded again by somebody else."""
    pieces: dict[str, set[tuple[int, int]]] = {key: set() for key in objects if key.startswith("items/pack/")}
    for key, data in objects.items():
        if not re.match(r"items/(latent|text)/.*\.json", key):
            continue
        record = json.loads(json.loads(data)["item"])
        answer, (stored,) = record["answer"], record["objects"]
        if record["kind"] == "latent":
            num = answer["num_frames"] * answer["channels"] * answer["height"] * answer["width"]
            assert answer["time_stride"] == 1
        else:
            num = answer["num_tokens"] * answer["width"]
        pieces[stored["key"]].add((answer["offset_bytes"], answer["offset_bytes"] + 2 * num))
    return [key for key, found in pieces.items() if not is_full(len(objects[key]), found)]


def is_full(size_bytes: int, pieces: set[tuple[int, int]]) -> bool:
    ends = [(0, ALIGNMENT_BYTES), *sorted(pieces)]
    aligned = all(-(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES == begin for (_, end), (begin, _) in pairwise(ends))
    return aligned and ends[-1][1] == size_bytes and len(ends) > 1


def is_about(line: str, pid: int) -> bool:
    """Whether it says who is at it: the host, the process, and since when."""
    since = re.search(r"since \d{4}-\d\d-\d\dT", line)
    return since is not None and socket.gethostname() in line and f"process {pid} " in line


def test_runs_at_once_in_a_folder_whose_owner_is_killed_ask_encode_and_train_once(alone, new_user, model):
    undisturbed, questions = alone
    user = new_user()
    store = user.folder / "bricks-store"
    meeting = Meeting(["owner"], ["other"], after=2)
    model.answer = meeting.answer

    def run(file: str, who: str, *flags: str) -> Process:
        return Process(user, "jobs.bricks", "run", file, *flags, OPENAI_BASE_URL=model.url, OPENAI_API_KEY=who)

    owner, other = run("tiny.yaml", "owner"), run("other.yaml", "other")
    until(lambda: meeting.stuck.is_set() or not owner.is_running or not other.is_running)
    assert owner.is_running, str(owner)
    assert other.is_running, str(other)

    waiter = run("tiny.yaml", "waiter")
    assert is_about(waiter.says("Run tiny is under way"), owner.pid)
    leaves = run("tiny.yaml", "leaves", "--no-wait")
    leaves.ends(75)
    assert is_about(leaves.says("Run tiny is under way"), owner.pid)
    assert waiter.is_running

    owner.kill()
    killed_s = time.monotonic()
    meeting.over.set()
    until(lambda: waiter.pid in holders(store / "claims/run") or not waiter.is_running)
    # Its claim was renewed every 20 s: whoever waits for it to be 90 s old waits longer.
    assert time.monotonic() - killed_s < STALE_S - 30
    waiter.ends()
    other.ends()

    again = asked(model) - questions
    assert asked(model) >= questions
    assert again.total() <= CONCURRENCY, "what the owner had in flight"
    assert again <= asked(model, by="owner")
    assert wasted(folder_objects(store)) == []
    assert sum(bool(each.said(TRAINS)) for each in (waiter, other)) == 1
    assert list(store.glob("claims/*/*")) == []
    assert list(differences(of_both(artifacts(store)), of_both(artifacts(undisturbed)))) == []


def test_shards_of_two_runs_at_once_over_s3_some_of_them_killed_do_everything_once(alone, new_user, model, s3_server):
    undisturbed, questions = alone
    user, place = new_user(), "s3://bricks-test/at-once"
    keys = s3_server.environment | {"OPENAI_BASE_URL": model.url}
    for name in RUNS:
        user.bricks("run", f"{name}.yaml", "--until", "score", "--store", place, **keys)

    def shard(stage: str, name: str, number: int) -> Process:
        part = ("--shard", str(number), "--num-shards", str(NUM_SHARDS))
        flags = ("--run", f"{name}.yaml", "--store", place, *part)
        return Process(user, f"jobs.{stage}", *flags, OPENAI_API_KEY=f"{name}-{number}", **keys)

    def shards(stage: str) -> dict[str, Process]:
        return {f"{name}-{number}": shard(stage, name, number) for name in RUNS for number in range(NUM_SHARDS)}

    def kill_one(stage: str, started: dict[str, Process], victim: str) -> None:
        """As a Job does, its controller starts it again."""
        started[victim].kill()
        name, number = victim.rsplit("-", 1)
        started[victim] = shard(stage, name, int(number))

    def finish(stage: str, started: dict[str, Process]) -> None:
        printed = [process.ends() for process in started.values()]
        for name in RUNS:
            pointer = user("jobs." + stage, "--run", f"{name}.yaml", "--store", place, "--commit", **keys).out
            assert pointer in printed, "the last shard commits"

    meeting = Meeting([f"{name}-{number}" for name in RUNS for number in range(NUM_SHARDS)])
    model.answer = meeting.answer
    started = shards("caption")
    until(lambda: meeting.stuck.is_set() or not any(process.is_running for process in started.values()))
    assert meeting.stuck.is_set(), "\n".join(map(str, started.values()))
    kill_one("caption", started, meeting.owner)
    meeting.over.set()
    finish("caption", started)
    again = asked(model) - questions
    assert asked(model) >= questions
    assert again.total() <= 1, "what the owner had in flight"
    assert again <= asked(model, by=meeting.owner)

    started = shards("latents")
    victim = first_owner(s3_server, "at-once/claims/latent/", started)
    if victim:
        kill_one("latents", started, victim)
    finish("latents", started)
    objects = {key.removeprefix("at-once/"): data for key, data in s3_server.objects("at-once/items/").items()}
    assert len(wasted(objects)) <= bool(victim), "what the owner had in flight"

    digest = train_of(undisturbed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        with Claims(open_store(place), "somebody else") as claims:
            assert claims.take(trajectory_of(undisturbed).batch) is None
            flags = ("--until", "train", "--store", place)
            both = [Process(user, "jobs.bricks", "run", f"{name}.yaml", *flags, **keys) for name in RUNS]
            for process in both:
                assert is_about(process.says("train: the same is being made by somebody else"), os.getpid())
    until(lambda: any(process.said(TRAINS) or not process.is_running for process in both))
    (owner,) = (process for process in both if process.said(TRAINS))
    (other,) = (process for process in both if process is not owner)
    assert other.is_running, str(other)
    owner.kill()
    was_done = f"at-once/artifacts/train/{digest}/manifest.json" in s3_server.keys("at-once/artifacts/train/")
    other.ends()
    assert other.said(TRAINS) or was_done, "the one that waited went on"
    last = Process(user, "jobs.bricks", "run", f"{RUNS[both.index(owner)]}.yaml", *flags, **keys)
    last.ends()
    assert not last.said(TRAINS)

    assert s3_server.keys("at-once/claims/") == []
    manifests = s3_server.objects("at-once/artifacts/")
    left = timeless(data for key, data in manifests.items() if key.endswith("/manifest.json"))
    expected = {name: each for name, each in artifacts(undisturbed).items() if not name.startswith("evaluate/")}
    assert list(differences(of_both(left), of_both(expected))) == []


def holders(folder: Path) -> set[int]:
    """The processes with claims there."""
    pids = set()
    for file in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            pids.add(json.loads(file.read_bytes())["pid"])
    return pids


def first_owner(server: S3Server, prefix: str, started: Mapping[str, Process]) -> str:
    """Who of them is first seen to claim something below the prefix; nobody, when all were too quick to be seen."""
    by_pid = {process.pid: name for name, process in started.items()}
    while any(process.is_running for process in started.values()):
        for key in server.keys(prefix):
            try:
                data = server.client.get_object(Bucket="bricks-test", Key=key)["Body"].read()
            except server.client.exceptions.NoSuchKey:
                continue
            if json.loads(data)["pid"] in by_pid:
                return by_pid[json.loads(data)["pid"]]
        time.sleep(0.1)
    return ""


def of_both(manifests: dict[str, Any]) -> dict[str, Any]:
    """Without what tells which of two runs has trained and evaluated for both of them."""
    found = {}
    for name, manifest in manifests.items():
        found[name] = dict(manifest)
        if name.startswith(("train/", "evaluate/")):
            del found[name]["inputs"]
            found[name]["objects"] = [each for each in manifest["objects"] if not TELLS_RUN.search(each["key"])]
    return found


def trajectory_of(store: Path) -> Trajectory:
    """The states that the training of both runs goes through: it is claimed by these."""
    opened = open_store(str(store))
    train, latents = (read_pointer(opened, RUNS[0], stage) for stage in ("train", "latents"))
    assert train is not None
    assert latents is not None
    manifest = open_artifact(opened, "latents", latents.digest).manifest
    return Trajectory(TrainSpec.model_validate(train.spec), keyed(manifest, {}))


def train_of(store: Path) -> str:
    """The training of an undisturbed run, which both runs have."""
    pointers = [read_pointer(open_store(str(store)), name, "train") for name in RUNS]
    digests = {pointer.digest for pointer in pointers if pointer is not None}
    assert len(digests) == 1
    return digests.pop()
