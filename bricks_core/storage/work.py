"""A stage's work in progress: which items are its own, which are done, and how the end is committed.

An item is done when its part is written, after its objects; the stage is done when its manifest is written, after
everything. A kill at any moment leaves either nothing of an item or objects that the next try writes again.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Protocol, TypeVar

from bricks_core.errors import TryLater
from bricks_core.progress import Progress
from bricks_core.spec.manifest import Manifest, Part, StoredObject, Table
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import Stage
from bricks_core.spec.strict import Row, Strict
from bricks_core.storage.artifacts import MANIFEST, Artifact, artifact_prefix, find_manifest, part_key, read_part
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import Store
from bricks_core.storage.tables import write_rows


class Item(Protocol):
    """Anything with an id that is made of its content."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Joined:
    """The end of a stage: its tables, objects that belong to no part, and the counts a person wants first."""

    tables: dict[str, Iterable[Row]]
    objects: Iterable[StoredObject] = ()
    counts: dict[str, int] = field(default_factory=dict)


I = TypeVar("I", bound=Item)  # noqa: E741 (an item)
R = TypeVar("R", bound=Row)


@dataclass
class Work:
    """The working place of one stage of one run, in one process."""

    store: Store
    stage: Stage
    spec: Strict
    digest: str
    input_digests: dict[str, str]
    inputs: dict[str, Artifact]
    """Finished artifacts, by stage."""
    progress: Progress
    shard: int = 0
    num_shards: int = 1
    run: BrickRun | None = None
    """The whole run, for what is no part of the stage's own question, such as its name or where numbers also go."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.stage.name, self.digest)

    def rows(self, stage: str, table: str, row: type[R]) -> Iterator[R]:
        """The rows of an input's table, streamed, in the order of their ids."""
        return self.inputs[stage].rows(table, row)

    def local(self, stage: str, key: str) -> AbstractContextManager[Path]:
        """A file of an input, to read while in the context."""
        return self.inputs[stage].local(key)

    def is_mine(self, item: str) -> bool:
        """Whether an item belongs to this shard: by its id alone, so that its neighbours do not matter."""
        return int(item[:8], 16) % self.num_shards == self.shard

    def todo(self, items: Iterable[I], unit: str = "items") -> Iterator[I]:
        """The items of this shard that are not done yet, with progress told. Ids begin with 8 hexadecimal digits.

        All the shard's items are held in memory, so they should be small: ids and a few numbers, not rows with texts.
        """
        mine = [item for item in items if self.is_mine(item.id)]
        done = self._done_items()
        open_items = [item for item in mine if item.id not in done]
        self.progress.begin(len(mine), done=len(mine) - len(open_items), unit=unit)
        yield from open_items

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a file of the artifact under a key relative to it."""
        stored = self.store.put_file(self.prefix + key, path)
        return StoredObject(key=key, size_bytes=stored.size_bytes, sha256=stored.sha256)

    def done(
        self, item: str, rows: dict[str, list[Row]], objects: Iterable[StoredObject] = (), *, note: str = ""
    ) -> None:
        """Record an item as done: its rows by table, and the objects put for it. Safe to call from threads."""
        unknown = set(rows) - set(self.stage.tables)
        if unknown:
            raise KeyError(f"{self.stage.name} has no table {unknown}")
        part = Part(
            item=item,
            rows={table: [row.model_dump(mode="json") for row in each] for table, each in rows.items()},
            objects=list(objects),
        )
        self.store.put(part_key(self.stage.name, self.digest, item), part.model_dump_json().encode())
        self.progress.advance(note=note)

    def missing(self, items: Iterable[str]) -> list[str]:
        """Those of all the stage's items, over all shards, that are not done."""
        done = self._done_items()
        return [item for item in items if item not in done]

    def parts(self) -> Iterator[Part]:
        """Every finished item's record, in the order of their ids."""
        for entry in self.store.list(self.prefix + "parts/"):
            yield read_part(self.store, entry.key)

    def part_rows(self, table: str, row: type[R]) -> Iterator[R]:
        """The rows that all parts hold for a table, part by part."""
        for part in self.parts():
            for each in part.rows.get(table, ()):
                yield row.model_validate(each)

    def commit(
        self,
        tables: dict[str, Iterable[Row]],
        *,
        objects: Iterable[StoredObject] = (),
        counts: dict[str, int] | None = None,
    ) -> Manifest:
        """Write the tables and then the manifest: the stage is done. If another process was first, theirs is returned.

        `objects` are those that belong to no part.
        """
        stored = [each for part in self.parts() for each in part.objects]
        stored += objects
        described = {}
        with scratch() as folder:
            for name, row in self.stage.tables.items():
                file = folder / f"{name}.parquet"
                num_rows = write_rows(file, row, tables[name])
                stored.append(self.put_file(file.name, file))
                described[name] = Table(key=file.name, row=row.__name__, num_rows=num_rows)
        manifest = Manifest(
            stage=self.stage.name,
            stage_version=self.stage.version,
            digest=self.digest,
            spec=self.spec.model_dump(mode="json"),
            inputs=self.input_digests,
            code_version=code_version(),
            tables=described,
            counts=counts or {},
            objects=sorted(stored, key=lambda each: each.key),
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            host=host_facts(),
        )
        data = (manifest.model_dump_json(indent=1) + "\n").encode()
        if not self.store.put(self.prefix + MANIFEST, data, if_absent=True):
            theirs = find_manifest(self.store, self.stage.name, self.digest)
            if theirs is None:
                raise TryLater(f"{self.prefix}{MANIFEST} was taken away while it was committed; run again.")
            return theirs
        return manifest

    def _done_items(self) -> set[str]:
        prefix = self.prefix + "parts/"
        return {entry.key.removeprefix(prefix).removesuffix(".json") for entry in self.store.list(prefix)}


def code_version() -> str:
    """The package's version, and the commit where it is known."""
    return metadata.version("bricks") + _commit()


@cache
def _commit() -> str:
    # An image carries its commit in the environment; a checkout asks git, and is "+dirty" when it is more than that.
    if commit := os.environ.get("BRICKS_COMMIT"):
        return f"+{commit[:12]}"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"+{described.stdout.strip()}"


def host_facts() -> dict[str, str]:
    """What machine this is: kept beside an artifact, never part of its address."""
    facts = {
        "hostname": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "num_cpus": str(os.cpu_count()),
    }
    if image := os.environ.get("BRICKS_IMAGE"):  # a pod knows what it was made from
        facts["image"] = image
    return facts
