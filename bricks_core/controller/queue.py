"""Work by key: each key by one worker at a time, at once or after a while; asked for twice before it begins, done once.

Threads, not tasks: a look at a run is made of blocking calls, and kopf ends every task that it finds when it stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class KeyedQueue:
    """`work` is called with a key, and says after how many seconds it wants to be called again (None: not by itself).

    It must not raise.
    """

    def __init__(self, work: Callable[[str], float | None], num_workers: int):
        self._work = work
        self._due: dict[str, float] = {}
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"look-{i}", daemon=True) for i in range(num_workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def add(self, key: str, delay_s: float = 0.0) -> None:
        """Ask for a key. What was asked for earlier, for an earlier time, stays."""
        due = time.monotonic() + delay_s
        with self._changed:
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                self._changed.notify()

    def stop(self, within_s: float) -> None:
        """Begin nothing more, and wait a while for what is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def is_alive(self) -> bool:
        """Whether its workers are there."""
        return all(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        while (key := self._next()) is not None:
            again_s = self._work(key)
            with self._changed:
                self._busy.discard(key)
                self._changed.notify()
            if again_s is not None:
                self.add(key, again_s)

    def _next(self) -> str | None:
        """The key that has been due longest and is in nobody's hands; waits for one. None: it is over."""
        with self._changed:
            while not self._stopping:
                free = [(due, key) for key, due in self._due.items() if key not in self._busy]
                now = time.monotonic()
                due, key = min(free, default=(float("inf"), ""))
                if due <= now:
                    del self._due[key]
                    self._busy.add(key)
                    return key
                self._changed.wait(None if due == float("inf") else due - now)
            return None
