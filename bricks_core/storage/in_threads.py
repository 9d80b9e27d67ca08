"""Several items of a stage's work at once, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


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
