"""What nothing reaches any more: found, told, and, if that is asked for, deleted.

Reached is what runs point to (the newest set of each, and those of the last days), whatever these artifacts were made
from, what a living claim is about, and everything written within the last days. Of a reached artifact only the manifest
and the table of items are read.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from math import inf
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from bricks_core.errors import CorruptManifest, DataError, NoSuchObject, TryLater
from bricks_core.pipeline.compared import compared_states
from bricks_core.pipeline.points import Points
from bricks_core.spec.items import KINDS, Item, ItemKey
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import ITEMS, MANIFEST, RECORDS, artifact_prefix
from bricks_core.storage.claims import Claims, batch_of_claim
from bricks_core.storage.items import Bundle
from bricks_core.storage.store import Entry, Store
from bricks_core.storage.tables import read_columns
from bricks_core.storage.trainings import ROOT, begun

KEEP_DAYS = 14.0
DAY_S = 24 * 3600.0
MAX_READ = 4000
"""Records that are read one by one to say what they cost; of more, the sum is a lower bound."""
_UNDER_WAY_DAYS = 1.0
"""With fewer days kept than this, work under way could lose what it has just found."""
_WITH_FILES = ("clip", "file", "latent", "text", "sample")
"""Kinds whose files may lie elsewhere than beside their records."""
_IN_PACKS = ("latent", "text")


@dataclass
class Swept:
    """Things of one sort that go, or would."""

    num: int = 0
    size_bytes: int = 0
    cost: dict[str, float] = field(default_factory=dict)
    """What it took to make them: sums of seconds, calls, tokens."""
    is_lower_bound: bool = False
    """Not every record was read."""
    keys: list[str] = field(default_factory=list)
    """Of their objects, what tells of the others first."""
    names: list[str] = field(default_factory=list)
    """Of items: their keys. Of artifacts: where they lie."""

    def add(self, entries: Iterable[Entry], name: str) -> None:
        entries = list(entries)
        self.num += 1
        self.size_bytes += sum(entry.size_bytes for entry in entries)
        self.keys += [entry.key for entry in entries]
        self.names.append(name)

    def costs(self, cost: dict[str, float]) -> None:
        for name, amount in cost.items():
            self.cost[name] = self.cost.get(name, 0.0) + amount


@dataclass
class Garbage:
    """What of a store nothing reaches."""

    artifacts: dict[str, Swept] = field(default_factory=dict)
    """By stage."""
    items: dict[str, Swept] = field(default_factory=dict)
    """By kind; packs are a kind of their own here."""
    paid: dict[str, Swept] = field(default_factory=dict)
    """What cost money, and is kept unless that is asked for."""
    rest: dict[str, Swept] = field(default_factory=dict)
    """Tries, older points, states of trainings, tables from before artifacts were compacted, and claims that nobody
    holds any more."""
    num_artifacts: int = 0
    """Reached."""
    num_items: int = 0
    """Reached."""
    num_pieces: int = 0
    """That killed writers had left behind, and that were removed."""

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.all_swept())

    def all_swept(self) -> list[Swept]:
        return [*self.artifacts.values(), *self.items.values(), *self.rest.values()]


def collect(
    store: Store,
    *,
    delete: bool = False,
    paid: bool = False,
    keep_days: float = KEEP_DAYS,
    now: Callable[[], float] = time.time,
) -> Garbage:
    """Find, and with `delete` remove, what nothing reaches. Answers that cost money go only with `paid`.

    `now`: Unix seconds; for tests.

    Raises:
        TryLater: less than a day is to be kept, and work is under way.
        DataError: what a run points to, or a manifest that is reached, cannot be read, so that it is not known what is
            needed.
    """
    at_s = now()
    live, dead = claims_now(store, at_s)
    if delete and live and keep_days < _UNDER_WAY_DAYS:
        raise TryLater(
            f"Work is under way: {live[0][1]}. With --keep-days {keep_days:g}, gc would take from it what it "
            "has just found: run gc when it has ended, or keep a day at least."
        )
    marks = _Marks(store, at_s - keep_days * DAY_S if keep_days > 0 else float("inf"))
    marks.points()
    marks.claimed([batch for batch, _ in live])
    garbage = Garbage()
    artifacts = list(marks.artifacts_to_sweep(garbage, paid=paid))
    marks.follow()
    items = list(marks.items_to_sweep())
    if artifacts or any(kind == "pack" for kind, _, _ in items):
        marks.elsewhere()
    _sum_artifacts(garbage, marks, artifacts, paid=paid)
    _sum_items(garbage, marks, items, paid=paid)
    _sum_rest(store, garbage, marks, dead)
    _tell_costs(store, garbage)
    if delete:
        _check_again(store, garbage)
        _delete(store, garbage)
        garbage.num_pieces = store.sweep()
    return garbage


_SET = re.compile(r"runs/[^/]+/points/[0-9]{8}\.json")
_DIGEST = re.compile(r"([0-9A-Za-z][0-9A-Za-z._-]{0,127})?")


def _checked(inputs: dict[str, str]) -> dict[str, str]:
    """Digests become parts of keys of the store; fingerprints of what lies outside it do not."""
    for stage, digest in inputs.items():
        if stage in STAGES and not _DIGEST.fullmatch(digest):
            raise ValueError(f"{stage} is no digest")
    return inputs


_Name = Annotated[str, Field(max_length=1024)]


class _Tried(BaseModel):
    """An item that a limit stopped."""

    kind: _Name
    key: _Name


class _Records(BaseModel):
    """The file of an artifact's records."""

    key: str = Field(RECORDS, pattern=rf"^([0-9a-z-]+/)?{re.escape(RECORDS)}$", max_length=1024)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Object(BaseModel):
    key: _Name


class _Spec(BaseModel):
    """Who was asked."""

    provider: _Name = ""


class _Named(BaseModel):
    """The objects that a manifest names."""

    objects: list[_Object]
    records: _Object | None = None


class _Made(BaseModel):
    """What is read of a manifest, or of what a run pointed to before there were sets: of whatever version."""

    schema_version: int = Field(0, ge=0, lt=2**31)
    digest: str = Field("", pattern=rf"^{_DIGEST.pattern}$")
    inputs: Annotated[dict[str, str], AfterValidator(_checked)] = {}
    spec: _Spec = _Spec()
    pending: list[_Tried] = []
    records: _Records | None = None
    objects: list[_Object] = []
    started_at: datetime | None = None
    finished_at: datetime | None = None


Group = tuple[str, str, list[Entry]]
"""Kind or stage, key or digest, and the objects."""


class _Marks:
    """What is reached."""

    def __init__(self, store: Store, young_s: float):
        """`young_s`: what was written then or later is kept."""
        self.store, self._young_s = store, young_s
        self.wanted: list[tuple[str, str]] = []
        """Artifacts that are reached, and whose own inputs are not followed yet."""
        self.artifacts: set[tuple[str, str]] = set()
        self.items: dict[str, set[bytes]] = defaultdict(set)
        self.tries: set[ItemKey] = set()
        self.objects: set[str] = set()
        """Files of reached items that do not lie beside their records."""
        self.states: set[str] = set()
        """Folders of states of trainings, and of all states of one."""
        self.old_points: list[Entry] = []
        self.old_tables: list[Entry] = []
        """Of artifacts that were compacted: see `_tables_of`."""
        self._tables: dict[tuple[str, str], list[str]] = {}
        """Tables of items of all artifacts."""
        self._compacted: dict[tuple[str, str], list[Entry]] = {}
        """All objects of artifacts with several such tables."""
        self._indexed_s: dict[tuple[str, str], float] = {}
        """When the indices of packs were made."""
        self._batches: list[tuple[str, str]] = []
        self._young: list[ItemKey] = []

    def is_young(self, entries: Iterable[Entry]) -> bool:
        return any(entry.modified_s >= self._young_s for entry in entries)

    def points(self) -> None:
        """What runs point to.

        Raises:
            DataError: the newest set of a run cannot be read.
        """
        entries = [entry for entry in self.store.list("runs/") if entry.key.endswith(".json")]
        for run, group in groupby(entries, lambda entry: entry.key.split("/")[1]):
            inside = list(group)
            sets = [entry for entry in inside if _SET.fullmatch(entry.key)]
            newest: Points | None = None
            for entry in reversed(sets):
                if newest is not None and not self.is_young([entry]):
                    self.old_points.append(entry)
                    continue
                try:
                    points = Points.model_validate_json(self.store.get(entry.key))
                    for pointer in points.stages.values():
                        _checked({pointer.stage: pointer.digest} | pointer.inputs)
                except NoSuchObject:
                    continue
                except ValueError:
                    if newest is not None:
                        continue
                    raise DataError(
                        f"{entry.key} says what run {run} needs, and cannot be read: delete it, and run the run file "
                        "again, before gc."
                    ) from None
                newest = newest or points
                for pointer in points.stages.values():
                    self._want({pointer.stage: pointer.digest} | pointer.inputs)
                    self.states |= compared_states(pointer.inputs)
            self.begun(run)
            known = newest.stages if newest is not None else {}
            for stage in STAGES:
                # As runs pointed to what they had, and had begun, before there were sets: see bricks store upgrade.
                for place in (f"runs/{run}/{stage}.json", f"runs/{run}/wanted/{stage}.json"):
                    if stage not in known and any(entry.key == place for entry in inside):
                        old = _read(self.store, place, is_needed=True)
                        self._want({stage: old.digest} | old.inputs if old is not None else {})

    def begun(self, run: str) -> None:
        """The states of the training that a run has begun last, and what it goes on from; finished or not."""
        for each in begun(self.store, run)[-1:]:
            self.states.update(each.places)
            self.states.add(each.inputs.get("continue_from", ""))
            if (training := each.trajectory()) is not None:
                buckets = [bucket for phase in training.spec.phases for bucket in phase.buckets]
                measures = {training.measure(step, bucket).key for step in training.measured() for bucket in buckets}
                self.items["held_out"].update(bytes.fromhex(key.key) for key in measures)

    def states_to_sweep(self) -> Iterator[Entry]:
        """Of states that are not reached, and are old."""
        for folder, group in groupby(self.store.list(ROOT), lambda entry: entry.key.rpartition("/")[0] + "/"):
            entries = list(group)
            place = "/".join(folder.split("/")[:2]) + "/"
            if self.states.isdisjoint((folder, place)) and not self.is_young(entries):
                yield from entries

    def claimed(self, batches: Iterable[str]) -> None:
        """What living claims are about: artifacts, and items by the beginning of their keys."""
        for batch in batches:
            kind, _, name = batch.partition("/")
            self._want({kind: name})
            self._batches.append((kind, name))

    def artifacts_to_sweep(self, garbage: Garbage, *, paid: bool) -> Iterator[Group]:
        """Follows what is reached to all that it was made from; the artifacts that are left."""
        left: list[Group] = []
        for place, group in groupby(self.store.list("artifacts/"), lambda entry: tuple(entry.key.split("/")[1:3])):
            entries = list(group)
            if len(place) == 2:
                self._look_into((place[0], place[1]), entries)
            if len(place) == 2 and self.is_young(entries):
                self.wanted.append((place[0], place[1]))
            elif len(place) == 2:
                left.append((place[0], place[1], entries))
            garbage.num_artifacts += 1
        self.follow()
        yield from (each for each in left if each[:2] not in self.artifacts)

    def _look_into(self, place: tuple[str, str], entries: list[Entry]) -> None:
        self._tables[place] = [entry.key for entry in entries if entry.key.rpartition("/")[2] == ITEMS]
        if len(self._tables[place]) > 1:
            self._compacted[place] = entries
        if place[0] == "latents":
            manifest = artifact_prefix(*place) + MANIFEST
            self._indexed_s[place] = next((entry.modified_s for entry in entries if entry.key == manifest), 0.0)

    def follow(self) -> None:
        """All that the wanted artifacts were made from, and the items that are in them.

        Raises:
            DataError: a manifest or a table of items cannot be read.
        """
        while self.wanted:
            place = self.wanted.pop()
            if place in self.artifacts or place[0] not in STAGES:
                continue
            self.artifacts.add(place)
            manifest = _read(self.store, artifact_prefix(*place) + MANIFEST, is_needed=True)
            if manifest is not None:
                self.states.update(each.key.rpartition("/")[0] + "/" for each in manifest.objects)
                self._want(manifest.inputs)
                self.tries.update(ItemKey(each.kind, each.key) for each in manifest.pending)
            for table, is_needed in self._tables_of(place):
                self._items_of(table, is_needed)

    def _tables_of(self, place: tuple[str, str]) -> Iterator[tuple[str, bool]]:
        """The tables of items of an artifact, each with whether its manifest names it.

        Those from before it was compacted count, too, while whoever began before may still read them: until the
        manifest that took their place is old. Then they go.
        """
        tables, entries, key = (
            self._tables.get(place, []),
            self._compacted.get(place),
            artifact_prefix(*place) + MANIFEST,
        )
        manifest = next((entry for entry in entries or [] if entry.key == key), None)
        if entries is None or manifest is None:
            yield from ((table, True) for table in tables)
            return
        try:
            named = _Named.model_validate_json(self.store.get(key))
        except (NoSuchObject, ValidationError):
            yield from ((table, False) for table in tables)
            return
        objects = [*named.objects, *filter(None, [named.records])]
        now = {key} | {artifact_prefix(*place) + each.key for each in objects}
        is_young = self.is_young([manifest])
        yield from ((table, table in now) for table in tables if table in now or is_young)
        if not is_young:
            self.old_tables += [entry for entry in entries if entry.key not in now]

    def _items_of(self, key: str, is_needed: bool) -> None:
        try:
            with self.store.local(key) as file:
                for row in read_columns(file, ["kind", "key", "object"]):
                    kind, name, place = row["kind"], row["key"], row["object"]
                    self.items[kind].add(bytes.fromhex(name))
                    if place and not place.startswith(ItemKey(kind, name).place):
                        self.objects.add(place)
        except NoSuchObject:
            return
        except (
            CorruptManifest,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # the last two: columns of other types
            if not is_needed:
                return
            raise DataError(
                f"{key} says what items a run needs, and cannot be read ({error}): bricks run mends it, before gc."
            ) from None

    def items_to_sweep(self) -> Iterator[Group]:
        """Items that are not reached, and are old; those that are young have their files marked."""
        indexed_s = min(
            (self._indexed_s.get(each, 0.0) for each in self.artifacts if each[0] == "latents"), default=inf
        )
        for kind in [*KINDS, "pack"]:
            known = self.items[kind]
            prefixes = tuple(name for claimed, name in self._batches if claimed == kind)
            for name, group in groupby(self.store.list(f"items/{kind}/"), _stem):
                entries = list(group)
                reached = kind != "pack" and _bytes_of(name) in known
                if reached or self.is_young(entries) or name.startswith(prefixes or ("-",)):
                    # Of what was compacted, a record leads elsewhere than the tables that were made before it.
                    is_newer = kind in _IN_PACKS and any(entry.modified_s >= indexed_s for entry in entries)
                    if is_newer or (not reached and kind in _WITH_FILES):
                        self._young.append(ItemKey(kind, name))
                    continue
                yield kind, name, entries

    def elsewhere(self) -> None:
        """Marks the files of young items that no artifact holds yet, and of items that may have moved since: they may
        lie in packs or in older artifacts."""
        for key, data in self.store.get_many([key.record for key in self._young]):
            if data is None:
                continue
            try:
                item = Item.opened(data, ItemKey(*_kind_and_name(key)))
            except ValueError:
                continue
            self.objects.update(each.key for each in item.objects)

    def _want(self, inputs: dict[str, str]) -> None:
        self.wanted += [(stage, digest) for stage, digest in inputs.items() if stage in STAGES and digest]


def _sum_artifacts(garbage: Garbage, marks: _Marks, left: list[Group], *, paid: bool) -> None:
    garbage.num_artifacts -= len(left)
    for stage, digest, entries in left:
        prefix = artifact_prefix(stage, digest)
        mine = [entry for entry in entries if entry.key not in marks.objects]
        if not mine:
            continue
        mine.sort(key=lambda entry: entry.key != prefix + MANIFEST)
        manifest = _read(marks.store, prefix + MANIFEST)
        where = garbage.paid if _was_paid(stage, manifest, mine) and not paid else garbage.artifacts
        swept = where.setdefault(stage, Swept())
        swept.add(mine, prefix)
        swept.costs(_time_taken(stage, manifest))


def _was_paid(stage: str, manifest: _Made | None, entries: list[Entry]) -> bool:
    """Whether an artifact of schema 1, in which answers lay in the artifact itself, holds some that cost money."""
    if manifest is None:  # not finished, or damaged, so that nothing says who was asked
        return stage == "caption" and any(f"/{part}" in entry.key for entry in entries for part in ("parts/", MANIFEST))
    return manifest.schema_version == 1 and manifest.spec.provider == "openai"


def _sum_items(garbage: Garbage, marks: _Marks, left: list[Group], *, paid: bool) -> None:
    garbage.num_items = sum(len(each) for each in marks.items.values())
    for kind, name, entries in left:
        mine = [entry for entry in entries if entry.key not in marks.objects]
        if not mine:
            continue
        mine.sort(key=lambda entry: not entry.key.endswith(".json"))
        is_paid = kind in KINDS and KINDS[kind].paid
        where = garbage.paid if is_paid and not paid else garbage.items
        where.setdefault(kind, Swept()).add(mine, name)


def _sum_rest(store: Store, garbage: Garbage, marks: _Marks, dead: list[Entry]) -> None:
    tries = (entry for entry in store.list("tries/") if not marks.is_young([entry]))
    for what, entries in {
        "tries": [entry for entry in tries if ItemKey(*_kind_and_name(entry.key)) not in marks.tries],
        "points": marks.old_points,
        "states of trainings": list(marks.states_to_sweep()),
        "tables": [entry for entry in marks.old_tables if entry.key not in marks.objects],
        "claims": dead,
    }.items():
        for entry in entries:
            garbage.rest.setdefault(what, Swept()).add([entry], entry.key)


def _tell_costs(store: Store, garbage: Garbage) -> None:
    """Add up what the items cost, as far as their records are cheap to read: first those that lie in one file."""
    wanted = {
        ItemKey(kind, name): swept
        for where in (garbage.items, garbage.paid)
        for kind, swept in where.items()
        if kind in KINDS
        for name in swept.names
        if len(name) == 32
    }
    if not wanted:
        return
    for swept in garbage.artifacts.values():
        for prefix in swept.names:
            manifest = _read(store, prefix + MANIFEST)
            if manifest is not None and manifest.records is not None and wanted:
                for key, text in list(
                    Bundle(store, prefix + manifest.records.key, manifest.records.sha256).records(wanted)
                ):
                    if (to := wanted.pop(key, None)) is not None:
                        try:
                            to.costs(Item.model_validate_json(text).cost)
                        except ValueError:
                            to.is_lower_bound = True
    # What costs money first, then a few of everything.
    order = sorted(wanted, key=lambda key: not KINDS[key.kind].paid)
    by_record = {key.record: key for key in order[:MAX_READ]}
    for place, data in store.get_many(by_record):
        key = by_record[place]
        try:
            if data is not None:
                wanted[key].costs(Item.opened(data, key).cost)
        except ValueError:
            wanted[key].is_lower_bound = True
    for key in order[MAX_READ:]:
        wanted[key].is_lower_bound = True


def _check_again(store: Store, garbage: Garbage) -> None:
    """Looking takes a while in a large store.

    Raises:
        TryLater: meanwhile a run has come back to something that was to go.
        DataError: the newest set of a run cannot be read any more.
    """
    now = _Marks(store, float("inf"))
    now.points()
    gone = {prefix for swept in garbage.artifacts.values() for prefix in swept.names}
    if back := sorted(gone & {artifact_prefix(*place) for place in now.wanted}):
        raise TryLater(f"A run came back to {back[0]} while gc looked around: nothing was deleted; run gc again.")


def _delete(store: Store, garbage: Garbage) -> None:
    # What tells of other things goes first: half a deletion must look like work that is not done yet, and not like
    # something broken. Hence manifests, then records, then files.
    for swept in garbage.rest.values():
        store.delete(swept.keys)
    manifests = {f"{prefix}{MANIFEST}" for swept in garbage.artifacts.values() for prefix in swept.names}
    store.delete(sorted(manifests))
    records = [key for swept in garbage.items.values() for key in swept.keys if key.endswith(".json")]
    store.delete(records)
    gone = manifests.union(records)
    for swept in [*garbage.artifacts.values(), *garbage.items.values()]:
        store.delete([key for key in swept.keys if key not in gone])


def claims_now(store: Store, at_s: float) -> tuple[list[tuple[str, str]], list[Entry]]:
    """Batches that somebody is at, each with who; and the objects of claims that nobody holds any more."""
    watcher = Claims(store)
    live: list[tuple[str, str]] = []
    dead: list[Entry] = []
    by_batch: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.list("claims/"):
        if (batch := batch_of_claim(entry.key)) is not None:
            by_batch[batch].append(entry)
    for batch, mine in by_batch.items():
        holder = watcher.holder(batch)
        # An owner renews its claim three times a minute. Whoever has not for a day is gone.
        if holder is None or all(entry.modified_s < at_s - DAY_S for entry in mine):
            dead += mine
        else:
            live.append((batch, str(holder)))
    return live, dead


def _read(store: Store, key: str, *, is_needed: bool = False) -> _Made | None:
    """A manifest, or what a run pointed to; None when it is gone, and, unless `is_needed`, when it cannot be read.

    Raises:
        DataError: it is needed, and cannot be read.
    """
    try:
        return _Made.model_validate_json(store.get(key))
    except NoSuchObject:
        return None
    except ValidationError as error:
        if not is_needed:
            return None
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"]) or "its content"
        raise DataError(
            f"{key} says what a run needs, and cannot be read ({where}: {first['msg']}): delete it, and run the "
            "run file again, before gc."
        ) from None


def _time_taken(stage: str, manifest: _Made | None) -> dict[str, float]:
    """Of a stage whose work is in the artifact itself: how long it took from its start to its end."""
    if manifest is None or stage not in STAGES or STAGES[stage].sharded:
        return {}
    begun, ended = manifest.started_at, manifest.finished_at
    if begun is None or ended is None or (begun.tzinfo is None) != (ended.tzinfo is None):
        return {}
    return {"seconds": (ended - begun).total_seconds()}


def _stem(entry: Entry) -> str:
    return entry.key.rpartition("/")[2].partition(".")[0]


def _kind_and_name(key: str) -> tuple[str, str]:
    """Of items/<kind>/<xx>/<key>.json, and likewise of tries."""
    parts = key.split("/")
    return parts[1], parts[-1].partition(".")[0]


def _bytes_of(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except ValueError:
        return b""
