"""The controller as a process: kopf watches, events are lost, signals come, and the run comes to its end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bricks_core.controller.handlers import Shell
from bricks_core.controller.queue import KeyedQueue
from tests.controller.town import Town, town
from tests.kubernetes.double import Request

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
LONG_S = 90.0
"""Nothing here takes long; a busy machine may."""


def until(true: Callable[[], object], step: Callable[[], object] = lambda: None) -> None:
    """Wait until something is so."""
    end = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < end, "it never came"
        step()
        time.sleep(0.05)


@contextmanager
def shell(here: Town, resync_s: float) -> Iterator[Shell]:
    """The controller's shell in a thread of this process."""
    found = Shell(here.controller(), resync_s=resync_s, workers=2)
    thread = threading.Thread(target=found.serve, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.stop()
        thread.join(LONG_S)
        assert not thread.is_alive()


def is_finished(here: Town) -> bool:
    return here.condition("Finished").get("status") == "True"


def test_events_alone_bring_a_run_to_its_end() -> None:
    """With no look at everything in between: the first one is at the start, the next one an hour later."""
    with town() as here:
        with shell(here, resync_s=3600):
            until(lambda: is_finished(here), here.executor.step)
        run = here.server.cluster().get("BrickRun", "tiny")
        assert run["status"]["phase"] == "Succeeded"
        assert "finalizers" not in run["metadata"]
        assert "annotations" not in run["metadata"]
        here.check_end()


def test_lost_doubled_and_disordered_events_only_take_time() -> None:
    drawn, kept = random.Random(5), []

    def deliver(watch: Request, event: Object) -> Iterable[Object]:
        kept.append(event)
        return drawn.choice([(), (event,), (event, event), (drawn.choice(kept), event)])

    with town() as here:

        def step() -> None:
            here.executor.step()
            here.server.break_watches()

        here.server.deliver = deliver
        with shell(here, resync_s=1):
            until(lambda: is_finished(here), step)
        here.check_end()


@contextmanager
def process(here: Town, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The real program, with a kubeconfig."""
    kubeconfig = here.server.kubeconfig(here.folder / "kubeconfig", namespace="bricks")
    started = subprocess.Popen(
        [sys.executable, "-m", "jobs.controller", *flags],
        cwd=ROOT,
        env=os.environ | {"KUBECONFIG": str(kubeconfig), "BRICKS_STORE": here.store.uri},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def test_it_answers_probes_and_ends_well_when_it_is_told_to() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with town() as here, process(here, f"--health-port={port}", "--resync-s=5") as program:
        until(lambda: answers(f"http://127.0.0.1:{port}/healthz"))
        until(here.jobs)
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate(timeout=LONG_S)
        assert program.returncode == 0, said
        lines = [json.loads(line) for line in said.splitlines()]
        made = next(line for line in lines if line["message"] == "created Job tiny-ingest-a1")
        assert (made["run"], made["stage"], made["attempt"], made["level"]) == ("tiny", "ingest", 1, "info")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_once_looks_at_every_run_and_ends() -> None:
    with town() as here, process(here, "--once") as program:
        _, said = program.communicate(timeout=LONG_S)
        assert program.returncode == 0, said
        assert [job["metadata"]["name"] for job in here.jobs()] == ["tiny-ingest-a1"]


def test_it_begins_nothing_where_nobody_says_where_artifacts_are() -> None:
    with town() as here, process(here, "--once", "--store", "") as program:
        _, said = program.communicate(timeout=LONG_S)
        assert program.returncode == 64
        assert "--profile FILE" in said
        assert here.jobs() == []


def test_a_profile_that_cannot_be_read_is_one_sentence_and_no_process() -> None:
    with town() as here, process(here, "--profile", "nowhere.yaml") as program:
        _, said = program.communicate(timeout=LONG_S)
        assert program.returncode == 78
        assert "nowhere.yaml is not there" in said
        assert "Traceback" not in said


# --- the queue


def test_a_key_is_in_one_workers_hands_and_what_comes_meanwhile_is_done_after() -> None:
    seen: list[str] = []
    busy, most = set(), []
    go = threading.Event()

    def work(key: str) -> float | None:
        assert key not in busy
        busy.add(key)
        most.append(len(busy))
        seen.append(key)
        go.wait(LONG_S)
        busy.discard(key)
        return None

    queue = KeyedQueue(work, 3)
    queue.start()
    for key in ("a", "b"):
        queue.add(key)
    until(lambda: len(seen) == 2)
    for _ in range(10):
        queue.add("a")
    go.set()
    until(lambda: len(seen) == 3)
    queue.stop(LONG_S)
    assert sorted(seen) == ["a", "a", "b"]
    assert max(most) == 2
    assert not queue.is_alive()


def test_a_key_comes_again_when_its_work_says_so_or_earlier_when_it_is_asked_for() -> None:
    seen: list[float] = []

    def work(key: str) -> float | None:
        seen.append(time.monotonic())
        return 0.01 if len(seen) < 3 else 3600

    queue = KeyedQueue(work, 1)
    queue.start()
    queue.add("a", 0.01)
    until(lambda: len(seen) == 3)
    queue.add("a", 7200)
    queue.add("a")
    until(lambda: len(seen) == 4)
    queue.stop(LONG_S)
    assert len(seen) == 4


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """kopf says once a second that a thread gets no signals."""
    caplog.set_level("ERROR", "kopf")
