"""Items in a store: found in bulk, read once, written once.

Whoever needs answers asks for all of them at once (`load`). They come from where they cost least: what this process
has already, then the records that a finished artifact keeps in one file, then the store, many at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, NoSuchObject
from bricks_core.spec.items import Item, ItemKey, Recipe, sealed
from bricks_core.spec.manifest import StoredObject, Try
from bricks_core.storage.code_version import code_version
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import Store

log = logging.getLogger("bricks")

M = TypeVar("M", bound=BaseModel)

FEW = 32
"""Up to so many are asked for one by one; of more it is seen first how many there are to be listed."""
_KEYS_A_PAGE = 1000
_NUM_FOLDERS = 256
_AT_ONCE = 1024
_CACHE_KB = 32 << 10


class Earlier(NamedTuple):
    """An item that an earlier version of its kind's function has answered."""

    key: ItemKey
    version: int


class Items:
    """The items of a store, as one process knows them. Safe to use from threads."""

    def __init__(self, store: Store, bundles: Sequence[Bundle] = ()):
        """`bundles`: records of finished artifacts, which are read before the store is asked."""
        self.store = store
        self._bundles = list(bundles)
        self._spool = _Spool()
        self._damaged: set[str] = set()
        """Objects that were told to be damaged: once is enough, however often they are asked for."""
        self._earlier: dict[ItemKey, Earlier] = {}
        """By its own key, and by the one that it would have today: see `keep`."""

    def keep(self, versions: Mapping[str, Iterable[int]]) -> None:
        """Let items of earlier versions of a kind's function count as done, for a run that had begun with these: asked
        for by the key of today they answer, the oldest first.

        Reads all records of these kinds, since only they tell of what an item was made.
        """
        for kind, wanted in versions.items():
            known = set(wanted)
            places = (entry.key for entry in self.store.list(f"items/{kind}/") if entry.key.endswith(".json"))
            for place, data in self.store.get_many(places):
                key = ItemKey(kind, place.rpartition("/")[2].removesuffix(".json"))
                try:
                    item = Item.opened(data or b"", key)
                except ValueError:
                    continue  # it counts as none, and is told where it is asked for
                now, before = item.key_now, self._earlier.get(item.key_now)
                if item.version in known and now != key and (before is None or item.version < before.version):
                    self._earlier[now] = self._earlier[key] = Earlier(key, item.version)
                    text = item.model_dump_json()
                    self._spool.add([(now, text), (key, text)])

    def earlier(self, key: ItemKey) -> Earlier | None:
        """The item of an earlier version that answers for this key (see `keep`); None: it is of today's version."""
        return self._earlier.get(key)

    def real(self, key: ItemKey) -> ItemKey:
        """The item that answers for this key: see `keep`."""
        earlier = self._earlier.get(key)
        return key if earlier is None else earlier.key

    def load(self, keys: Iterable[ItemKey]) -> set[ItemKey]:
        """Have the records of these items at hand; returns those that there are.

        A record that cannot be read counts as none, and is told once.
        """
        wanted = list(dict.fromkeys(keys))
        missing = self._spool.missing(wanted)
        if missing:
            for bundle in self._bundles:
                self._spool.add(bundle.records(missing))
                missing = self._spool.missing(missing)
            self._spool.add(self._from_store(missing))
            missing = self._spool.missing(missing)
        return set(wanted).difference(missing)

    def get(self, key: ItemKey) -> Item | None:
        """An item, or None: from what is at hand, or else from the store."""
        found = self._spool.get(key)
        if found is None:
            self._spool.add(self._from_store([key]))
            found = self._spool.get(key)
        return None if found is None else Item.model_validate_json(found)

    def need(self, key: ItemKey) -> Item:
        """An item that must be there.

        Raises:
            AlteredObject: it is not.
        """
        item = self.get(key)
        if item is None:
            raise AlteredObject(key.record, "is missing.")
        return item

    def answer(self, key: ItemKey, model: type[M]) -> M:
        """The answer of an item that must be there.

        Raises:
            AlteredObject: it is not.
            CorruptManifest: it is no such answer.
        """
        return _answer(self.need(key), model)

    def answers(self, keys: Iterable[ItemKey], model: type[M]) -> Iterator[M]:
        """The answers of items that were loaded, in the order of the keys; raises as `answer` does."""
        return (_answer(Item.model_validate_json(text), model) for _, text in self.texts(keys))

    def put_file(self, key: ItemKey, path: Path, suffix: str) -> StoredObject:
        """Store a file of an item, before its record. Its name tells its content, so two makers are never in each
        other's way."""
        with told(path, "read"):
            sha256 = sha256_of_file(path)
        return self.store.put_file(f"{key.place}.{sha256[:8]}{suffix}", path)

    def put(
        self,
        recipe: Recipe,
        answer: Mapping[str, Any] | BaseModel,
        objects: Iterable[StoredObject] = (),
        *,
        by: str = "",
        cost: Mapping[str, float] | None = None,
    ) -> Item:
        """Record an answer. If somebody was first, theirs is kept and returned."""
        item = Item(
            kind=recipe.key.kind,
            key=recipe.key.key,
            made_of=recipe.made_of,
            answer=answer.model_dump(mode="json") if isinstance(answer, BaseModel) else dict(answer),
            objects=list(objects),
            by=by,
            cost=dict(cost or {}),
            code_version=code_version(),
        )
        text = item.model_dump_json()
        if not self.store.put(recipe.key.record, sealed(text), if_absent=True):
            theirs = dict(self._from_store([recipe.key])).get(recipe.key)
            if theirs is not None:
                item, text = Item.model_validate_json(theirs), theirs
            else:  # it cannot be read
                self.store.put(recipe.key.record, sealed(text))
        self._spool.add([(recipe.key, text)])
        return item

    def replace(self, item: Item) -> None:
        """Record where an item's files lie now, once they are there; what it is made of and says is the same."""
        self.store.put(item.item_key.record, item.sealed())
        self.hold(item)

    def hold(self, item: Item) -> None:
        """Have this record at hand, whatever the store has."""
        self._spool.add([(item.item_key, item.model_dump_json())])

    def forget(self, keys: Iterable[ItemKey]) -> None:
        """Take records away, so that their items are made again."""
        gone = list(keys)
        self.store.delete([key.record for key in gone])
        self._spool.drop(gone)
        self._bundles.clear()  # they have the records still

    def texts(self, keys: Iterable[ItemKey]) -> Iterator[tuple[ItemKey, str]]:
        """The records at hand, as JSON, in the order of the keys."""
        rest = iter(keys)
        while some := list(islice(rest, _AT_ONCE)):
            found = self._spool.some(some)
            for key in some:
                if key not in found:
                    raise AlteredObject(key.record, "is missing.")
                yield key, found[key]

    def tried(self, each: Try) -> None:
        """Write down that a limit stopped the work on an item."""
        self.store.put(_key_of(each).attempt, each.model_dump_json().encode())

    def tries(self, keys: Iterable[ItemKey]) -> dict[ItemKey, Try]:
        """What is known of earlier tries at items that there are not."""
        by_place = {key.attempt: key for key in keys}
        found: dict[ItemKey, Try] = {}
        for place, data in self.store.get_many(_present(self.store, "tries", list(by_place.values()))):
            try:
                if data is not None:
                    found[by_place[place]] = Try.model_validate_json(data)
            except ValidationError:
                self._tell_damaged(place, "cannot be read, so the work is tried again.")
        return found

    def _from_store(self, keys: Iterable[ItemKey]) -> Iterator[tuple[ItemKey, str]]:
        by_place = {key.record: key for key in keys}
        for place, data in self.store.get_many(_present(self.store, "items", list(by_place.values()))):
            if data is None:
                continue
            try:
                text = Item.text_of(data, by_place[place])
            except ValueError as error:
                why = str(error).splitlines()[0]
                self._tell_damaged(place, f"cannot be used ({why}), so its item is made again.")
                continue
            yield by_place[place], text

    def _tell_damaged(self, place: str, what: str) -> None:
        if place not in self._damaged:
            self._damaged.add(place)
            log.warning("%s %s", place, what)


class Bundle:
    """The records of a finished artifact, in one Parquet file: columns kind, key and record."""

    def __init__(self, store: Store, key: str, sha256: str):
        self._store, self._key, self._sha256 = store, key, sha256

    def records(self, wanted: Iterable[ItemKey]) -> Iterator[tuple[ItemKey, str]]:
        """Those of the wanted items that are in it. A bundle that is gone or altered has none: it is only a copy."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        by_name = {_name(key): key for key in wanted}
        try:
            with self._store.local(self._key, sha256=self._sha256) as path, pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_AT_ONCE):
                    found = [by_name.get(name) for name in batch["id"].to_pylist()]
                    places = pa.array([place for place, key in enumerate(found) if key is not None], pa.int64())
                    yield from zip(filter(None, found), batch["record"].take(places).to_pylist(), strict=True)
        except (NoSuchObject, AlteredObject, pa.ArrowException, OSError, KeyError) as error:
            log.debug("%s is not used: %s", self._key, error)


def _present(store: Store, root: str, keys: Sequence[ItemKey]) -> list[str]:
    """Places to ask for: those of the keys, or, where listing takes fewer requests, those of them that are there."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_kind[key.kind].append(key.record if root == "items" else key.attempt)
    places: list[str] = []
    for kind, wanted in by_kind.items():
        if len(wanted) > FEW:
            # Keys are evenly spread, so one folder tells how many there are.
            sample = sum(1 for _ in store.list(f"{root}/{kind}/{wanted[0].split('/')[2]}/"))
            if (1 + sample * _NUM_FOLDERS // _KEYS_A_PAGE) < len(wanted):
                there = {entry.key for entry in store.list(f"{root}/{kind}/")}
                wanted = [place for place in wanted if place in there]
        places += wanted
    return places


def _answer(item: Item, model: type[M]) -> M:
    try:
        return model.model_validate(item.answer)
    except ValidationError as error:
        raise CorruptManifest(f"{item.item_key.record} is no {model.__name__}: {error.errors()[0]['msg']}.") from None


def _key_of(each: Try) -> ItemKey:
    return ItemKey(each.kind, each.key)


class _Spool:
    """Records at hand, on disk: memory does not grow with them."""

    def __init__(self) -> None:
        # No name: SQLite's file of its own, which grows on disk and is gone when closed. Records are appended, and only
        # the index is in the order of the names, which come in none: it is small enough for the cache.
        self._table = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._table.execute("PRAGMA journal_mode = MEMORY")
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        self._table.execute("CREATE TABLE items (id TEXT PRIMARY KEY, record TEXT)")
        self._new: dict[str, str] = {}
        """By name: not in the table yet, since a transaction for each would cost more than its record."""
        self._lock = threading.Lock()

    def add(self, records: Iterable[tuple[ItemKey, str]]) -> None:
        rest = iter(records)
        while some := [(_name(key), record) for key, record in islice(rest, _AT_ONCE)]:
            with self._lock:
                self._new.update(some)
                if len(self._new) >= _AT_ONCE:
                    with self._table:  # one transaction
                        self._table.execute("BEGIN")
                        self._table.executemany("INSERT OR REPLACE INTO items VALUES (?, ?)", self._new.items())
                    self._new.clear()

    def get(self, key: ItemKey) -> str | None:
        name = _name(key)
        with self._lock:
            if name in self._new:
                return self._new[name]
            row = self._table.execute("SELECT record FROM items WHERE id = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def some(self, keys: Sequence[ItemKey]) -> dict[ItemKey, str]:
        by_name = {_name(key): key for key in keys}
        return {by_name[name]: record for name, record in self._select("record", list(by_name))}

    def missing(self, keys: Sequence[ItemKey]) -> list[ItemKey]:
        names = [_name(key) for key in keys]
        there = {name for name, _ in self._select("NULL", names)}
        return [key for key, name in zip(keys, names, strict=True) if name not in there]

    def drop(self, keys: Iterable[ItemKey]) -> None:
        with self._lock:
            for name in map(_name, keys):
                self._new.pop(name, None)
                self._table.execute("DELETE FROM items WHERE id = ?", (name,))

    def _select(self, column: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        select = f"SELECT id, {column} FROM items WHERE id IN (SELECT value FROM json_each(?))"
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            with self._lock:
                rows = [(name, self._new[name]) for name in some if name in self._new]
                if len(rows) < len(some):
                    rest = [name for name in some if name not in self._new]
                    rows += self._table.execute(select, (json.dumps(rest),)).fetchall()
            yield from rows


def _name(key: ItemKey) -> str:
    return f"{key.kind}/{key.key}"


def digest_of(lines: Iterable[str]) -> str:
    """A hash of some lines, in their sorted order. 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:32]


def seconds_since(began_s: float, num: int = 1) -> dict[str, float]:
    """What `num` items took together since then (`time.monotonic()`), as the cost of one of them."""
    return {"seconds": round((time.monotonic() - began_s) / max(num, 1), 3)}
