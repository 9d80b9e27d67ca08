"""A run goes over to another store, to go on there or as a backup: what is there already is not sent again.

What says that something is whole goes last: a state's record after its files, an artifact's manifest after all that it
names, and what the run points to after everything. So a kill at any moment leaves a store in which nothing is broken,
and the next call goes on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from bricks_core.errors import (
    AlteredObject,
    CorruptManifest,
    DataError,
    NoSuchObject,
    TryLater,
    UsageError,
    nearest,
)
from bricks_core.pipeline.ledger import Ledger
from bricks_core.pipeline.points import Points, point, points_place, read_points, run_names
from bricks_core.progress import Progress
from bricks_core.spec.items import KINDS, Item, ItemKey
from bricks_core.spec.manifest import Manifest, StoredObject
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import FEW_FILES, MANIFEST, Artifact, find_manifest, problems
from bricks_core.storage.claims import Claims
from bricks_core.storage.in_flight import in_flight
from bricks_core.storage.store import Entry, Store
from bricks_core.storage.tables import read_columns
from bricks_core.storage.takedowns import Takedowns, put_mark
from bricks_core.storage.trainings import COMMIT, ROOT, Record, Reference, begun

AT_ONCE = 8
"""Objects on their way: of a store in S3 each may take a pack's room in the scratch folder."""


@dataclass
class Copied:
    """What came of it, or would."""

    run: str
    num_artifacts: int = 0
    num_states: int = 0
    """Of trainings."""
    num_items: int = 0
    """Items whose records are there, too."""
    num_sent: int = 0
    """Objects."""
    sent_bytes: int = 0
    num_there: int = 0
    """Objects that were there already, with the same content."""
    theirs: list[str] = field(default_factory=list)
    """Artifacts and states that the other store has made itself: they stay as they are."""
    left: list[str] = field(default_factory=list)
    """What could not be copied, and is not needed by an artifact: each with why."""
    is_behind: bool = False
    """The run has gone on in the other store: what it points to there stays."""
    unfinished: list[str] = field(default_factory=list)
    """Stages that the run has settings for, and no artifact, or a stale one."""
    holder: str = ""
    """Who is at the run just now, in the store that is copied from."""
    num_marks: int = 0
    """Of what was taken down, and is refused there as well from then on."""
    to_take_down: list[str] = field(default_factory=list)
    """sha256 of what was taken down here and is in the other store still."""


def copy_run(source: Store, target: Store, run: str, *, with_items: bool = False, dry_run: bool = False) -> Copied:
    """Copy a run: the artifacts that it points to and those that they were made from, with all files that these name,
    the states of its training, and what lies in `runs/<run>/`.

    `with_items`: also every item of the store that was made from the run's films or trainings, with its record.
    `dry_run` only says what would be sent. Marks of what was taken down go first, all of them.

    Raises:
        DataError: there is no such run; a film of it was taken down in the other store; or (AlteredObject) what an
            artifact names is missing or altered.
        TryLater: somebody is at the run in the other store.
        UsageError: both stores are the same.
    """
    _check_is_there(source, run)
    with Claims(target, f"bricks store copy {run}") as claims:
        batch = f"run/{run}"
        if not dry_run and (other := claims.take(batch)) is not None:
            raise TryLater(f"Run {run} is under way in {target.uri}: {other}. Copy it when that is done.")
        holder = Claims(source).holder(batch)
        if holder is not None and holder.owner == claims.owner:
            raise UsageError(f"{source.uri} and {target.uri} are the same store: give another one with --to.")
        asked = _Asked(source, run, with_items=with_items)
        copied = Copied(run, holder=str(holder or ""), unfinished=asked.unfinished())
        _copy_marks(asked, target, copied, dry_run=dry_run)
        with nullcontext() if dry_run else Progress("copy") as progress:
            _Copying(asked, target, copied, progress).all()
    return copied


@dataclass
class _Part:
    """Files, and what says that they are all there."""

    last: str
    """Its key."""
    data: bytes
    files: list[StoredObject]
    """Keys from the store's root."""
    manifest: Manifest | None = None
    """None: it is a state of a training."""
    is_needed: bool = True
    """By an artifact: where a file is missing, nothing goes on."""

    @property
    def place(self) -> str:
        return self.last.rpartition("/")[0] + "/"

    def is_sound(self, store: Store) -> bool:
        """Whether another store has one of its own, and whole."""
        if self.manifest is None:
            record = _record(store, self.place)
            return record is not None and all(
                entry is not None
                and entry.size_bytes == file.size_bytes
                and store.known_sha256(entry) in (None, file.sha256)
                for file, (_, entry) in zip(record.files, store.heads(file.key for file in record.files), strict=True)
            )
        try:
            theirs = find_manifest(store, self.manifest.stage, self.manifest.digest)
        except CorruptManifest:
            return False
        return theirs is not None and not problems(store, theirs, items=True)

    def joined(self, theirs: bytes) -> bytes | None:
        """What is to be there in the end; None: theirs is another. Of a state that has lost its optimizer here, or was
        wanted by nobody there, nothing is lost."""
        if theirs == self.data:
            return theirs
        with suppress(ValidationError):
            if self.manifest is None:
                mine, other = Record.model_validate_json(self.data), Record.model_validate_json(theirs)
                files = {file.key: file for file in other.files} | {file.key: file for file in mine.files}
                if all(file == files[file.key] for file in other.files):
                    kept = {
                        "files": [*other.files, *(each for each in mine.files if each not in other.files)],
                        "is_wanted": mine.is_wanted or other.is_wanted,
                        "ends_phase": mine.ends_phase or other.ends_phase,
                    }
                    return other.model_copy(update=kept).model_dump_json(indent=1).encode()
        return None


class _Train(BaseModel):
    init_from: str = ""
    continue_from: str = ""


class _Sections(BaseModel):
    inputs_of: str = ""
    train: _Train | None = None


class _RunFile(BaseModel):
    """What is read of a run file of whatever version."""

    spec: _Sections = _Sections()


class _Asked:
    """What belongs to a run."""

    def __init__(self, store: Store, run: str, *, with_items: bool):
        self.store, self.run, self.with_items = store, run, with_items
        file = _run_file(store, run)
        self.names = [run, *filter(None, [file.inputs_of])]
        self.points = {name: read_points(store, name) for name in self.names}
        self.artifacts = self._reached()
        train = file.train or _Train()
        self.trained = list(self.names)
        """Runs whose trainings are needed."""
        if train.continue_from:
            self.trained.append(Reference.of(train.continue_from).run)
        self.begun = [each for name in self.trained for each in begun(store, name)[0 if with_items else -1 :]]
        named = {train.init_from, *(str(each.spec.get("init_from", "")) for each in self.begun)}
        self.weights = [each for place in sorted(named) for each in self._weights(place)]

    def unfinished(self) -> list[str]:
        points = self.points[self.run]
        stages = _json(self.store, f"runs/{self.run}/run.json").get("spec", {})
        wanted = [name for name in STAGES if stages.get(name) is not None]
        return [name for name in wanted if name not in points.stages or name in points.stale()]

    def parts(self) -> Iterator[_Part]:
        """States first, then the artifacts, each after those that it was made from."""
        yield from self.states()
        for artifact in self.artifacts:
            manifest = artifact.manifest
            own = [*manifest.objects, *filter(None, [manifest.records])]
            files = [each.model_copy(update={"key": artifact.full(each.key)}) for each in own]
            files += [
                StoredObject(key=row.object, size_bytes=row.size_bytes, sha256=row.sha256)
                for row in artifact.item_rows()
                if row.object
            ]
            named = {file.key for file in files}
            # Beside a report lies what its page reads, and no manifest names: how long everything took.
            files += [
                _now(self.store, each) for each in self.store.list(f"{artifact.prefix}report/") if each.key not in named
            ]
            data = (manifest.model_dump_json(indent=1) + "\n").encode()
            yield _Part(artifact.prefix + MANIFEST, data, files, manifest)

    def states(self) -> Iterator[_Part]:
        needed = {
            each.key.rpartition("/")[0] + "/"
            for artifact in self.artifacts
            for each in artifact.manifest.objects
            if each.key.startswith(ROOT)
        }
        folders = dict.fromkeys(sorted(needed))
        for training in self.begun:
            trajectory = training.trajectory()
            if trajectory is not None:
                folders |= dict.fromkeys(each.folder for each in trajectory.records(self.store).values())
            else:  # of another version of Bricks, which may know how to go on
                entries = (entry.key for place in training.places for entry in self.store.list(place))
                folders |= dict.fromkeys(key.removesuffix(COMMIT) for key in entries if key.endswith(f"/{COMMIT}"))
            folders |= dict.fromkeys(filter(None, [training.inputs.get("continue_from")]))
        for folder in folders:
            record = _record(self.store, folder)
            if record is not None:  # else, of what is needed, the manifest names the files itself
                data = record.model_dump_json(indent=1).encode()
                yield _Part(folder + COMMIT, data, record.files, is_needed=folder in needed)

    def items(self) -> Iterator[tuple[ItemKey, list[StoredObject]]]:
        """The items that were made from the run's films, or from what was made of these, by what their recipes say."""
        known, texts = self._films(), {""}
        known |= {_training_of(state.place) for state in self.states()}
        for artifact in self.artifacts:
            texts.update(row["text"] for row in _columns(artifact, "captions", ["text"]))
        for kind in KINDS:
            places = (entry.key for entry in self.store.list(f"items/{kind}/") if entry.key.endswith(".json"))
            for place, data in self.store.get_many(places):
                item = _opened(place, data)
                if item is None:
                    continue
                if kind == "text":
                    is_ours = item.made_of.get("text") in texts
                else:
                    made_of = item.answer if kind == "content" else item.made_of
                    is_ours = not known.isdisjoint(map(_training_of, _strings(made_of)))
                if is_ours:
                    known.add("/".join(item.item_key))
                    yield item.item_key, item.objects

    def _films(self) -> set[str]:
        """sha256 of all that was given, now and in the sets before, as far as these are there."""
        found: set[str] = set()
        digests = {
            points.stages["ingest"].digest
            for name in self.names
            for points in _all_points(self.store, name)
            if "ingest" in points.stages
        }
        for digest in digests:
            with suppress(CorruptManifest, AlteredObject):
                manifest = find_manifest(self.store, "ingest", digest)
                if manifest is not None:
                    rows = _columns(Artifact(self.store, manifest), "videos", ["sha256"])
                    found.update(row["sha256"] for row in rows if row["sha256"])
        return found

    def _reached(self) -> list[Artifact]:
        """In the order of the stages."""
        wanted = [
            (stage, digest)
            for points in self.points.values()
            for pointer in points.stages.values()
            for stage, digest in ({pointer.stage: pointer.digest} | pointer.inputs).items()
        ]
        found: dict[tuple[str, str], Artifact | None] = {}
        while wanted:
            place = wanted.pop()
            if place not in found and place[0] in STAGES:
                manifest = find_manifest(self.store, *place)
                found[place] = None if manifest is None else Artifact(self.store, manifest)
                wanted += manifest.inputs.items() if manifest is not None else []
        order = list(STAGES)
        there = [artifact for artifact in found.values() if artifact is not None]
        return sorted(there, key=lambda each: (order.index(each.manifest.stage), each.manifest.digest))

    def _weights(self, place: str) -> Iterator[StoredObject]:
        """What `train.init_from` names, where that is a key of the store."""
        if not place or place.startswith(("/", ".", "~")):
            return
        entries = [entry for entry in [self.store.head(place)] if entry is not None]
        for entry in entries or self.store.list(f"{place.rstrip('/')}/"):
            yield _now(self.store, entry)


class _Copying:
    """From one store into another."""

    def __init__(self, asked: _Asked, target: Store, copied: Copied, progress: Progress | None):
        """`progress`: None: nothing is sent."""
        self.asked, self.source, self.target = asked, asked.store, target
        self.copied, self.progress = copied, progress
        self.parts = list(asked.parts())
        self.sound: dict[str, bool] = {}
        """By what says so: whether what the other store has made itself is whole."""
        self.done: set[str] = set()
        """Files that are there now, with the content that they must have."""

    def all(self) -> None:
        items = list(self.asked.items()) if self.asked.with_items else []
        if self.progress is not None:
            files = {file.key for part in self.parts for file in part.files}
            files |= {file.key for _, objects in items for file in objects}
            total = len(files) + len(self.parts) + len(self.asked.weights) + len(items)
            self.progress.begin(total, unit="objects")
        for _ in self._files(self.asked.weights):
            pass
        for part in self.parts:
            self._part(part)
        self._items(items)
        self._tries()
        if self.progress is not None:
            for name in reversed(self.asked.names):
                self._run(name, self.asked.points[name])
            for name in self.asked.trained:
                if name not in self.asked.names:
                    self._run_file(f"runs/{name}/trainings.json")

    def _part(self, part: _Part) -> None:
        theirs = _get(self.target, part.last)
        wanted = part.data if theirs is None else part.joined(theirs)
        if wanted is None:
            wanted = part.data
            if self._stays(part) and not self._must_be_ours(part):
                self.copied.theirs.append(part.place)
                new = {file.key for file in part.files} - self.done
                self.done |= new
                self._advance(len(new) + 1)
                return
            if self.progress is not None:
                self.target.delete([part.last])
        wrong = list(self._files(part.files))
        if wrong and part.is_needed:
            raise AlteredObject(
                wrong[0],
                f"is missing or altered in {self.source.uri}, and is not copied: bricks run of {self.asked.run} mends "
                "it there; then call this again.",
            )
        if wrong:
            self.copied.left.append(f"{part.place}: {wrong[0]} is missing or altered")
            return
        if self.progress is not None and theirs != wanted:
            self.target.put(part.last, wanted)
        self._count(part.last, None if theirs == wanted else len(wanted))
        if part.manifest is None:
            self.copied.num_states += 1
        else:
            self.copied.num_artifacts += 1

    def _stays(self, part: _Part) -> bool:
        if part.last not in self.sound:
            self.sound[part.last] = part.is_sound(self.target)
        return self.sound[part.last]

    def _must_be_ours(self, state: _Part) -> bool:
        """Whether a training that goes over names a state with these very bytes."""
        return state.manifest is None and any(
            part.manifest is not None
            and any(file.key.startswith(state.place) for file in part.files)
            and (_get(self.target, part.last) in (None, part.data) or not self._stays(part))
            for part in self.parts
        )

    def _files(self, files: Iterable[StoredObject]) -> Iterator[str]:
        """Send what is not there; gives the keys of what is missing or altered in our own store."""
        wanted = {file.key: file for file in files if file.key not in self.done}
        entries = _entries(self.target, wanted)

        def send(file: StoredObject) -> int | None:
            """Bytes that were sent; None: it was there."""
            entry = entries.get(file.key)
            if entry is not None and entry.size_bytes == file.size_bytes:
                known = self.target.known_sha256(entry)
                if known is None and self.progress is not None:  # sent by another machine: looked at, not sent again
                    known = self.target.sha256(file.key)
                if known in (None, file.sha256):
                    return None
            return self._send(file) if self.progress is not None else file.size_bytes

        def sent_or_wrong(file: StoredObject) -> int | str | None:
            try:
                return send(file)
            except (AlteredObject, NoSuchObject):
                return file.key

        for file, answer in in_flight(sent_or_wrong, wanted.values(), min(AT_ONCE, self.target.max_at_once)):
            if isinstance(answer, str):
                yield answer
                continue
            self.done.add(file.key)
            self._count(file.key, answer)

    def _send(self, file: StoredObject) -> int:
        with self.source.local(file.key, sha256=file.sha256) as path:
            stored = self.target.put_file(file.key, path)
        # A folder remembers a hash for as long as a file's times are the same; these are the bytes that were sent.
        if stored.sha256 != file.sha256:
            self.target.delete([file.key])
            raise AlteredObject(file.key, f"was altered: its sha256 is not {file.sha256[:12]}….")
        return file.size_bytes

    def _items(self, items: list[tuple[ItemKey, list[StoredObject]]]) -> None:
        """Their files first, then their records. A record that is there stays: who was first counts."""
        there = _entries(self.target, [key.record for key, _ in items])
        new = [(key, objects) for key, objects in items if key.record not in there]
        for key, _ in items:
            if key.record in there:
                self._count(key.record, None)
        self.copied.num_items += len(items) - len(new)
        wrong = set(self._files(file for _, objects in new for file in objects))

        def put(item: tuple[ItemKey, list[StoredObject]]) -> int | str | None:
            key, objects = item
            if broken := wrong.intersection(file.key for file in objects):
                return f"{min(broken)} is missing or altered"
            now = _opened(key.record, data := _get(self.source, key.record))
            if data is None or now is None or now.objects != objects:
                return "it was taken away, or led elsewhere, meanwhile"
            if self.progress is not None and not self.target.put(key.record, data, if_absent=True):
                return None
            return len(data)

        for (key, _), answer in in_flight(put, new, min(AT_ONCE, self.target.max_at_once)):
            if isinstance(answer, str):
                self.copied.left.append(f"{key.record}: {answer}")
                continue
            self.copied.num_items += 1
            self._count(key.record, answer)

    def _tries(self) -> None:
        """What a limit stopped: not tried again there while the limit is the same."""
        for each in (each for artifact in self.asked.artifacts for each in artifact.manifest.pending):
            place = ItemKey(each.kind, each.key).attempt
            if self.progress is not None and self.target.head(place) is None:
                self.target.put(place, each.model_dump_json().encode(), if_absent=True)

    def _run(self, name: str, points: Points) -> None:
        """What lies in a run's own folder; what it points to last of all."""
        before = _all_points(self.target, name)
        ours = points.stages.items()
        if before and not ours <= before[-1].stages.items() and any(ours <= each.stages.items() for each in before):
            self.copied.is_behind |= name == self.asked.run
            return
        for entry in self.source.list(f"runs/{name}/"):
            _, _, file = entry.key.split("/", 2)
            if file.endswith(".json") and "/" not in file and file.removesuffix(".json") not in STAGES:
                self._run_file(entry.key)
        point(name, self.target, *points.stages.values())

    def _run_file(self, key: str) -> None:
        data, theirs = _get(self.source, key), _get(self.target, key)
        if data is None:
            return
        if theirs is not None and theirs != data:
            data = _merged(key, data, theirs)
        if theirs != data:
            self.target.put(key, data)

    def _count(self, key: str, sent_bytes: int | None) -> None:
        if sent_bytes is None:
            self.copied.num_there += 1
        else:
            self.copied.num_sent += 1
            self.copied.sent_bytes += sent_bytes
        self._advance(1)

    def _advance(self, num: int) -> None:
        if self.progress is not None:
            self.progress.advance(num)


def _copy_marks(asked: _Asked, target: Store, copied: Copied, *, dry_run: bool) -> None:
    """Let the other store refuse what is refused here.

    Raises:
        DataError: it refuses already what would go over.
    """
    ours, theirs = Takedowns.of(asked.store), Takedowns.of(target)
    for artifact in asked.artifacts:
        rows = _columns(artifact, "videos", ["sha256", "state", "name"]) if artifact.manifest.stage == "ingest" else ()
        for row in rows:
            mark = theirs.of_file(row["sha256"])
            if mark is not None and row["state"] in ("ok", "damaged"):
                raise DataError(
                    f"{row['name']} was taken down in {target.uri} ({mark.key}), and run {asked.run} has it: bricks "
                    f"takedown {mark.sha256[:12]} --delete --store {asked.store.uri} first, and run it again."
                )
    there = Ledger(target)
    for mark in ours.marks.values():
        before = theirs.marks.get(mark.sha256)
        if before is None or before.joined(mark) != before:
            copied.num_marks += 1
            if not dry_run:
                put_mark(target, mark)
    used = there.videos(sha256=ours.marks.keys()) if ours.marks else ()
    copied.to_take_down = sorted({row["sha256"] for row in used if row["state"] in ("ok", "damaged")})


def words_of(copied: Copied, target: str, *, with_items: bool, dry_run: bool) -> Iterator[str]:
    """What a person is told at the end."""
    what = [_plural(copied.num_artifacts, "artifact"), _plural(copied.num_states, "state") + " of trainings"]
    what += [_plural(copied.num_items, "item")] if with_items else []
    verb = "would be sent" if dry_run else "sent and verified"
    yield f"Run {copied.run}: {', '.join(what)}."
    yield (
        f"{_plural(copied.num_sent, 'object')} {verb} ({copied.sent_bytes / 1e6:,.1f} MB), "
        f"{copied.num_there:,} there already."
    )
    if copied.holder:
        yield f"The run is under way: {copied.holder}. What it had finished was copied; call this again for the rest."
    if copied.theirs:
        yield f"{target} has made {len(copied.theirs):,} of these itself, such as {copied.theirs[0]}: they stay."
    for each in copied.left[:10]:
        yield f"Left out: {each}."
    if len(copied.left) > 10:
        yield f"Left out: {len(copied.left) - 10:,} more."
    if copied.num_marks:
        yield f"Refused there as well from now on: {_plural(copied.num_marks, 'content')} that were taken down here."
    for each in copied.to_take_down:
        yield f"{target} still has what was taken down here: bricks takedown {each[:12]} --delete --store {target}."
    if copied.is_behind:
        yield f"The run has gone on in {target}: what it points to there stays."
    if copied.unfinished and not with_items:
        stages = ", ".join(copied.unfinished)
        yield f"Not finished: {stages}. What is done of it stays here, unless you add --with items."


def _all_points(store: Store, run: str) -> list[Points]:
    """The sets of a run that can be read, the oldest first."""
    found = []
    for _, data in store.get_many([entry.key for entry in store.list(points_place(run))]):
        with suppress(ValidationError):
            found += [Points.model_validate_json(data)] if data is not None else []
    return found


def _check_is_there(store: Store, run: str) -> None:
    """Raises DataError."""
    if read_points(store, run).stages:
        return
    names = run_names(store)
    if run in names:
        raise DataError(f"Run {run} has finished nothing in {store.uri} that could be copied: bricks run of its file.")
    raise DataError(f"{store.uri} has no run {run}{nearest(run, names)}.")


def _run_file(store: Store, run: str) -> _Sections:
    try:
        return _RunFile.model_validate(_json(store, f"runs/{run}/run.json")).spec
    except ValidationError:
        return _Sections()


def _json(store: Store, key: str) -> dict[str, Any]:
    """An object of JSON; empty where there is none."""
    data = _get(store, key)
    with suppress(ValueError):
        found = json.loads(data or b"{}")
        return found if isinstance(found, dict) else {}
    return {}


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NoSuchObject:
        return None


def _record(store: Store, folder: str) -> Record | None:
    with suppress(NoSuchObject, ValidationError):
        return Record.model_validate_json(store.get(folder + COMMIT))
    return None


def _now(store: Store, entry: Entry) -> StoredObject:
    """An object that nothing tells the content of, as it is."""
    return StoredObject(key=entry.key, size_bytes=entry.size_bytes, sha256=store.sha256(entry.key))


def _entries(store: Store, keys: Collection[str]) -> dict[str, Entry]:
    """Entries of those that there are: from a listing, unless there are only a few of a kind."""
    places: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        parts = key.split("/")
        places["/".join(parts[:2] if parts[0] == "items" else parts[:-1]) + "/"].add(key)
    found: dict[str, Entry] = {}
    for place, wanted in places.items():
        if len(wanted) <= FEW_FILES:
            found |= {key: entry for key, entry in store.heads(sorted(wanted)) if entry is not None}
        else:
            found |= {entry.key: entry for entry in store.list(place) if entry.key in wanted}
    return found


def _opened(place: str, data: bytes | None) -> Item | None:
    """A record; None: it cannot be read, so that it counts as none."""
    parts = place.removesuffix(".json").split("/")
    try:
        return Item.opened(data, ItemKey(parts[1], parts[-1])) if data is not None else None
    except ValueError:
        return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _training_of(name: str) -> str:
    """Of what lies in a state's folder, the folder of its training; else the name itself."""
    return "/".join(name.split("/")[:2]) if name.startswith(ROOT) else name


def _columns(artifact: Artifact, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    if table in artifact.manifest.tables:
        with artifact.local(artifact.manifest.tables[table].key) as file:
            yield from read_columns(file, columns)


def _merged(key: str, ours: bytes, theirs: bytes) -> bytes:
    """Two stores' words about a run: the sides of films that only the other knows stay, and trainings that only it has
    begun."""
    try:
        mine, other = json.loads(ours), json.loads(theirs)
        if key.endswith("/sides.json") and all(mine[name] == other[name] for name in mine if name != "sides"):
            mine["sides"] = dict(sorted((other["sides"] | mine["sides"]).items()))
        elif key.endswith("/trainings.json"):
            known = [each | {"at": ""} for each in mine["trainings"]]
            mine["trainings"] += [each for each in other["trainings"] if each | {"at": ""} not in known]
            mine["trainings"].sort(key=lambda each: str(each["at"]))
        else:
            return ours
    except (ValueError, KeyError, TypeError, AttributeError):
        return ours
    return json.dumps(mine, indent=1).encode()


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"
