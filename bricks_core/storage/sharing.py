"""Tasks that many processes have before them: each one is done by one of them."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from bricks_core.storage.claim import Holder, names_of

T = TypeVar("T")
log = logging.getLogger("bricks")

SAY_AFTER_S = 3.0
"""Who is waited for is said after so long."""
_LOOK_AHEAD = 500  # tasks that are asked for at once where another was before us


class Keyed(Protocol):
    """What has the key of an item."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> str: ...


class Takes(Protocol):
    """What `Claims` does here."""

    def take(self, batch: str) -> Holder | None: ...

    def release(self, batch: str) -> None: ...

    def lost(self, batch: str) -> bool: ...


@dataclass(eq=False)
class _Group(Generic[T]):
    """The tasks with the same batches. They are taken and released together."""

    batches: tuple[str, ...]
    tasks: list[T]
    """Not yielded yet, or put aside."""
    in_flight: int = 0
    """Yielded and not finished; and one for the group while it is being yielded."""


class Shared(Generic[T]):
    """An iterator over the tasks that are ours to do. Made by `Claims.each`; iterate once.

    A task comes when all its batches are ours (all or none) and it was not done meanwhile, which `is_done` is asked for
    in bulk: one bool a task. The batches of one task are claimed when the task is asked for and not before, so that
    other processes find work too; every process begins somewhere else. Tasks that others hold are put aside; when
    nothing else is left, it waits until they are done or their owner is gone.

    Whoever does a task says so, with `finished(task)` (the very object) or with `doing(task)`: then its batches are
    released, once none of their tasks is in flight. Any thread may. For `in_threads`:

        shared = claims.each(tasks, keys_of, is_done)
        def do(task):
            with shared.doing(task):
                ...
        with shared.coming() as coming:
            in_threads(do, coming, num_threads)
    """

    def __init__(
        self,
        claims: Takes,
        tasks: Iterable[tuple[list[str], T]],
        is_done: Callable[[list[T]], list[bool]],
        *,
        wait: bool,
        poll_s: float,
        max_poll_s: float,
        start: float | None = None,
    ):
        groups: dict[tuple[str, ...], _Group[T]] = {}
        for batches, task in tasks:
            names = tuple(batches)
            groups.setdefault(names, _Group(names, [])).tasks.append(task)
        ordered = [groups[names] for names in sorted(groups)]
        first = int((random.SystemRandom().random() if start is None else start) * len(ordered))
        self._groups = deque(ordered[first:] + ordered[:first])
        self._aside: deque[tuple[_Group[T], Holder]] = deque()
        self._yielded: dict[int, tuple[T, _Group[T]]] = {}
        """By identity: tasks need not be hashable."""
        self._is_done, self._claims = is_done, claims
        self._waits, self._poll_s, self._max_poll_s = wait, poll_s, max_poll_s
        self._changed = threading.Condition()
        self._failed = False
        self._said = ""

    @property
    def left(self) -> list[tuple[T, Holder]]:
        """Tasks that others hold, and who does."""
        return [(task, holder) for group, holder in self._aside for task in group.tasks]

    def __iter__(self) -> Iterator[T]:
        pause_s, waiting_since = 0.0, time.monotonic()
        while True:
            num_before = len(self._groups)
            while self._groups and not self._failed:
                for task in self._take(self._groups.popleft()):
                    num_before = 0  # others had time to go on, too
                    yield task
            if self._failed or not self._aside or not self._waits:
                return
            self._drop_done(group for group, _ in self._aside)
            self._aside = deque((group, holder) for group, holder in self._aside if group.tasks)
            if len(self._aside) != num_before:
                pause_s, waiting_since = 0.0, time.monotonic()
            elif self._aside:
                pause_s = min(max(pause_s * 1.5, self._poll_s), self._max_poll_s)
                self._wait(pause_s, say=time.monotonic() - waiting_since >= SAY_AFTER_S)
            self._groups.extend(group for group, _ in self._aside)
            self._aside.clear()

    def finished(self, task: T) -> None:
        """A task that was yielded is done, or given up."""
        with self._changed:
            _, group = self._yielded.pop(id(task))
        self._one_less(group)

    @contextmanager
    def coming(self) -> Iterator[Iterator[T]]:
        """The tasks, for as long as the context lasts: at its end all that was yielded is finished or given up, also
        what was taken ahead and never begun because of an error."""
        tasks = iter(self)
        try:
            with closing(cast(Generator[T, None, None], tasks)):
                yield tasks
        finally:
            with self._changed:
                left = [task for task, _ in self._yielded.values()]
            for task in left:
                self.finished(task)

    @contextmanager
    def doing(self, task: T) -> Iterator[None]:
        """Finished at the end. When it fails, no other task comes, so that nobody waits to hear of the error."""
        try:
            yield
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise
        finally:
            self.finished(task)

    def _take(self, group: _Group[T]) -> Iterator[T]:
        holder = self._take_all(group.batches)
        if holder is not None:
            self._aside.append((group, holder))
            return
        group.in_flight = 1
        try:
            found = len(group.tasks)
            self._drop_done([group])
            if found and not group.tasks:
                self._look_ahead()
            while group.tasks and not self._failed:
                if any(self._claims.lost(batch) for batch in group.batches):
                    self._aside.append((_Group(group.batches, group.tasks), Holder.of(None)))
                    return
                task = group.tasks.pop(0)
                with self._changed:
                    self._yielded[id(task)] = (task, group)
                    group.in_flight += 1
                yield task
        finally:
            self._one_less(group)

    def _take_all(self, batches: tuple[str, ...]) -> Holder | None:
        taken: list[str] = []
        try:
            for batch in batches:
                holder = self._claims.take(batch)
                if holder is not None:
                    self._release(taken)
                    return holder
                taken.append(batch)
        except BaseException:
            self._release(taken)
            raise
        return None

    def _one_less(self, group: _Group[T]) -> None:
        with self._changed:
            group.in_flight -= 1
            is_last = not group.in_flight
        if is_last:
            self._release(group.batches)

    def _release(self, batches: Iterable[str]) -> None:
        for batch in batches:
            self._claims.release(batch)

    def _drop_done(self, groups: Iterable[_Group[T]]) -> None:
        groups = list(groups)
        tasks = [task for group in groups for task in group.tasks]
        done = iter(self._is_done(tasks) if tasks else [])
        for group in groups:
            group.tasks = [task for task in group.tasks if not next(done)]

    def _look_ahead(self) -> None:
        """Another has been here before us: what it has done further on needs no claim to be seen."""
        ahead: list[_Group[T]] = []
        num_tasks = 0
        for group in self._groups:
            ahead.append(group)
            num_tasks += len(group.tasks)
            if num_tasks >= _LOOK_AHEAD:
                break
        self._drop_done(ahead)
        for _ in ahead:
            group = self._groups.popleft()
            if group.tasks:
                self._groups.append(group)

    def _wait(self, pause_s: float, say: bool) -> None:
        """Until those that are aside may be tried again: for so long, or until a task of ours fails."""
        if say:
            names = names_of(holder for _, holder in self._aside)
            if names != self._said:
                log.info("Waiting for %d that others are at: %s.", len(self.left), names)
                self._said = names
        with self._changed:
            if not self._failed:
                self._changed.wait(pause_s)
