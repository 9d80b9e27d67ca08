"""Answers to many small requests: several are in flight, and they come in the order in which they were asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_flight(ask: Callable[[T], R], things: Iterable[T], num_at_once: int) -> Iterator[tuple[T, R]]:
    """Each thing with its answer, `num_at_once` asked at once; at most twice that many answers are held.

    `things` is read by the caller's thread alone, little by little. The first error, in the order of the things, is
    raised here; then, as when nobody wants the rest, what is being asked still ends, and nothing else begins.
    """
    rest = iter(things)
    first = list(islice(rest, 2))
    if len(first) < 2:  # no thread for that
        yield from ((thing, ask(thing)) for thing in first)
        return
    with ThreadPoolExecutor(num_at_once) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        try:
            waiting.extend((thing, pool.submit(ask, thing)) for thing in [*first, *islice(rest, 2 * num_at_once - 2)])
            while waiting:
                thing, answer = waiting.popleft()
                yield thing, answer.result()
                del answer  # its content may be large
                waiting.extend((each, pool.submit(ask, each)) for each in islice(rest, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
