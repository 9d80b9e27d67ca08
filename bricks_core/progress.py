"""How far work has come: bars on a terminal, log lines elsewhere, and a small status object in the store for both.

The same calls serve all three, so a stage does not know who is watching.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

log = logging.getLogger("bricks")

LOG_EVERY_S = 15.0
HEARTBEAT_EVERY_S = 5.0


class Progress:
    """The progress of one stage.

    Use it as a context, `begin` the work once its size is known, `advance` it item by item.
    """

    def __init__(self, name: str, heartbeat: Callable[[dict[str, object]], None] | None = None):
        """`heartbeat` is given the state at most every five seconds, to be left where others can read it."""
        self.name = name
        self.total = 0
        self.done = 0
        self.unit = "items"
        self.note = ""
        self._heartbeat = heartbeat
        self._lock = threading.Lock()
        self._begun_s = time.monotonic()
        self._done_at_start = 0
        self._logged_s = self._beat_s = float("-inf")
        self._said = ""
        self._bars: Bars | None = None
        self._console = Console(stderr=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description:9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._bars:
            self._bars.stop()
        elif self.total and kind is None:
            self._say()
        self._beat(state="done" if kind is None else "stopped", always=True)

    def begin(self, total: int, *, done: int = 0, unit: str = "items") -> None:
        """`total` units of work in all, of which `done` were done before."""
        self.total, self.done, self.unit, self._done_at_start = total, done, unit, done
        self._begun_s = time.monotonic()
        if self._bars:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(self.name, total=total, completed=done, unit=unit, note="")
        else:
            self._say()

    def advance(self, num: int = 1, note: str = "") -> None:
        """`num` more units are done; `note` is what a person would like to see beside the bar."""
        with self._lock:
            self.done += num
            self.note = note
            if self._bars and self._bars.task_ids:
                self._bars.update(self._bars.task_ids[0], completed=self.done, note=note)
            elif time.monotonic() - self._logged_s > LOG_EVERY_S:
                self._logged_s = time.monotonic()
                self._say()
        self._beat(state="running")

    def _say(self) -> None:
        """A log line, unless it would be the last one again."""
        words = self._words()
        if words != self._said:
            log.info("%s: %s", self.name, words)
            self._said = words

    def _rate_per_s(self) -> float:
        elapsed_s = time.monotonic() - self._begun_s
        return (self.done - self._done_at_start) / elapsed_s if elapsed_s > 1 else 0.0

    def _words(self) -> str:
        rate = self._rate_per_s()
        pace = f", {rate:.3g} {self.unit}/s" if rate > 0 else ""
        return f"{self.done}/{self.total} {self.unit}{pace}{', ' + self.note if self.note else ''}"

    def _beat(self, state: str, always: bool = False) -> None:
        if not self._heartbeat or (not always and time.monotonic() - self._beat_s < HEARTBEAT_EVERY_S):
            return
        self._beat_s = time.monotonic()
        self._heartbeat(
            {
                "stage": self.name,
                "state": state,
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
                "note": self.note,
                "rate_per_s": self._rate_per_s(),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
        )


def configure_logging(verbose: bool = False) -> None:
    """Our own log lines to standard error; other libraries' only when they warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
