"""Folders for files on their way to or from a store, and an end to those that killed processes left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bricks_core.storage.os_errors import told

PREFIX = "bricks-scratch-"
_LOCK = ".owner"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of one's own where temporary files go (TMPDIR); gone when the context ends.

    Its owner holds a lock on a file in it, which the system lets go when the owner dies, also in another container that
    shares the place. So what a kill left behind can be told from what is in use, and is removed by the next process.
    """
    place = Path(tempfile.gettempdir())
    _sweep(place)
    with told(place, "write"):
        made = Path(tempfile.mkdtemp(prefix="bricks-new-"))
        lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Only now under the name that others look for: there is no moment at which it is there and not locked.
        folder = made.rename(place / f"{PREFIX}{made.name.removeprefix('bricks-new-')}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@cache
def _sweep(place: Path) -> None:
    """Once a process: remove what nobody owns any more."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # being made, being removed, or somebody else's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(lock)
