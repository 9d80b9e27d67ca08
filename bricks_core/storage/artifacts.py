"""Finished stages in the store: found, checked, read, and taken apart again when something is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, DataError, NoSuchObject
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest, Part, StoredObject
from bricks_core.spec.strict import Row
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_rows

R = TypeVar("R", bound=Row)

MANIFEST = "manifest.json"


def artifact_prefix(stage: str, digest: str) -> str:
    """Where an artifact lies in its store."""
    return f"artifacts/{stage}/{digest}/"


def part_key(stage: str, digest: str, item: str) -> str:
    """Where the record of a finished item lies."""
    return f"{artifact_prefix(stage, digest)}parts/{item}.json"


def find_manifest(store: Store, stage: str, digest: str) -> Manifest | None:
    """The artifact's manifest, or None while the stage is not done.

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
    if (manifest.stage, manifest.digest) != (stage, digest) or manifest.schema_version != SCHEMA_VERSION:
        raise CorruptManifest(
            f"{key} is the manifest of {manifest.stage}/{manifest.digest}: it was put in the wrong place."
        )
    return manifest


@dataclass(frozen=True)
class Artifact:
    """A finished stage, to read from. Everything read is checked against the manifest."""

    store: Store
    manifest: Manifest

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.manifest.stage, self.manifest.digest)

    @cached_property
    def _objects(self) -> dict[str, StoredObject]:
        return {stored.key: stored for stored in self.manifest.objects}

    def local(self, key: str) -> AbstractContextManager[Path]:
        """A file of the artifact, to read while in the context.

        Raises:
            AlteredObject: it is missing, or not what was committed.
        """
        if key not in self._objects:
            raise AlteredObject(self.prefix + key, "is not in its artifact's manifest.")
        return self.store.local(self.prefix + key, sha256=self._objects[key].sha256)

    def rows(self, table: str, row: type[R]) -> Iterator[R]:
        """The rows of a table, streamed, in the order of their ids."""
        with self.local(self.manifest.tables[table].key) as file:
            yield from read_rows(file, row)


def open_artifact(store: Store, stage: str, digest: str) -> Artifact:
    """The finished artifact at an address.

    Raises:
        DataError: the stage is not done.
        CorruptManifest: see find_manifest.
    """
    manifest = find_manifest(store, stage, digest)
    if manifest is None:
        raise DataError(f"{stage} is not finished: {store.uri} has no {artifact_prefix(stage, digest)}{MANIFEST}.")
    return Artifact(store, manifest)


def problems(store: Store, manifest: Manifest, *, thorough: bool = False) -> list[AlteredObject]:
    """Objects of an artifact that are missing or altered; an empty list says that it can be trusted.

    Sizes are compared for all, contents where the store can tell a content without reading it again (a file that was
    not touched since, an ETag seen before). `thorough` reads everything.
    """
    prefix = artifact_prefix(manifest.stage, manifest.digest)
    found = {entry.key: entry for entry in store.list(prefix)}
    wrong = []
    for stored in manifest.objects:
        key = prefix + stored.key
        entry = found.get(key)
        if entry is None:
            wrong.append(AlteredObject(key, "is missing."))
        elif entry.size_bytes != stored.size_bytes:
            wrong.append(AlteredObject(key, f"has {entry.size_bytes} bytes, its manifest says {stored.size_bytes}."))
        else:
            sha256 = store.sha256(key) if thorough else store.known_sha256(entry)
            if sha256 is not None and sha256 != stored.sha256:
                wrong.append(
                    AlteredObject(key, f"was altered: sha256 {sha256[:12]}… instead of {stored.sha256[:12]}….")
                )
    return wrong


def read_part(store: Store, key: str) -> Part:
    """A finished item's record.

    Raises:
        CorruptManifest: it cannot be read.
    """
    try:
        return Part.model_validate_json(store.get(key))
    except ValidationError as error:
        raise CorruptManifest(f"{key} is no part: {error.errors()[0]['msg']}.") from None


def reopen(store: Store, stage: str, digest: str, wrong: list[str]) -> int:
    """Make a broken artifact unfinished again, so that its stage rebuilds just what is broken.

    Takes the manifest away first, then the records of items that own one of the `wrong` keys, then those objects.
    Returns the number of items that will be done again.
    """
    prefix = artifact_prefix(stage, digest)
    store.delete([prefix + MANIFEST])
    broken = set(wrong)
    parts = []
    for entry in store.list(prefix + "parts/"):
        try:
            part = read_part(store, entry.key)
        except CorruptManifest:
            parts.append(entry.key)
            continue
        if any(prefix + stored.key in broken for stored in part.objects):
            parts.append(entry.key)
    store.delete(parts)
    store.delete(sorted(broken))
    return len(parts)
