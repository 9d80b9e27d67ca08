"""Finished stages in the store: found, checked, read, and taken apart again when something is wrong with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, DataError, NoSuchObject
from bricks_core.spec.items import Item, ItemKey
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest
from bricks_core.spec.strict import Row
from bricks_core.storage.items import Bundle
from bricks_core.storage.store import Entry, Store
from bricks_core.storage.tables import read_columns, read_rows

R = TypeVar("R", bound=Row)

MANIFEST = "manifest.json"
ITEMS = "items.parquet"
"""The items that an artifact's tables were made from, with their files: the key column."""
RECORDS = "records.parquet"
FROM_ROOT = ("items/", "artifacts/", "trainings/")
"""What the key of an item's file begins with: it lies in the store, not in the artifact."""
FEW_FILES = 64
"""Up to so many are asked for one by one, and not looked for in a listing."""
_ITEM_COLUMNS = ["kind", "key", "object", "size_bytes", "sha256"]


class ItemRow(Row):
    """An item, or one of its files; `id` is `kind/key` and, from the second file on, the file's number."""

    kind: str
    key: str
    object: str = ""
    """The file, from the store's root; empty: the item has none."""
    size_bytes: int = 0
    sha256: str = ""


class RecordRow(Row):
    """An item's record; `id` is `kind/key`."""

    record: str


def artifact_prefix(stage: str, digest: str) -> str:
    """Where an artifact lies in its store."""
    return f"artifacts/{stage}/{digest}/"


def table_of_items(manifest: Manifest) -> str | None:
    """The key of its table of items, if it has one: in a folder of its own once the artifact was compacted."""
    return next((each.key for each in manifest.objects if each.key.rpartition("/")[2] == ITEMS), None)


def find_manifest(store: Store, stage: str, digest: str, *, earlier: bool = False) -> Manifest | None:
    """The artifact's manifest, or None while the stage is not done. `earlier`: also one of an earlier version of
    Bricks, to look at and never to build on.

    Raises:
        CorruptManifest: there is something in its place that is no manifest of this artifact.
    """
    key = artifact_prefix(stage, digest) + MANIFEST
    try:
        manifest = Manifest.model_validate_json(store.get(key))
    except NoSuchObject:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptManifest(f"{key} is no manifest: {where}: {first['msg']}.") from None
    if manifest.schema_version != SCHEMA_VERSION and not (earlier and manifest.schema_version < SCHEMA_VERSION):
        raise CorruptManifest(
            f"{key} is of another version of Bricks (schema {manifest.schema_version}, here {SCHEMA_VERSION}): "
            "bricks store upgrade, and then bricks run of its file, make use of what it holds."
        )
    if (manifest.stage, manifest.digest) != (stage, digest):
        raise CorruptManifest(
            f"{key} is the manifest of {manifest.stage}/{manifest.digest}: it was put in the wrong place."
        )
    return manifest


@dataclass(frozen=True)
class Artifact:
    """A finished stage, to read from. Everything read is checked against the manifest and the table of items."""

    store: Store
    manifest: Manifest

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.manifest.stage, self.manifest.digest)

    def full(self, key: str) -> str:
        """The key of one of its files, from the store's root."""
        return key if key.startswith(FROM_ROOT) else self.prefix + key

    @cached_property
    def _objects(self) -> dict[str, str]:
        """sha256 by key."""
        return {stored.key: stored.sha256 for stored in self.manifest.objects}

    @cached_property
    def _item_objects(self) -> dict[str, str]:
        return {row.object: row.sha256 for row in self.item_rows() if row.object}

    def local(self, key: str, *, sha256: str | None = None) -> AbstractContextManager[Path]:
        """A file of the artifact, to read while in the context. `sha256`: what it must have, where a row tells.

        Raises:
            AlteredObject: it is missing, or not what was committed.
        """
        full = self.full(key)
        known = self._objects.get(key)
        if known is None and key.startswith(FROM_ROOT):
            known = sha256 or self._item_objects.get(key)
        if known is None:
            raise AlteredObject(full, f"is not in {self.prefix}{ITEMS if key.startswith(FROM_ROOT) else MANIFEST}.")
        return self.store.local(full, sha256=known)

    def rows(self, table: str, row: type[R]) -> Iterator[R]:
        """The rows of a table, streamed, in the order of their ids; none of a table that came in later."""
        if table not in self.manifest.tables:
            return
        with self.local(self.manifest.tables[table].key) as file:
            yield from read_rows(file, row)

    def item_rows(self) -> Iterator[ItemRow]:
        """The items that its tables were made from, and their files."""
        table = table_of_items(self.manifest)
        if table is None:
            return
        with self.local(table) as file:
            for each in read_columns(file, _ITEM_COLUMNS):
                yield ItemRow.model_construct(id="", **each)

    def bundle(self) -> list[Bundle]:
        """The items' records, where they are kept in one file."""
        records = self.manifest.records
        return [] if records is None else [Bundle(self.store, self.prefix + records.key, records.sha256)]


def open_artifact(store: Store, stage: str, digest: str, *, earlier: bool = False) -> Artifact:
    """The finished artifact at an address. `earlier`: see find_manifest.

    Raises:
        DataError: the stage is not done.
        CorruptManifest: see find_manifest.
    """
    manifest = find_manifest(store, stage, digest, earlier=earlier)
    if manifest is None:
        raise DataError(f"{stage} is not finished: {store.uri} has no {artifact_prefix(stage, digest)}{MANIFEST}.")
    return Artifact(store, manifest)


def problems(store: Store, manifest: Manifest, *, items: bool = False, thorough: bool = False) -> list[AlteredObject]:
    """Objects of an artifact that are missing or altered; an empty list says that nothing was found.

    Looks at the artifact's own objects: sizes, and contents where the store can tell a content without reading it (a
    file that was not touched since, an ETag seen before). `items` also looks at the items' files in that way, by
    listing them. `thorough` reads everything, items' files too.
    """
    artifact = Artifact(store, manifest)
    own = [*manifest.objects, *filter(None, [manifest.records])]
    wanted = {artifact.full(each.key): (each.size_bytes, each.sha256) for each in own}
    found = {entry.key: entry for entry in store.list(artifact.prefix)}
    for folder in sorted({key.rpartition("/")[0] for key in wanted if not key.startswith(artifact.prefix)}):
        found |= {entry.key: entry for entry in store.list(f"{folder}/")}
    checks = (_problem(store, key, found.get(key), *known, thorough) for key, known in wanted.items())
    wrong = [each for each in checks if each is not None]
    if (items or thorough) and f"{artifact.prefix}{table_of_items(manifest)}" not in {each.key for each in wrong}:
        wrong += _item_problems(store, artifact, thorough)
    return wrong


def reopen(store: Store, stage: str, digest: str, wrong: Iterable[str]) -> list[ItemKey]:
    """Make a broken artifact unfinished again, so that its stage rebuilds just what is broken.

    Takes the manifest away first, then the records of items that own one of the `wrong` keys, then those objects.
    Returns the items that will be made again: not those whose records have led elsewhere since.
    """
    broken = set(wrong)
    prefix = artifact_prefix(stage, digest)
    items: list[ItemKey] = []
    copies: set[str] = set()
    if any(key.startswith(FROM_ROOT) and not key.startswith(prefix) for key in broken):
        artifact = open_artifact(store, stage, digest)
        owners = dict.fromkeys(ItemKey(row.kind, row.key) for row in artifact.item_rows() if row.object in broken)
        items = [key for key, objects in _recorded(store, owners) if objects is None or not broken.isdisjoint(objects)]
        if owners and artifact.manifest.records is not None:
            # The records in one file would bring back what is just taken away.
            copies = {prefix + artifact.manifest.records.key}
    store.delete([prefix + MANIFEST])
    store.delete([key.record for key in items])
    store.delete(sorted(broken | copies))
    return items


def _recorded(store: Store, keys: Iterable[ItemKey]) -> Iterator[tuple[ItemKey, list[str] | None]]:
    """The files of items, as their records tell now; None where no record can be read."""
    by_place = {key.record: key for key in keys}
    for place, data in store.get_many(by_place):
        try:
            item = Item.opened(data, by_place[place]) if data is not None else None
        except ValueError:
            item = None
        yield by_place[place], [each.key for each in item.objects] if item is not None else None


def _item_problems(store: Store, artifact: Artifact, thorough: bool) -> Iterator[AlteredObject]:
    """Of the files of items. They can be hundreds of thousands: of each, its key, size and sha256 are in memory."""
    places: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    for row in artifact.item_rows():
        if row.object:
            places["/".join(row.object.split("/")[:2]) + "/"][row.object] = row.size_bytes, row.sha256
    for place, wanted in places.items():
        for key, entry in _entries(store, place, wanted):
            known = wanted.pop(key, None)
            wrong = None if known is None else _problem(store, key, entry, *known, thorough)
            if wrong is not None:
                yield wrong
        yield from (AlteredObject(key, "is missing.") for key in wanted)


def _entries(store: Store, place: str, wanted: Iterable[str]) -> Iterator[tuple[str, Entry | None]]:
    """Entries of some files, and perhaps of others beside them: from a listing, unless there are only a few."""
    few = sorted(islice(wanted, FEW_FILES + 1))
    if len(few) <= FEW_FILES:
        return store.heads(few)
    return ((entry.key, entry) for entry in store.list(place))


def _problem(
    store: Store, key: str, entry: Entry | None, size_bytes: int, sha256: str, thorough: bool
) -> AlteredObject | None:
    if entry is None:
        return AlteredObject(key, "is missing.")
    if entry.size_bytes != size_bytes:
        return AlteredObject(key, f"has {entry.size_bytes} bytes instead of {size_bytes}.")
    now = store.sha256(key) if thorough else store.known_sha256(entry)
    if now is not None and now != sha256:
        return AlteredObject(key, f"was altered: sha256 {now[:12]}… instead of {sha256[:12]}….")
    return None
