"""sha256 of files, remembered between processes: what has not changed is not read again.

A file is taken to be unchanged when its size, both its times and its inode are. Times have a grain (4 ms on most
file systems, 2 s on the coarsest), so a hash is only remembered once the file has been left alone for longer than
that: what is written twice in the same instant is hashed twice.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

SETTLED_S = 3.0  # the coarsest grain of a file time in use is FAT's 2 s
_LOCK_WAIT_S = 2.0
_COLUMNS = "name TEXT PRIMARY KEY, state TEXT NOT NULL, hex TEXT NOT NULL"


def file_state(stat: os.stat_result) -> str:
    """What changes when a file's content does, as one short word."""
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}-{stat.st_ino:x}"


class HashCache:
    """A small SQLite table `name, state -> sha256`, used by many threads and processes at once.

    It only ever saves work: when it cannot be read or written (no home, read-only, full, locked, damaged), hashes are
    computed anew and nobody is told.
    """

    def __init__(self, path: Path | None = None):
        """`path`: the database; by default `$XDG_CACHE_HOME/bricks/sha256.sqlite` (`~/.cache/bricks/...`)."""
        self._path = path
        self._of_thread = threading.local()

    def recall(self, name: str, state: str) -> str | None:
        """The sha256 that was remembered for `name` in this very `state`."""
        row: tuple[str, str] | None = None
        try:
            connection = self._connection()
            if connection is not None:
                row = connection.execute("SELECT state, hex FROM sha256 WHERE name = ?", (name,)).fetchone()
        except (sqlite3.Error, UnicodeEncodeError):
            return None
        return row[1] if row is not None and row[0] == state else None

    def remember(self, name: str, state: str, sha256: str) -> None:
        """Remember it; the row of another state of the same name is replaced."""
        try:
            connection = self._connection()
            if connection is not None:
                connection.execute("INSERT OR REPLACE INTO sha256 VALUES (?, ?, ?)", (name, state, sha256))
        except sqlite3.OperationalError:  # locked for too long, full, read-only: the next one may have more luck
            return
        except UnicodeEncodeError:  # a name that is not UTF-8
            return
        except sqlite3.DatabaseError:
            self._throw_away()
            self._of_thread.pid = None

    def _connection(self) -> sqlite3.Connection | None:
        mine = self._of_thread
        if getattr(mine, "pid", None) != os.getpid():  # SQLite's connections do not survive a fork
            mine.pid, mine.connection = os.getpid(), None
            with suppress(OSError, RuntimeError, sqlite3.Error):
                try:
                    mine.connection = self._open()
                except sqlite3.OperationalError:  # no place, read-only, locked
                    raise
                except sqlite3.DatabaseError:
                    self._throw_away()
                    mine.connection = self._open()
        connection: sqlite3.Connection | None = mine.connection
        return connection

    def _open(self) -> sqlite3.Connection:
        path = self._path or _default_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")  # losing it in a power cut costs a second reading, no more
        connection.execute(f"CREATE TABLE IF NOT EXISTS sha256 ({_COLUMNS}) WITHOUT ROWID")
        return connection

    def _throw_away(self) -> None:
        """Remove a damaged database; whoever still has it open writes into the removed file."""
        path = self._path or _default_path()
        for each in (path, path.with_name(path.name + "-journal")):  # a journal left alone would "repair" the next one
            with suppress(OSError):
                each.unlink()


def _default_path() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has a relative path ignored.
    folder = Path(cache_home) if os.path.isabs(cache_home) else Path.home() / ".cache"
    return folder / "bricks" / "sha256.sqlite"


CACHE = HashCache()


def sha256_of_file(path: Path, cache: HashCache = CACHE) -> str:
    """sha256 of the file's content now, in hex. OSError as `open` raises it."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        name, state = os.path.realpath(path), file_state(before)
        known = cache.recall(name, state)
        if known is not None:
            return known
        started_s = time.time()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    settled = started_s - max(before.st_mtime, before.st_ctime) > SETTLED_S
    if settled and file_state(after) == state:
        cache.remember(name, state, digest)
    return digest
