"""What a finished stage leaves, and the address it leaves it at."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from pydantic import Field

from bricks_core.spec.stages import Stage
from bricks_core.spec.strict import Strict

SCHEMA_VERSION = 1


def canonical_json(value: Any) -> bytes:
    """The one way to write a value down, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_id(*parts: str | int | float) -> str:
    """16 hexadecimal digits that name a thing by what it is made of. 64 bits: no clash among a billion things."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]


def artifact_digest(stage: Stage, spec: Strict, inputs: dict[str, str]) -> str:
    """The address of the answer to a question: this stage, this spec, these inputs. 32 hexadecimal digits.

    `inputs` are the digests of the artifacts read, and fingerprints of what lies outside the store.
    """
    question = {
        "schema": SCHEMA_VERSION,
        "stage": stage.name,
        "version": stage.version,
        "spec": spec.model_dump(mode="json"),
        "inputs": inputs,
    }
    return hashlib.sha256(canonical_json(question)).hexdigest()[:32]


class StoredObject(Strict):
    """An object of an artifact."""

    key: str
    """Relative to the artifact's folder."""
    size_bytes: int
    sha256: str


class Table(Strict):
    """A Parquet table of an artifact."""

    key: str
    row: str
    """The class of its rows."""
    num_rows: int


class Part(Strict):
    """What one item of a stage's work left: rows by table, and the objects behind them."""

    item: str
    rows: dict[str, list[dict[str, Any]]] = {}
    objects: list[StoredObject] = []


class Manifest(Strict):
    """The list a stage leaves, written last: while it is not there, the stage is not done."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    stage_version: int
    digest: str
    spec: dict[str, Any]
    """The stage's section of the run file, every default written out."""
    inputs: dict[str, str]
    code_version: str
    tables: dict[str, Table]
    counts: dict[str, int] = {}
    """What a person wants to know first, such as how many clips were dropped for which reason."""
    objects: list[StoredObject] = Field(default_factory=list)
    """Every object of the artifact except this manifest and the parts."""
    started_at: datetime
    finished_at: datetime
    host: dict[str, str] = {}
    """Facts of the machine that committed it; not part of the digest."""
