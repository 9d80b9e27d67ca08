"""A stage's work in progress: which tasks are its own, which are pending, and how the end is committed.

A task is done when the items that it is to leave are in the store; the stage is done when its manifest is written,
after everything. A kill at any moment leaves either nothing of an item or files that the next try writes again.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from bricks_core.errors import StoreDenied, TryLater
from bricks_core.progress import Progress
from bricks_core.spec.items import KINDS, ItemKey
from bricks_core.spec.manifest import Manifest, StoredObject, Table, Try, artifact_digest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import Stage
from bricks_core.spec.strict import Row, Strict
from bricks_core.storage.artifacts import (
    ITEMS,
    MANIFEST,
    RECORDS,
    Artifact,
    ItemRow,
    RecordRow,
    artifact_prefix,
    find_manifest,
)
from bricks_core.storage.claim import Holder
from bricks_core.storage.claims import Claims
from bricks_core.storage.code_version import code_version, host_facts
from bricks_core.storage.items import Items, digest_of
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import Store
from bricks_core.storage.tables import write_rows

log = logging.getLogger("bricks")


class Task(Protocol):
    """A piece of a stage's work that one shard does alone."""

    @property
    def id(self) -> str:
        """Hexadecimal, evenly spread, made of content: it says whose shard's it is."""

    @property
    def keys(self) -> tuple[ItemKey, ...]:
        """Items that it is to leave, as far as they are known. When all are there, it is done."""


@dataclass(frozen=True)
class Joined:
    """The end of a stage: what is committed."""

    tables: dict[str, Iterable[Row]]
    items: Iterable[ItemKey] = ()
    """The items that the tables were made from."""
    objects: Iterable[StoredObject] = ()
    """Files of the artifact itself."""
    counts: dict[str, int] = field(default_factory=dict)
    """What a person wants first."""
    read_as: dict[str, str] = field(default_factory=dict)
    depends_on: dict[str, Any] = field(default_factory=dict)
    """What the tables depend on beside the cache key: see `artifact_digest`."""
    pending: list[Try] = field(default_factory=list)


T = TypeVar("T", bound=Task)
R = TypeVar("R", bound=Row)


@dataclass
class Work:
    """The working place of one stage of one run, in one process."""

    store: Store
    stage: Stage
    spec: Strict
    digest: str
    """The cache key: the artifact's address too, unless it depends on more (`Joined.depends_on`, `pending`, items of
    earlier versions)."""
    input_digests: dict[str, str]
    inputs: dict[str, Artifact]
    """Finished artifacts, by stage."""
    progress: Progress
    shard: int = 0
    num_shards: int = 1
    run: BrickRun | None = None
    """The whole run, for what is in no key, such as its name or where numbers also go."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of what is read from outside the store, such as weights in folders, by setting."""
    items: Items = None  # type: ignore[assignment]
    limits: dict[str, float] = field(default_factory=dict)
    """The limits of now (see `Try`)."""
    claims: Claims = None  # type: ignore[assignment]
    tasks: Sequence[Any] | None = None
    """All the stage's tasks, where it keeps them once it knows of each what it is to leave."""

    def __post_init__(self) -> None:
        self.items = self.items or Items(self.store)
        self.claims = self.claims or Claims(self.store)
        self._cache_key = self.digest

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.stage.name, self.digest)

    def rows(self, stage: str, table: str, row: type[R]) -> Iterator[R]:
        """The rows of an input's table, streamed, in the order of their ids."""
        return self.inputs[stage].rows(table, row)

    def local(self, stage: str, key: str, *, sha256: str | None = None) -> AbstractContextManager[Path]:
        """A file of an input, to read while in the context. `sha256`: what it must have, where a row tells."""
        return self.inputs[stage].local(key, sha256=sha256)

    def is_mine(self, task: str) -> bool:
        """Whether a task belongs to this shard: by its id alone, so that its neighbours do not matter."""
        return int(task[:8], 16) % self.num_shards == self.shard

    def todo(self, tasks: Iterable[T], unit: str = "items") -> list[T]:
        """The pending tasks of this shard, each set of items once; progress is told from here on.

        All the shard's tasks are held in memory, so they should be small: ids and a few numbers, not rows with texts.
        """
        mine = [task for task in tasks if self.is_mine(task.id)]
        pending = self.pending(mine)
        self.progress.begin(len(mine), done=len(mine) - len(pending), unit=unit)
        return pending

    def share(
        self,
        pending: Sequence[T],
        do: Callable[[T], None],
        at_once: Callable[[Callable[[T], None], Iterable[T]], None],
        *,
        are_done: Callable[[list[T]], list[bool]] | None = None,
    ) -> None:
        """Do pending tasks, each claimed while it is done: what other runs, shards and clusters are at is left to them,
        and waited for when nothing else is left.

        `at_once(do, tasks)`: does several at once, such as `in_threads`. `are_done`: which tasks another has done
        since; by default those of which no item is pending.
        """

        def seen(tasks: list[T]) -> list[bool]:
            done = (are_done or self.are_done)(tasks)
            if any(done):
                self.progress.advance(sum(done))
            return done

        shared = self.claims.each(pending, lambda task: task.keys[:1], seen)

        def do_one(task: T) -> None:
            with shared.doing(task):
                do(task)

        with shared.coming() as coming:
            at_once(do_one, coming)

    def in_turn(self, batches: Sequence[tuple[str, Sequence[T]]]) -> Generator[tuple[int, list[T]], None, None]:
        """Batches of pending tasks, each under the name that is claimed while it is done: the number of a batch, and
        which of its tasks are pending still. What others are at comes last, and only if they leave it undone.

        Where claims may not be written, others are not waited for, which costs work at most.
        """
        left = dict(enumerate(batches))
        for waits in (False, True):
            for number, (name, tasks) in list(left.items()):
                with self._claimed(name, tasks, waits=waits) as is_free:
                    pending = self.pending(tasks)
                    if pending and not is_free:
                        continue
                    del left[number]
                    if len(pending) < len(tasks):
                        self.progress.advance(len(tasks) - len(pending))
                    if pending:
                        yield number, pending

    @contextmanager
    def _claimed(self, batch: str, tasks: Sequence[T], *, waits: bool) -> Iterator[bool]:
        """Whether nobody else is at a batch. `waits`: until that is so, or all its tasks are done."""

        def told(holder: Holder) -> None:
            log.info("%s: %d tasks are being done by %s. Waiting for them.", self.stage.name, len(tasks), holder)

        try:
            if waits:
                is_mine = self.claims.take_or_wait(batch, lambda: not self.pending(tasks), told)
            else:
                is_mine = self.claims.take(batch) is None
            is_free = is_mine
        except StoreDenied as error:
            log.debug("%s is not claimed: %s", batch, error)
            is_mine, is_free = False, True
        try:
            yield is_free
        finally:
            if is_mine:
                self.claims.release(batch)

    def pending(self, tasks: Iterable[T]) -> list[T]:
        """Tasks of which an item is missing, and not because of a limit that is still the same. Of tasks that are to
        leave the same items the first."""
        tasks = list(tasks)
        pending: dict[tuple[ItemKey, ...], T] = {}
        for task, is_done in zip(tasks, self.are_done(tasks), strict=True):
            if not is_done:
                pending.setdefault(task.keys, task)
        return list(pending.values())

    def are_done(self, tasks: Iterable[T]) -> list[bool]:
        """Of each task, whether none of its items is missing, unless a limit stopped it that is still the same."""
        tasks = list(tasks)
        there = self.items.load(key for task in tasks for key in task.keys)
        missing = {key for task in tasks for key in task.keys if key not in there}
        given_up = (
            {key for key, each in self.items.tries(missing).items() if self.is_settled(each)} if missing else set()
        )
        return [not any(key in missing and key not in given_up for key in task.keys) for task in tasks]

    def is_settled(self, each: Try) -> bool:
        """Whether a try need not be repeated: every limit that it was made under is still the same."""
        return all(self.limits.get(name) == limit for name, limit in each.limits.items())

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a file of the artifact itself under a key relative to it."""
        stored = self.store.put_file(self.prefix + key, path)
        return StoredObject(key=key, size_bytes=stored.size_bytes, sha256=stored.sha256)

    def tried(self, key: ItemKey, reason: str, limits: Mapping[str, float]) -> None:
        """Write down that a limit stopped the work on an item: it stays pending, and the run goes on."""
        self.items.tried(Try(kind=key.kind, key=key.key, reason=reason[:4096], limits=dict(limits)))

    def made_from(self, items: Iterable[ItemKey]) -> None:
        """Say which items the tables will be made from, for a stage that puts files of its own before it is committed:
        some of an earlier version move the artifact."""
        self.digest = artifact_digest(self._cache_key, self._of_earlier_versions(items))

    def _of_earlier_versions(self, items: Iterable[ItemKey]) -> dict[str, str]:
        """What the address depends on where not all items are of the versions that the cache key tells."""
        earlier = ["/".join(found.key) for key in set(items) if (found := self.items.earlier(key)) is not None]
        return {"earlier_items": digest_of(earlier)} if earlier else {}

    def _item_versions(self, items: Sequence[ItemKey]) -> dict[str, dict[int, int]]:
        counts: dict[str, Counter[int]] = defaultdict(Counter)
        for key in items:
            earlier = self.items.earlier(key)
            counts[key.kind][KINDS[key.kind].version if earlier is None else earlier.version] += 1
        return {
            kind: dict(sorted(each.items()))
            for kind, each in sorted(counts.items())
            if {*each} != {KINDS[kind].version}
        }

    def commit(self, joined: Joined) -> Manifest:
        """Write the tables and then the manifest: the stage is done. Whoever was first, theirs is returned."""
        asked = list(dict.fromkeys(joined.items))
        depends_on = joined.depends_on | self._of_earlier_versions(asked)
        if joined.pending:
            depends_on["pending"] = [each.model_dump(exclude={"reason"}) for each in joined.pending]
        key, digest = self._cache_key, artifact_digest(self._cache_key, depends_on)
        self.digest = digest  # where files are put from here on
        if (theirs := find_manifest(self.store, self.stage.name, digest)) is not None:
            return theirs
        stored = list(joined.objects)
        described = {}
        used = list(map(self.items.real, asked))
        files = ItemFiles()
        with scratch() as folder:
            for name, row in self.stage.tables.items():
                file = folder / f"{name}.parquet"
                num_rows = write_rows(file, row, joined.tables[name])
                stored.append(self.put_file(file.name, file))
                described[name] = Table(key=file.name, row=row.__name__, num_rows=num_rows)
            records = None
            if used:
                files = write_items(folder, self.items, used)
                stored.append(self.put_file(ITEMS, folder / ITEMS))
                records = self.put_file(RECORDS, folder / RECORDS)
        manifest = Manifest(
            stage=self.stage.name,
            stage_version=self.stage.version,
            kind_versions=self.stage.kind_versions,
            item_versions=self._item_versions(asked),
            digest=digest,
            cache_key=key,
            spec=self.spec.model_dump(mode="json"),
            inputs=self.input_digests,
            code_version=code_version(),
            tables=described,
            counts=joined.counts,
            objects=sorted(stored, key=lambda each: each.key),
            num_items=len(used),
            num_item_objects=files.num,
            item_bytes=files.size_bytes,
            records=records,
            read_as=joined.read_as,
            pending=joined.pending,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            host=host_facts(),
        )
        data = (manifest.model_dump_json(indent=1) + "\n").encode()
        if not self.store.put(self.prefix + MANIFEST, data, if_absent=True):
            theirs = find_manifest(self.store, self.stage.name, digest)
            if theirs is None:
                raise TryLater(f"{self.prefix}{MANIFEST} was taken away while it was committed; run again.")
            return theirs
        return manifest


@dataclass
class ItemFiles:
    """Files of items, each counted once."""

    num: int = 0
    size_bytes: int = 0


def write_items(folder: Path, items: Items, keys: Iterable[ItemKey]) -> ItemFiles:
    """Write the two files of an artifact that tell of its items: ITEMS and RECORDS. Their records are at hand."""
    used, files = sorted(keys), ItemFiles()
    write_rows(folder / ITEMS, ItemRow, _item_rows(items, used, files))
    texts = (RecordRow(id="/".join(each), record=text) for each, text in items.texts(used))
    write_rows(folder / RECORDS, RecordRow, texts)
    return files


def _item_rows(items: Items, keys: Iterable[ItemKey], files: ItemFiles) -> Iterator[ItemRow]:
    counted = set()
    for key, text in items.texts(keys):
        objects = _Files.model_validate_json(text).objects
        for number, each in enumerate(objects):
            if each.key not in counted:
                counted.add(each.key)
                files.num += 1
                files.size_bytes += each.size_bytes
            name = "/".join(key) + (f"/{number}" if number else "")
            yield ItemRow(
                id=name, kind=key.kind, key=key.key, object=each.key, size_bytes=each.size_bytes, sha256=each.sha256
            )
        if not objects:
            yield ItemRow(id="/".join(key), kind=key.kind, key=key.key)


class _Files(BaseModel):
    """What is wanted of a record here."""

    objects: list[StoredObject] = []
