"""What containers wrote: kept by the double, filled by the test kubelet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from tests.kubernetes.storage import Clock


class Logs:
    """Lines of containers, with the time they came."""

    def __init__(self, clock: Clock | None = None):
        self._clock = clock or Clock()
        self._changed = threading.Condition()
        self._lines: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
        self._ended: set[tuple[str, str, str]] = set()

    def begin(self, namespace: str, pod: str, container: str) -> None:
        with self._changed:
            self._lines[namespace, pod, container] = []
            self._ended.discard((namespace, pod, container))

    def write(self, namespace: str, pod: str, container: str, line: str) -> None:
        at = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        with self._changed:
            self._lines.setdefault((namespace, pod, container), []).append((at, line))
            self._changed.notify_all()

    def end(self, namespace: str, pod: str, container: str) -> None:
        with self._changed:
            self._ended.add((namespace, pod, container))
            self._changed.notify_all()

    def has(self, namespace: str, pod: str, container: str) -> bool:
        return (namespace, pod, container) in self._lines

    def read(
        self, namespace: str, pod: str, container: str, *, since: str = "", tail: int | None = None
    ) -> Iterator[str]:
        """Lines as `time text`; since: not before that second."""
        lines = [(at, text) for at, text in self._lines.get((namespace, pod, container), []) if at[:19] >= since[:19]]
        first = 0 if tail is None else max(len(lines) - tail, 0)
        yield from (f"{at} {text}" for at, text in lines[first:])

    def follow(
        self, namespace: str, pod: str, container: str, *, since: str = "", tail: int | None = None
    ) -> Iterator[str]:
        """The same, and what comes until the container ends; an empty text now and then while nothing does."""
        key, sent = (namespace, pod, container), len(self._lines.get((namespace, pod, container), []))
        yield from self.read(namespace, pod, container, since=since, tail=tail)
        while True:
            with self._changed:
                if len(self._lines.get(key, [])) <= sent and key not in self._ended:
                    self._changed.wait(0.5)
                new = self._lines.get(key, [])[sent:]
                over = key in self._ended
            sent += len(new)
            yield from (f"{at} {text}" for at, text in new)
            if over and not new:
                return
            if not new:
                yield ""
