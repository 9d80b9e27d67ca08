"""Work in a process of its own: what comes back, and what becomes of work that does not."""

import operator
import os
import signal
import threading
import time

import pytest

from bricks_core.errors import DataError, TryLater
from bricks_core.video.isolate import Crash, Isolation
from bricks_core.video.probe import probe
from bricks_core.video.read import read_rgb


@pytest.fixture
def isolation():
    with Isolation(silence_s=60, memory_bytes=2 << 30) as isolation:
        yield isolation


def test_a_result_comes_back(isolation):
    assert isolation.call(operator.add, 2, 3) == 5
    assert isolation.call(os.getpid) != os.getpid()


def test_our_own_errors_come_back_as_they_are(isolation, tmp_path):
    (tmp_path / "page.mp4").write_text("<html>", encoding="utf-8")
    with pytest.raises(DataError, match=r"page\.mp4 is not a video"):
        isolation.call(read_rgb, tmp_path / "page.mp4")


def test_a_crash_is_a_sentence(isolation):
    with pytest.raises(Crash, match="The decoder crashed \\(SIGABRT\\)"):
        isolation.call(os.abort)
    with pytest.raises(Crash, match="exit code 7"):
        isolation.call(os._exit, 7)


def test_too_much_memory_is_refused(isolation):
    with pytest.raises(Crash, match="more than 2048 MiB of memory"):
        isolation.call(bytearray, 3 << 30)


def test_a_decoder_that_cannot_have_its_memory_is_not_believed(films, tmp_path):
    """It would call the film broken."""
    pictures = [films.texture(seed, 720, 1280) for seed in range(12)]
    film = films.write(tmp_path / "film.mp4", pictures, options={"preset": "ultrafast", "refs": "6", "bf": "2"})
    assert probe(film).state == "ok"
    with Isolation(silence_s=60, memory_bytes=8 << 20) as isolation, pytest.raises(Crash, match="more than 8 MiB"):
        isolation.call(probe, film)


def test_silence_is_ended():
    with Isolation(silence_s=0.3, memory_bytes=2 << 30) as isolation, pytest.raises(Crash, match="hangs"):
        isolation.call(time.sleep, 3600)


def test_a_kill_from_outside_says_nothing_about_the_film(isolation):
    with pytest.raises(TryLater, match="killed from outside"):
        isolation.call(signal.raise_signal, signal.SIGKILL)


def test_a_machine_that_fails_is_no_fault_of_the_film(isolation, tmp_path):
    with pytest.raises(FileNotFoundError):
        isolation.call(os.listdir, tmp_path / "nowhere")


def test_every_item_is_worked_on_and_taken_only_when_needed(isolation):
    taken, done, lock = [], [], threading.Lock()

    def items():
        for item in range(20):
            with lock:
                taken.append(item)
                assert len(taken) - len(done) <= 4
            yield item

    def work(item):
        with lock:
            done.append(item)

    isolation.each(work, items(), num_at_once=3)
    assert sorted(done) == list(range(20))


def test_a_pod_works_on_as_many_items_at_once_as_it_asked_for_cores(isolation, monkeypatch):
    monkeypatch.setenv("BRICKS_CPUS", "3")
    together = threading.Barrier(3)
    at_once, most, lock = 0, 0, threading.Lock()

    def work(item):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        together.wait(60)  # breaks unless three are at work together
        with lock:
            at_once -= 1

    isolation.each(work, iter(range(9)))
    assert most == 3


def test_the_first_failure_ends_everything(isolation):
    """Also work that would wait for an hour."""

    def work(item):
        isolation.call(time.sleep, 3600) if item else operator.truediv(1, 0)

    with pytest.raises(ZeroDivisionError):
        isolation.each(work, iter([1, 1, 0, 1, 1]), num_at_once=3)
