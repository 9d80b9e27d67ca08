"""Where artifacts live: a folder or `s3://bucket/prefix`, behind one small class; and the sources they are made from.

This file is the contract; `folder.py` and `s3.py` are the two ways to keep it, `places.py` opens them. Both promise:

- An object appears whole or not at all, also when the writer is killed or the power goes.
- `put(..., if_absent=True)` has exactly one winner, however many try at once.
- Every failure is one of `errors.py`, in one sentence: what, where, how to mend it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from bricks_core.errors import NoSuchObject, SpecError
from bricks_core.spec.manifest import StoredObject
from bricks_core.storage.in_flight import in_flight

LEFTOVER_IDLE_S = 24 * 3600.0  # nobody pauses for a day while writing an object
MAX_KEY_BYTES = 1024  # S3's limit, prefix included
MAX_PART_BYTES = 255  # NAME_MAX of every common file system
# Control characters, lone surrogates (a file name that is not UTF-8) and what XML, which S3 speaks, cannot say.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Entry(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size_bytes: int
    etag: str
    """Changes when the content does (S3: its ETag; folder: size, times and inode). Only ever compare it."""
    modified_s: float
    """When it was written, in Unix seconds, by the clock of the store's server."""


class Store(ABC):
    """Objects by key. Safe to use from many threads; a copy sent to another process opens the same place anew.

    A key is a relative path with `/` between its parts, in any script (spaces and the like are fine). Parts that begin
    with a dot belong to the store itself. A key cannot be the folder of another one (`a` and `a/b`).
    """

    uri: str
    """As given. It never holds a secret: those come from the environment only."""
    max_at_once: ClassVar[int]
    """No more requests than this are worth having in flight."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The content, whole. NoSuchObject when absent."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write atomically. With `if_absent`: False says that somebody was first, and that nothing was written."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> StoredObject:
        """Write a local file's content atomically, in bounded memory; its sha256 is computed on the way.

        The StoredObject's key is the one given here, from the store's root.
        """

    @abstractmethod
    def local(self, key: str, *, sha256: str | None = None) -> AbstractContextManager[Path]:
        """A local file to read, gone (or not yours any more) at the end of the `with`; never write into it.

        With `sha256`, the content is checked first: AlteredObject names the key. NoSuchObject when absent.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key begins with `prefix`, sorted by key, in bounded memory. Nothing there: no entries."""

    @abstractmethod
    def head(self, key: str) -> Entry | None:
        """The object's entry, or None when there is none."""

    def get_many(self, keys: Iterable[str], *, num_at_once: int = 32) -> Iterator[tuple[str, bytes | None]]:
        """Contents of many small objects, in the order of the keys, several in flight; None where there is none.

        At most twice `num_at_once` contents are in memory. Errors are those of `get`, raised in the key's turn.
        """
        return in_flight(self._get_or_none, keys, min(num_at_once, self.max_at_once))

    def heads(self, keys: Iterable[str], *, num_at_once: int = 32) -> Iterator[tuple[str, Entry | None]]:
        """`head` of many objects, in the order of the keys, several in flight."""
        return in_flight(self.head, keys, min(num_at_once, self.max_at_once))

    def _get_or_none(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except NoSuchObject:
            return None

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> int:
        """Delete them; returns how many keys were given. A key that is not there is as good as deleted."""

    @abstractmethod
    def sha256(self, key: str) -> str:
        """sha256 of the content now, in hex; read once, then remembered for as long as the object is unchanged."""

    @abstractmethod
    def known_sha256(self, entry: Entry) -> str | None:
        """sha256 of a listed object where it can be told without a transfer, else None.

        Folder: always, as `sha256` does. S3: when this machine has written or read an object with this very ETag.
        """

    @abstractmethod
    def sweep(self, *, idle_s: float = LEFTOVER_IDLE_S) -> int:
        """Remove what killed writers left behind (never visible, only taking room); returns how many pieces.

        What was begun or touched within the last `idle_s` is taken to belong to a living writer.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}>"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: somebody else's folder or bucket, which we only read."""

    name: str
    """Relative to the source, `/` between parts; for a source that is one file, that file's name."""

    size_bytes: int
    uri: str
    _fingerprint: Callable[[], str] = field(repr=False, compare=False)
    _sha256: Callable[[], str] = field(repr=False, compare=False)
    _local: Callable[[], AbstractContextManager[Path]] = field(repr=False, compare=False)

    def fingerprint(self) -> str:
        """Changes when the content does. Folder: `sha256:...` (read once, then remembered). S3: `etag:...`, unread."""
        return self._fingerprint()

    def sha256(self) -> str:
        """sha256 of the content, in hex; read once, then remembered."""
        return self._sha256()

    def local(self) -> AbstractContextManager[Path]:
        """A local file to read (S3: downloaded, and removed at the end of the `with`), with the same suffix."""
        return self._local()


def check_key(key: str) -> str:
    """The key itself; SpecError when it is none (see Store)."""
    why = _why_no_key(key)
    if why is not None:
        raise SpecError(f"{key!r} is no key for a store: {why}.")
    return key


def is_key(key: str) -> bool:
    """Whether an object found in a store can be one of ours."""
    return _why_no_key(key) is None


def check_prefix(prefix: str) -> str:
    """The prefix itself; SpecError when no key can begin so."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def _why_no_key(key: str) -> str | None:
    parts = key.split("/")
    if not all(parts) or any(part.startswith(".") for part in parts):
        return "it needs parts with one slash between them, none of them empty or beginning with a dot"
    if _UNWRITABLE.search(key):
        return "it holds a control character, or what is no character at all. Rename it"
    if len(key.encode()) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"it is too long: a part has at most {MAX_PART_BYTES} bytes, the whole {MAX_KEY_BYTES}. Shorten it"
    return None
