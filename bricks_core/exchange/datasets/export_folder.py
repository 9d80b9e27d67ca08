"""The folder that an export writes into: ours or nobody's, one writer at a time, every file whole or not there.

Its `bricks-export.json` says whose it is from the first moment on. So a killed export is continued by the next, and an
earlier one brought up to date; files that are there already and right are not written again.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bricks_core.errors import SpecError, TryLater
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.os_errors import told

MARKER = "bricks-export.json"
_ASIDE = ".part"
_OURS = re.compile(r"[0-9a-f]{16}\.\w+")


class ExportFolder:
    """A folder claimed for one export. Safe to use from many threads."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self.about = about
        """What the marker says; `tell` writes it."""
        self.num_written = self.num_there = 0
        self._counting = threading.Lock()

    def tell(self, **facts: Any) -> None:
        """Say how far the export is."""
        self.about |= facts
        self.write(
            MARKER,
            lambda file: file.write_text(json.dumps(self.about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"),
        )

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Have a file written aside, then give it its name."""
        path = self.path / name
        aside = path.with_name(f".{path.name}{_ASIDE}")
        with told(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(aside)
            aside.replace(path)
        return path

    def copy(self, name: str, artifact: Artifact, key: str, *, size_bytes: int, sha256: str) -> None:
        """A file of an artifact, unless it is there already."""
        there = self.has(name, size_bytes=size_bytes, sha256=sha256)
        if not there:
            with artifact.local(key) as file:
                self.write(name, lambda aside: shutil.copyfile(file, aside))
        self.count(there)

    def count(self, there: bool) -> None:
        """Count a file that was there, or was written."""
        with self._counting:
            self.num_there += there
            self.num_written += not there

    def has(self, name: str, *, size_bytes: int, sha256: str) -> bool:
        """Whether the file is there and what it should be."""
        path = self.path / name
        with told(path, "read"):
            return path.is_file() and path.stat().st_size == size_bytes and sha256_of_file(path) == sha256

    def keep_only(self, folders: list[str], wanted: set[str]) -> int:
        """Remove what an earlier export left in folders of ours and this one does not have; returns how many files."""
        num_removed = 0
        for folder in folders:
            for file in sorted((self.path / folder).rglob("*")):
                if _OURS.fullmatch(file.name) and file.relative_to(self.path).as_posix() not in wanted:
                    with told(file, "delete"):
                        file.unlink()
                        num_removed += 1
        return num_removed


@contextmanager
def claimed(path: Path, *, what: str, run: str) -> Iterator[ExportFolder]:
    """The folder, made if it is not there, for an export of that format of that run.

    Raises:
        SpecError: it holds other things, or another export.
        TryLater: another process is exporting into it.
    """
    if path.exists() and not path.is_dir():
        raise SpecError(f"{path} is a file: give a folder with --out.")
    with told(path, "write"):
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryLater(f"Another process is exporting into {path}: wait for it, or give another folder.") from None
        except OSError:
            pass  # a file system without locks
        folder = ExportFolder(path, {"made_by": "bricks dataset export", "format": what, "run": run})
        _check(folder, what, run)
        yield folder
    finally:
        with suppress(OSError):
            os.close(handle)


def _check(folder: ExportFolder, what: str, run: str) -> None:
    """That it is empty, or ours; then an unfinished export's state is taken over."""
    with told(folder.path, "list"):
        other = sorted(each.name for each in folder.path.iterdir() if not each.name.endswith(_ASIDE))
    if not other:
        return
    earlier: Any = None
    if MARKER in other:
        with suppress(OSError, ValueError):
            earlier = json.loads((folder.path / MARKER).read_text(encoding="utf-8"))
    if not isinstance(earlier, dict):
        raise SpecError(
            f"{folder.path} holds other things, such as {other[0]}: give a new or an empty folder with --out."
        )
    if (earlier.get("format"), earlier.get("run")) != (what, run):
        raise SpecError(
            f"{folder.path} holds an export of run {earlier.get('run')} as {earlier.get('format')}: "
            "give another folder with --out, or remove that one."
        )
    folder.about = earlier
