"""What earlier versions of Bricks left in a store: read, so that it need not be done again.

Schema 1, in which the work of a stage lay in the artifact itself:

    artifacts/<stage>/<digest>/parts/<id>.json    rows by table, and objects: what one piece of the work left
    artifacts/<stage>/<digest>/manifest.json      when all was done, with the tables
    runs/<run>/<stage>.json                       the artifact that a run had last; wanted/<stage>.json: had begun

Trainings of schema 1, and of schema 2 before it had trainings/, whose states lay in the artifact:

    artifacts/train/<digest>/checkpoints/step-<n>/       as in trainings/<key>/step-<n>-<rates>/, with rows.json
    artifacts/train/<digest>/checkpoints/stopped-<n>/    the same, where a signal stopped it
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from bricks_core.errors import NoSuchObject
from bricks_core.spec.items import Recipe
from bricks_core.spec.manifest import Manifest, StoredObject
from bricks_core.spec.strict import Strict
from bricks_core.storage.artifacts import artifact_prefix
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns


@dataclass(frozen=True)
class Cut:
    """A clip or an image, as the item that it is today."""

    kind: Literal["video", "image"]
    item: str
    """`kind/key`; of a clip's middle image that of the clip."""
    source_sha256: str
    first_frame: int
    """Counted in the source; of an image its frame."""
    num_frames: int
    fps: float
    clip_id: str
    """Of an image the clip that it is a frame of, or belongs to; its own id when it stands for itself."""
    is_given: bool
    """Named by a table, and taken as it was."""
    file: StoredObject
    """Its key from the store's root."""


@dataclass(frozen=True)
class Derived:
    """An item whose answer is known from before."""

    recipe: Recipe
    answer: Mapping[str, Any]
    objects: tuple[StoredObject, ...] = ()
    by: str = ""
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """Something of which no item can be made."""

    what: str
    why: str


@dataclass
class Earlier:
    """An artifact of schema 1, finished or not."""

    store: Store
    stage: str
    digest: str
    spec: dict[str, Any]
    """The stage's section of the run file, every default written out."""
    inputs: dict[str, str]
    """Digests of the artifacts read, and fingerprints of what lies outside the store."""
    manifest: Manifest | None = None
    """None: the stage was not finished."""
    needs: dict[str, Earlier] = field(default_factory=dict)
    """Those of its inputs that are there."""
    may_decode: bool = True
    """Whether clips may be looked at where that alone tells what an answer is about."""
    cuts: dict[str, Cut] = field(default_factory=dict)
    """Of a clip artifact: its clips and images by id, once they are known."""

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.stage, self.digest)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of what was read from outside the store."""
        return {name: each for name, each in self.inputs.items() if name not in self.needs}

    def rows(self, table: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Some columns of a table; of a stage that was not finished what its parts hold of it.

        Raises:
            CorruptManifest, AlteredObject: they cannot be read.
        """
        names = list(names)
        if self.manifest is None:
            for part in self.parts:
                for row in part.get("rows", {}).get(table, ()):
                    yield {name: row[name] for name in names}
        elif table in self.manifest.tables:
            key = self.manifest.tables[table].key
            sha256 = next((each.sha256 for each in self.manifest.objects if each.key == key), None)
            with self.store.local(self.prefix + key, sha256=sha256) as file:
                yield from read_columns(file, names)

    def file(self, key: str) -> StoredObject | None:
        """A file of the artifact, with its key from the store's root; None when it is gone, or has another size."""
        stored = self._files.get(key)
        if stored is None or self._sizes.get(self.prefix + key) != stored.size_bytes:
            return None
        return stored.model_copy(update={"key": self.prefix + key})

    @cached_property
    def _files(self) -> dict[str, StoredObject]:
        if self.manifest is not None:
            return {each.key: each for each in self.manifest.objects}
        parts = (StoredObject.model_validate(each) for part in self.parts for each in part.get("objects", ()))
        return {each.key: each for each in parts}

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {entry.key: entry.size_bytes for entry in self.store.list(self.prefix)}

    @cached_property
    def parts(self) -> list[dict[str, Any]]:
        """What the pieces of the work left, as far as it can be read."""
        keys = [entry.key for entry in self.store.list(f"{self.prefix}parts/")]
        found = []
        for _, data in self.store.get_many(keys):
            try:
                part = json.loads(data or b"")
            except ValueError:
                continue
            if isinstance(part, dict):
                found.append(part)
        return found


# ------------------------------------------------------------------------------------------------------------ trainings


class EarlierRecord(Strict):
    """checkpoint.json of a state in a train artifact."""

    step: int
    phase: str
    planned: bool
    """By its interval; else a signal stopped the training there."""
    files: list[StoredObject]
    """Keys relative to the artifact."""


def began_before(store: Store, run: str, stage: str) -> str | None:
    """The digest of a stage's artifact that a run had, or had begun, under schema 1; None: neither."""
    for key in (f"runs/{run}/wanted/{stage}.json", f"runs/{run}/{stage}.json"):
        try:
            pointer = json.loads(store.get(key))
        except (NoSuchObject, ValueError):
            continue
        if isinstance(pointer, dict) and re.fullmatch("[0-9a-f]+", str(pointer.get("digest"))):
            return str(pointer["digest"])
    return None


def trained_before(store: Store, run: str, digests: Iterable[str]) -> str:
    """That an earlier version has trained for a run, and what can be made of it, in words; empty: it has not.

    `digests`: of train artifacts, finished or not, that may be meant.
    """
    for digest in dict.fromkeys([*digests, *filter(None, [began_before(store, run, "train")])]):
        last = max(_earlier_records(store, digest), key=lambda each: each[0].step, default=None)
        if last is not None and last[0].step:
            record, folder = last
            return (
                f"begins at step 0: an earlier version of Bricks has done {record.step:,} steps and kept them in "
                f"another form; train.init_from: {folder} takes their weights, without the optimizer"
            )
    return ""


def _earlier_records(store: Store, digest: str) -> Iterator[tuple[EarlierRecord, str]]:
    """The states in a train artifact whose weights are there, each with its folder."""
    prefix = artifact_prefix("train", digest)
    sizes = {entry.key: entry.size_bytes for entry in store.list(f"{prefix}checkpoints/")}
    for key in sizes:
        folder, _, name = key.rpartition("/")
        if name != "checkpoint.json":
            continue
        try:
            record = EarlierRecord.model_validate_json(store.get(key))
        except (NoSuchObject, ValidationError):
            continue
        there = {prefix + file.key for file in record.files if sizes.get(prefix + file.key) == file.size_bytes}
        if f"{folder}/weights.safetensors" in there:
            yield record, folder
