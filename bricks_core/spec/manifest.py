"""What a finished stage leaves, and the address it leaves it at."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bricks_core.spec.strict import Strict

if TYPE_CHECKING:  # stages.py needs the kinds of items, and these what stands here
    from bricks_core.spec.stages import Stage

SCHEMA_VERSION = 2


def canonical_json(value: Any) -> bytes:
    """The one way to write a value down, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_id(*parts: str | int | float) -> str:
    """16 hexadecimal digits that name a thing by what it is made of. 64 bits: no clash among a billion things."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]


def cache_key(stage: Stage, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """A hash of everything that changes a stage's artifact and is known before it runs. 32 hexadecimal digits.

    `settings`: as `what_of` gives them. `inputs`: digests of the artifacts read (or of what of them is read), and
    fingerprints of what lies outside the store.
    """
    return _key(stage.name, stage.version, stage.kind_versions, settings, inputs)


def cache_key_then(manifest: Manifest, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """The same as it was with the versions that an artifact was made with."""
    return _key(manifest.stage, manifest.stage_version, manifest.kind_versions, settings, inputs)


def _key(stage: str, version: int, kinds: dict[str, int], settings: dict[str, Any], inputs: dict[str, str]) -> str:
    whole: dict[str, Any] = {"schema": SCHEMA_VERSION, "stage": stage, "version": version}
    if kinds:
        whole["kinds"] = kinds
    return hashlib.sha256(canonical_json(whole | {"settings": settings, "inputs": inputs})).hexdigest()[:32]


def versions_of(manifest: Manifest, kind: str) -> list[int]:
    """The versions of the function that answered an artifact's items of a kind, the first one first."""
    return sorted(manifest.item_versions.get(kind) or [manifest.kind_versions.get(kind, 1)])


def artifact_digest(key: str, depends_on: dict[str, Any]) -> str:
    """The address of an artifact: its cache key, unless it depends on more than was known before it ran.

    `depends_on`: what was tried in vain, which sides of the split were drawn before, which items are of an earlier
    version than the key says. Empty in most cases.
    """
    return hashlib.sha256(canonical_json([key, depends_on])).hexdigest()[:32] if depends_on else key


class StoredObject(Strict):
    """An object of an artifact."""

    key: str
    """Relative to the artifact's folder, or, of what several artifacts share, from the store's root."""
    size_bytes: int
    sha256: str


class Table(Strict):
    """A Parquet table of an artifact."""

    key: str
    row: str
    """The class of its rows."""
    num_rows: int


class Try(Strict):
    """Work that a limit stopped: no answer, and tried again as soon as one of the limits is another."""

    kind: str
    key: str
    reason: str = Field(max_length=4096)
    limits: dict[str, float]
    """The limits that it was tried under, by the names of the run file's fields."""


class Manifest(Strict):
    """The list a stage leaves, written last: while it is not there, the stage is not done."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    stage_version: int
    kind_versions: dict[str, int] = {}
    """Of the functions that answer its items, as the version of Bricks that committed it has them, those that are not
    the first."""
    item_versions: dict[str, dict[int, int]] = {}
    """By kind: how many items are of which version of its function, where some are of an earlier one. The run had begun
    with that, and `digest` is made of which items these are, so that no other run takes the artifact for its own."""
    digest: str
    cache_key: str = ""
    """What `digest` is made of; see `artifact_digest`."""
    spec: dict[str, Any]
    """The stage's section of the run file, every default written out."""
    inputs: dict[str, str]
    """Digests of the artifacts that were read, and fingerprints of what lies outside the store."""
    code_version: str
    tables: dict[str, Table]
    counts: dict[str, int] = {}
    """What a person wants to know first, such as how many clips were dropped for which reason."""
    objects: list[StoredObject] = Field(default_factory=list)
    """The artifact's own objects, all but this manifest and `records`. Files of items are in the table of items."""
    num_items: int = 0
    num_item_objects: int = 0
    item_bytes: int = 0
    """Items that the tables were made from, their files, and the bytes of these."""
    records: StoredObject | None = None
    """The items' records in one file, so that whoever needs them again reads one object."""
    read_as: dict[str, str] = {}
    """By stage: what stands for this artifact in that stage's cache key, where it reads less than all of it."""
    pending: list[Try] = []
    """Items without an answer, because a limit stopped them: tried again when the limit is another."""
    started_at: datetime
    finished_at: datetime
    host: dict[str, str] = {}
    """Facts of the machine that committed it; not part of the digest."""
