"""Work on files nobody vouches for, in a process of its own with limits on memory and silence.

A decoder that crashes, hangs or eats the memory then costs one film and leaves a sentence; it does not cost the stage.
The processes are forked from a small server that has the libraries loaded and nothing else going on (threads, open
connections), so a start costs some 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Literal, ParamSpec, Self, TypeVar

from bricks_core.errors import BricksError, DataError, TryLater
from bricks_core.storage.in_threads import num_cores

P = ParamSpec("P")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 (an item)

_PRELOADED = ["av", "cv2", "numpy", "scenedetect.detectors", "bricks_core.video.probe", "bricks_core.video.write"]
_POLL_S = 0.25
_SIGN_EVERY_S = 1.0
_PR_SET_PDEATHSIG = 1


class Crash(DataError):
    """The work did not come back: its process died, took too long, or wanted more memory than it may have."""


class LimitReached(Crash):
    """It wanted more than one of the limits that this machine set: under others it may come back."""

    def __init__(self, message: str, limit: Literal["silence_s", "memory_bytes"]):
        super().__init__(message)
        self.limit = limit

    def __reduce__(self) -> tuple[type[LimitReached], tuple[str, str]]:
        return type(self), (str(self), self.limit)


class Abandoned(BricksError):
    """The work was given up because all of it was: nothing is known about this piece."""


class Isolation:
    """A place to run functions apart from this process. Use it as a context: at its end nothing is left running.

    Functions and their arguments and results are pickled. Safe to use from many threads at once.
    """

    def __init__(self, *, silence_s: float, memory_bytes: int):
        """`silence_s`: longest time without a frame (see `sign_of_life`): long films may take long, not hang.

        `memory_bytes`: what one process may take beside the libraries it starts with.
        """
        self._silence_s = silence_s
        self._memory_bytes = memory_bytes
        self._closing = threading.Event()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns.

        Raises:
            Crash: it did not come back.
            BricksError, OSError: the one that `function` raised.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child, args=(sender, self._memory_bytes, function, args, kwargs), daemon=True
        )
        process.start()
        sender.close()
        try:
            outcome = self._outcome(process, receiver)
        finally:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
            receiver.close()
        if isinstance(outcome, BaseException):
            raise outcome
        result: T = outcome[0]
        return result

    def each(self, work: Callable[[I], None], items: Iterable[I], *, num_at_once: int | None = None) -> None:
        """Call `work` on every item, several at once in threads: for work that waits for `call`, or for a store.

        Items are taken as they are needed. The first failure ends everything and is raised.
        """
        num_at_once = num_at_once or num_cores()
        with ThreadPoolExecutor(num_at_once) as threads:
            running: set[Future[None]] = set()
            try:
                for item in items:
                    running.add(threads.submit(work, item))
                    if len(running) >= num_at_once:
                        running = _reaped(running)
                while running:
                    running = _reaped(running)
            except BaseException:
                # Also for a signal: without this the threads would wait for films that nobody wants any more.
                self._closing.set()
                raise

    def _outcome(self, process: Any, receiver: Connection) -> Any:
        heard_s = time.monotonic()
        while True:
            ready = wait_for([receiver, process.sentinel], timeout=_POLL_S)
            if self._closing.is_set():
                return Abandoned("Stopped.")
            if receiver in ready:
                try:
                    outcome = receiver.recv()
                except EOFError:
                    process.join()
                    return self._crash(process.exitcode)
                if outcome is not None:
                    return outcome
                heard_s = time.monotonic()
            elif process.sentinel in ready:
                return self._crash(process.exitcode)
            if time.monotonic() > heard_s + self._silence_s:
                return LimitReached(f"The decoder hangs: no frame for {self._silence_s:g} s.", "silence_s")

    def _crash(self, exit_code: int | None) -> BricksError:
        if exit_code == -signal.SIGKILL:
            # The machine's doing, not the film's: nothing is written down about the film.
            return TryLater(
                "A process that read a film was killed from outside; if memory ran out, give this machine more or run "
                "with fewer CPUs. Start again: what is finished is kept."
            )
        if exit_code is not None and exit_code < 0:
            with contextlib.suppress(ValueError):
                return Crash(f"The decoder crashed ({signal.Signals(-exit_code).name}).")
        return Crash(f"The decoder ended without an answer (exit code {exit_code}).")


def sign_of_life() -> None:
    """Tell the waiting process, if there is one, that work goes on: called for every frame, sent once a second."""
    if _life is not None and time.monotonic() - _life.sent_s > _SIGN_EVERY_S:
        _life.sent_s = time.monotonic()
        _tell(_life.sender, None)


class _Life:
    def __init__(self, sender: Connection):
        self.sender = sender
        self.sent_s = time.monotonic()


_life: _Life | None = None  # set in an isolated process only


def _reaped(running: set[Future[None]]) -> set[Future[None]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for each in done:
        each.result()
    return rest


def _child(
    sender: Connection, memory_bytes: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Runs in the new process: the limits, then the function, then its result (in a tuple) or its error."""
    global _life
    _life = _Life(sender)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # such as Ctrl-C, which reaches the whole group; the parent decides
    _die_with_parent()
    limit: int | None = None
    if sys.platform == "linux":  # elsewhere the limit is not kept, or cannot be set
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _status_bytes("VmSize") + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    too_much = LimitReached(f"It wants more than {memory_bytes / (1 << 20):.0f} MiB of memory.", "memory_bytes")
    outcome: Any
    try:
        outcome = (function(*args, **kwargs),)
        # Decoders that cannot have their memory report a broken film: what came near the limit is not to be trusted.
        if limit is not None and limit - _status_bytes("VmPeak") < memory_bytes / 4:
            outcome = too_much
    except BricksError as error:
        outcome = error
    except MemoryError:
        outcome = too_much
    except OSError as error:
        # A full disk is the machine's fault, not the film's: the parent must not write a row about it.
        outcome = OSError(error.errno, error.strerror)
    except Exception as error:
        traceback.print_exc()
        outcome = Crash(f"Reading it failed: {type(error).__name__}: {error}.")
    _tell(sender, outcome)
    sender.close()


def _tell(sender: Connection, message: Any) -> None:
    try:
        sender.send(message)
    except BrokenPipeError:  # nobody waits any more: the stage was killed
        os._exit(1)


def _status_bytes(name: str) -> int:
    """A line of Linux's /proc/self/status, such as VmSize and VmPeak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the fork server goes, which goes with the stage that started it."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
