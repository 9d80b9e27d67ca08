"""Folders that are there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bricks_core.errors import TryLater, UsageError
from bricks_core.storage.os_errors import told


@dataclass
class NewFolder:
    """A folder being made."""

    path: Path
    """Where to write."""
    was_there: bool = False
    """Once made: the very same was there already, and was left as it is."""


@contextmanager
def new_folder(target: Path, *, force: bool, known_by: Collection[str]) -> Iterator[NewFolder]:
    """A folder to fill; when the context ends without an error it is at `target`.

    It is filled beside the target and renamed, so that a kill leaves the target as it was; what a killed process left
    beside it is taken away by the next. If the target holds the same files, nothing changes. If it holds others, it is
    replaced where `force` says so, and only if one of the names `known_by` is in it: any other folder was not ours.

    Raises:
        UsageError: the target is there and is not to be replaced.
        TryLater: another process is making it, or the disk is full.
    """
    target = target.resolve()
    with told(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside, before = (target.with_name(f".{target.name}.{what}") for what in ("new", "before"))
        if before.exists() and not target.exists():
            before.rename(target)  # a kill came between the two renames below
        _check(target, known_by)
        aside.mkdir(exist_ok=True)
    lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _hold(lock, aside, target)
        made = NewFolder(aside)
        try:
            with told(aside, "write"):
                _clear(aside)
                yield made
                _flush(aside)
                _put(made, target, before, force)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(lock)


def _check(target: Path, known_by: Collection[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file: give --out the name of a folder.")
    names = {each.name for each in target.iterdir()}
    if names and names.isdisjoint(known_by):
        raise UsageError(
            f"{target} is there and holds other things ({', '.join(sorted(names)[:3])}): give --out another folder."
        )


def _hold(lock: int, aside: Path, target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a file system without locks: then two at once are not told apart
        raise TryLater(f"{target} is being written by another process: wait, or give --out another folder.") from error
    if not aside.exists() or os.fstat(lock).st_ino != aside.stat().st_ino:
        raise TryLater(f"{target} was written by another process at this moment: look at it, or start again.")


def _put(made: NewFolder, target: Path, before: Path, force: bool) -> None:
    if not target.exists() or not any(target.iterdir()):
        made.path.rename(target)
    elif _same(made.path, target):
        made.was_there = True
    elif force:
        shutil.rmtree(before, ignore_errors=True)
        target.rename(before)
        made.path.rename(target)
        shutil.rmtree(before)
    else:
        raise UsageError(f"{target} is there and holds something else: give --out another folder, or add --force.")


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = {each.relative_to(one) for each in one.rglob("*")}
    if names != {each.relative_to(other) for each in other.rglob("*")}:
        return False
    return all(filecmp.cmp(one / each, other / each, shallow=False) for each in names if (one / each).is_file())


def _clear(folder: Path) -> None:
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def _flush(folder: Path) -> None:
    """Not to be renamed before its bytes are on the disk: a power cut would leave empty files under the right names."""
    readable = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(readable)  # some libraries write for nobody but oneself
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
