"""What the operating system's errors mean for a store, each in one sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bricks_core.errors import BricksError, NoSuchObject, SpecError, StoreDenied, StoreUnavailable, TryLater

_AWAY = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}
_AWAY |= {errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOLINK, errno.EREMOTEIO}
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EBUSY, errno.ENOLCK}


@contextmanager
def told(path: Path, doing: str, key: str | None = None) -> Iterator[None]:
    """Turn an OSError into one of ours. `doing`: read, write, list or delete. `key`: of the object at `path`."""
    try:
        yield
    except OSError as error:
        raise _explained(error, path, doing, key) from error


def _explained(error: OSError, path: Path, doing: str, key: str | None) -> BricksError:
    number, why = error.errno, error.strerror or str(error)
    if doing == "read" and key is not None and number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return NoSuchObject(key)
    if number in (errno.ENOSPC, errno.EDQUOT):
        whose = "is full" if number == errno.ENOSPC else "has no quota left for you"
        return TryLater(
            f"Cannot {doing} {path}: the disk {whose}. Make room and start again: what is finished is kept."
        )
    if number == errno.EFBIG:
        return StoreDenied(
            f"Cannot {doing} {path}: a file this large is not allowed there. "
            "Raise the limit (ulimit -f), or keep the store on another file system."
        )
    if number == errno.EROFS:
        return StoreDenied(f"Cannot {doing} {path}: the file system is read-only. Remount it, or use another store.")
    if number in (errno.EACCES, errno.EPERM):
        return StoreDenied(
            f"Cannot {doing} {path}: user {os.geteuid()} has no permission. "
            "Change the folder's owner or mode (chown, chmod), or use another one."
        )
    if number == errno.ENAMETOOLONG:
        return SpecError(f"Cannot {doing} {path}: the name is too long for this file system. Shorten it.")
    if number == errno.ELOOP:
        return SpecError(f"Cannot {doing} {path}: symbolic links lead in a ring. Remove one.")
    if number in _SCARCE:
        return TryLater(f"Cannot {doing} {path}: {why}. Something is used up on this machine; start again later.")
    if number in _AWAY:
        return StoreUnavailable(f"Cannot {doing} {path}: {why}. Is its disk or file server there?")
    if doing == "write" and number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return SpecError(f"Cannot write {path}: a file is in the way of a folder, or a folder of a file. Move it away.")
    if number == errno.ENOENT:
        return StoreDenied(f"Cannot {doing} {path}: it, or a folder above it, is not there. Was something unmounted?")
    return StoreUnavailable(f"Cannot {doing} {path}: {why} (error {number}).")
