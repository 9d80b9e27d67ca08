"""Several things at once: bounded, in any order, and stopped by the first error."""

import os
import threading

import pytest

from bricks_core.errors import UsageError
from bricks_core.storage.in_threads import in_threads, num_cores


def test_all_are_done_and_no_more_at_once_than_asked_for():
    done, now, most, lock = [], [0], [0], threading.Lock()
    together = threading.Barrier(3)

    def do(n):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if n < 3:
            together.wait(timeout=20)
        with lock:
            now[0] -= 1
            done.append(n)

    in_threads(do, range(20), 3)
    assert sorted(done) == list(range(20))
    assert most == [3]


def test_things_are_not_all_taken_ahead_of_their_turn():
    taken, finished = [], []

    def things():
        for n in range(50):
            taken.append(n)
            assert len(taken) - len(finished) <= 5
            yield n

    in_threads(finished.append, things(), 2)
    assert len(finished) == 50


def test_the_first_error_is_raised_and_nothing_else_begins():
    begun = []

    def do(n):
        begun.append(n)
        if n == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        in_threads(do, range(100), 1)
    assert len(begun) < 10


def test_what_may_not_begin_waits_for_others_to_end():
    seen = []

    def may_begin(num_begun):
        seen.append(num_begun)
        return num_begun < 1

    in_threads(lambda n: None, range(10), 4, may_begin=may_begin)
    assert max(seen) <= 1


def test_a_pod_keeps_as_many_cores_busy_as_it_is_told_and_else_those_it_may_run_on(monkeypatch):
    monkeypatch.setenv("BRICKS_CPUS", "3")
    assert num_cores() == 3
    monkeypatch.delenv("BRICKS_CPUS")
    assert num_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("wrong", ["", "many", "0", "-1", "1.5"])
def test_a_number_of_cores_that_is_none_is_refused(monkeypatch, wrong):
    monkeypatch.setenv("BRICKS_CPUS", wrong)
    with pytest.raises(UsageError, match="write a whole number of cores"):
        num_cores()
