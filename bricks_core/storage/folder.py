"""A store in a folder: a disk of this machine, or one shared by many (NFS and the like).

Writing aside and publishing by one atomic step is the old way of maildir and git: a temporary file in the *same*
folder, fsync of the file, link or rename, fsync of the folder.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import socket
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, NamedTuple

from bricks_core.errors import (
    AlteredObject,
    NoSuchObject,
    SpecError,
)
from bricks_core.spec.manifest import StoredObject
from bricks_core.storage.hashes import file_state, sha256_of_file
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import LEFTOVER_IDLE_S, Entry, SourceFile, Store, check_key, check_prefix, is_key

_CHUNK_BYTES = 1 << 20
_DEAD_S = 60.0  # no such process here; but two containers may share a host name and not their processes
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_NO_SUCH_CALL = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV, errno.ENOTTY}


class FolderStore(Store):
    """Objects as plain files under one folder."""

    max_at_once = 8  # a disk of this machine wants few; of a file server's answers, so many are waited for at once

    def __init__(self, uri: str, root: Path):
        self.uri = uri
        self._root = Path(os.path.abspath(root))
        with told(self._root, "use"):
            if not self._root.parent.is_dir():
                raise SpecError(
                    f"The store {self._root} cannot be made: {self._root.parent} is no folder. "
                    "Make it (or mount it), or correct the store's address."
                )
            if self._root.exists() and not self._root.is_dir():
                raise SpecError(f"The store {self._root} is a file: give a folder.")

    def __reduce__(self) -> tuple[type[FolderStore], tuple[str, Path]]:
        return FolderStore, (self.uri, self._root)

    def get(self, key: str) -> bytes:
        with told(self._path(key), "read", key):
            return self._path(key).read_bytes()

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        path = self._path(key)
        with told(path, "write", key):
            if if_absent and path.exists():
                return False
            with self._written_aside(path) as (file, aside):
                file.write(data)
                _flush(file)
                return _publish_first(aside, path) if if_absent else _publish(aside, path)

    def put_file(self, key: str, path: Path) -> StoredObject:
        target, digest, size_bytes = self._path(key), hashlib.sha256(), 0
        with told(path, "read"):
            source = path.open("rb")
        with source, told(target, "write", key), self._written_aside(target) as (file, aside):
            while chunk := _read_chunk(source, path):
                digest.update(chunk)
                file.write(chunk)
                size_bytes += len(chunk)
            _flush(file)
            _publish(aside, target)
        return StoredObject(key=key, size_bytes=size_bytes, sha256=digest.hexdigest())

    @contextmanager
    def local(self, key: str, *, sha256: str | None = None) -> Iterator[Path]:
        if self.head(key) is None:
            raise NoSuchObject(key)
        if sha256 is not None and self.sha256(key) != sha256:
            raise AlteredObject(key, f"was altered: its sha256 is not {sha256[:12]}….")
        yield self._path(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, beginning = check_prefix(prefix).rpartition("/")
        for found in _walk(self._root / folder, f"{folder}/" if folder else "", beginning):
            if is_key(found.name):
                yield _entry(found.name, found.stat)

    def head(self, key: str) -> Entry | None:
        with told(self._path(key), "read", key):
            try:
                found = self._path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return _entry(key, found) if stat.S_ISREG(found.st_mode) else None

    def delete(self, keys: Iterable[str]) -> int:
        num_keys = 0
        for num_keys, key in enumerate(keys, start=1):  # noqa: B007  the count is the answer
            path = self._path(key)
            with told(path, "delete", key):
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
                # A folder that has become empty goes too, so that a deleted artifact leaves nothing behind.
                with suppress(OSError):
                    while (path := path.parent) != self._root:
                        path.rmdir()
        return num_keys

    def sha256(self, key: str) -> str:
        with told(self._path(key), "read", key):
            return sha256_of_file(self._path(key))

    def known_sha256(self, entry: Entry) -> str | None:
        return self.sha256(entry.key)

    def sweep(self, *, idle_s: float = LEFTOVER_IDLE_S) -> int:
        num_removed = 0
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                if name.startswith(".") and _is_leftover(path, idle_s):
                    with told(path, "delete"), suppress(FileNotFoundError):
                        path.unlink()
                        num_removed += 1
        return num_removed

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _written_aside(self, path: Path) -> Iterator[tuple[IO[bytes], Path]]:
        """A new file beside `path`, open for writing; removed at the end unless it was renamed away."""
        aside = path.with_name(f".{os.getpid()}@{socket.gethostname()[:64]}-{uuid.uuid4().hex[:12]}.tmp")
        file = self._open_new(aside)
        try:
            with file:
                yield file, aside
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _open_new(self, aside: Path) -> IO[bytes]:
        for attempt in range(100):
            try:
                self._make_folder(aside.parent)
                return aside.open("xb")
            except FileNotFoundError:  # a `delete` beside us has just removed the empty folder
                if attempt == 99:
                    raise
        raise AssertionError("unreachable")

    def _make_folder(self, folder: Path) -> None:
        """Make it and those above it, down from the store's root, each one synced into its parent."""
        missing = []
        while not folder.is_dir() and folder != self._root.parent:
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            with suppress(FileExistsError):
                folder.mkdir()
            _sync_folder(folder.parent)


def _entry(key: str, found: os.stat_result) -> Entry:
    return Entry(key, found.st_size, file_state(found), found.st_mtime)


def source_files(uri: str, root: Path) -> Iterator[SourceFile]:
    """See `places.list_source`."""
    with told(root, "read"):
        try:
            found = root.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise SpecError(f"The source {uri} is not there: give a file or a folder that exists.") from None
    if stat.S_ISREG(found.st_mode):
        yield _source_file(_Found(root.name, root, found))
    elif stat.S_ISDIR(found.st_mode):
        for file in _walk(root, "", ""):
            yield _source_file(file)
    else:
        raise SpecError(f"The source {uri} is neither a file nor a folder.")


class _Found(NamedTuple):
    name: str
    path: Path
    stat: os.stat_result


def _source_file(found: _Found) -> SourceFile:
    def sha256() -> str:
        with told(found.path, "read", found.name):
            return sha256_of_file(found.path)

    # A name that is not UTF-8 is shown escaped, so that it can stand in a table.
    name = os.fsencode(found.name).decode("utf-8", "backslashreplace")
    return SourceFile(
        name=name,
        size_bytes=found.stat.st_size,
        uri=os.fsencode(os.path.abspath(found.path)).decode("utf-8", "backslashreplace"),
        _fingerprint=lambda: f"sha256:{sha256()}",
        _sha256=sha256,
        _local=lambda: nullcontext(found.path),
    )


def _walk(folder: Path, name: str, beginning: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[_Found]:
    """The regular files under a folder, by name as S3 sorts them; hidden ones left out, links followed (not in rings).

    `name`: what the names found begin with. `beginning`: what a name in this folder (not below) must begin with.
    """
    with told(folder, "list"):
        try:
            here = folder.stat()
            # A folder sorts as "name/": the listing of "a/b" comes after "a-b" and before "a0b".
            entries = [(each.name + "/" * each.is_dir(), each.path) for each in os.scandir(folder)]
        except (FileNotFoundError, NotADirectoryError):  # nothing there, or deleted while we looked
            return
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    for each, path in sorted(entries):
        if each.startswith(".") or not each.startswith(beginning):
            continue
        if each.endswith("/"):
            yield from _walk(Path(path), name + each, "", (*above, identity))
            continue
        with told(Path(path), "read"):
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
        if stat.S_ISREG(found.st_mode):
            yield _Found(name + each, Path(path), found)


def _publish(aside: Path, path: Path) -> bool:
    os.replace(aside, path)
    _sync_folder(path.parent)
    return True


def _publish_first(aside: Path, path: Path) -> bool:
    """Give the file written aside its name, unless that name is taken: then False."""
    for way in (_link, _rename_no_replace, _rename_under_lock):
        try:
            way(aside, path)
        except FileExistsError:
            # On NFS the server may have linked, and its answer got lost: then the file has two names; we were first.
            with suppress(FileNotFoundError):
                return aside.stat().st_nlink > 1
            return False
        except OSError as error:
            if error.errno in _NO_SUCH_CALL and way is not _rename_under_lock:
                continue
            raise
        _sync_folder(path.parent)
        return True
    raise AssertionError("unreachable")


def _link(aside: Path, path: Path) -> None:
    os.link(aside, path)


def _rename_no_replace(aside: Path, path: Path) -> None:
    """renameat2(2), for file systems without hard links (FAT, exFAT, many FUSE ones)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(path))
    if rename(_AT_FDCWD, os.fsencode(aside), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def _rename_under_lock(aside: Path, path: Path) -> None:
    """Where neither exists: look and rename while holding a lock, which goes with its holder however that dies."""
    with path.with_name(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.replace(aside, path)


def _read_chunk(source: IO[bytes], path: Path) -> bytes:
    with told(path, "read"):
        return source.read(_CHUNK_BYTES)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):  # some cannot sync a folder
            raise
    finally:
        os.close(handle)


def _is_leftover(path: Path, idle_s: float) -> bool:
    """Whether a hidden file is a killed writer's: `.PID@HOST-RANDOM.tmp`, and left alone, less long if it died here."""
    writer, at, rest = path.name[1:].partition("@")
    if not at or not writer.isdecimal() or not rest.endswith(".tmp"):
        return False
    if rest.rpartition("-")[0] == socket.gethostname()[:64]:
        try:
            os.kill(int(writer), 0)
        except ProcessLookupError:
            idle_s = min(idle_s, _DEAD_S)
        except OSError:
            pass
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > idle_s
    return False
