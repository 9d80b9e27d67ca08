"""Several items of a stage's work at once, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from bricks_core.errors import UsageError

T = TypeVar("T")


def num_cores() -> int:
    """How many cores this process may keep busy.

    BRICKS_CPUS, where it is set: a pod sees all cores of its node, and is meant to use as many as it asked for, with
    memory for so many. Else those that it may run on.

    Raises:
        UsageError: BRICKS_CPUS is no number.
    """
    wanted = os.environ.get("BRICKS_CPUS")
    if wanted is not None:
        if not wanted.isdecimal() or not int(wanted):
            raise UsageError(f"BRICKS_CPUS is {wanted!r}: write a whole number of cores, such as 4.")
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(
    do: Callable[[T], None],
    things: Iterable[T],
    num_threads: int,
    *,
    may_begin: Callable[[int], bool] = lambda num_begun: True,
) -> None:
    """Do all things, `num_threads` at once; no more than twice that many are taken from `things` ahead of their turn.

    The first error is raised here. Then, as when the caller is stopped, what is begun still ends, and nothing else
    begins.

    `may_begin` is asked before each, with the number of those begun and not ended; where it says no, some are waited
    for and it is asked again. When none is left to wait for, it should raise.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: set[Future[None]] = set()
        try:
            for thing in things:
                while not may_begin(len(waiting)) or len(waiting) >= 2 * num_threads:
                    waiting = _settled(waiting)
                waiting.add(pool.submit(do, thing))
            while waiting:
                waiting = _settled(waiting)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _settled(waiting: set[Future[None]]) -> set[Future[None]]:
    """Wait for at least one; its error, if it has one, is raised here. Returns the rest."""
    done, rest = wait(waiting, return_when=FIRST_COMPLETED)
    for each in done:
        each.result()
    return rest
