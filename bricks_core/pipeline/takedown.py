"""A film is taken down: all that was made of it goes, and a mark refuses its content from then on.

In this order, so that a kill at any moment leaves all other films readable, and the same command goes on:

    the mark                  refuses it, and names what is to go
    reports                   that may show it
    packs                     what else is in them is copied, as it is, into new ones, and its records lead there
    tables                    written again without its rows, beside the old ones; then the manifest names the new ones
    files, then records       last of all, since they tell what there is to delete

Artifacts of data stay where they are, so that trainings made from them can still be used; only that of ingest, in which
the film's row stays and says that it is refused, moves. So a run's next stages are made anew, without the film.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bricks_core.errors import DataError, TryLater
from bricks_core.pipeline.affected import ROW_IDS, Affected
from bricks_core.pipeline.compact import BATCH, Piece, Place, described, into_one
from bricks_core.pipeline.compared import compared_states
from bricks_core.pipeline.garbage import claims_now
from bricks_core.pipeline.points import forget, point, read_points, run_names
from bricks_core.spec.ingest import VideoState
from bricks_core.spec.items import Item, ItemKey
from bricks_core.spec.manifest import Manifest, StoredObject, artifact_digest
from bricks_core.storage.artifacts import ITEMS, MANIFEST, Artifact, artifact_prefix, find_manifest, table_of_items
from bricks_core.storage.claims import Claims
from bricks_core.storage.items import Items
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import Store
from bricks_core.storage.tables import change_rows, read_where
from bricks_core.storage.takedowns import put_mark
from bricks_core.storage.trainings import COMMIT, forget_places

if TYPE_CHECKING:
    from bricks_core.pipeline.ledger import Training

Row = dict[str, Any]
VIDEO_STATES = get_args(VideoState)
_REWRITTEN = ("latents", "caption", "score", "clip", "ingest")
"""What is told by others last: the next call finds by it what is left."""


def take_down(
    store: Store,
    affected: Affected,
    *,
    why: str = "",
    withdraw: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Delete what was found of a film, and leave its mark. Can be called again, and killed, at any time.

    `withdraw`: also the trainings that learnt from it, with their samples. `tell` hears how far it is.

    Raises:
        TryLater: a run of it, or a training on packs that it is in, is under way.
        DataError: its work is in artifacts of the first version of Bricks; or (AlteredObject) a pack is damaged.
        StoreDenied: the store cannot be written.
    """
    if affected.earlier:
        raise DataError(
            f"Run {affected.earlier[0]} points to work of an earlier version of Bricks, whose files cannot be told "
            "apart: bricks store upgrade, bricks run of its file, and then this again."
        )
    mark = affected.mark.model_copy(update={"why": why}) if why else affected.mark
    with Claims(store, f"bricks takedown {mark.sha256[:12]}") as claims:
        if (holder := claims.take(BATCH)) is not None:
            raise TryLater(
                f"Packs of {store.uri} are being written again by {holder}: call it again when that is done."
            )
        _check_free(store, affected, set(claims.held))
        put_mark(store, mark)
        tell(f"{mark.key} refuses it from now on")
        _Taking(store, affected, tell).all(withdraw=withdraw)


def _check_free(store: Store, affected: Affected, own: set[str]) -> None:
    """Raises TryLater: somebody is at what is about to change."""
    runs = {f"run/{run}" for run in affected.runs}
    live, _ = claims_now(store, time.time())
    for batch, holder in live:
        if batch in own:
            continue
        if batch in runs or (batch.startswith("train/") and affected.packs):
            raise TryLater(f"What is to be taken down is in use: {holder}. Stop that, or wait, and call this again.")


class _Taking:
    """The steps, in their order."""

    def __init__(self, store: Store, affected: Affected, tell: Callable[[str], None]):
        self.store, self.affected, self.tell = store, affected, tell
        self.gone = affected.kept_keys | set(affected.mark.item_keys)
        self.now: dict[ItemKey, Item] = {}
        """What shares a pack with it, as its record leads now."""
        self.moved: dict[str, str] = {}
        """Digests of ingest: before, now."""

    def all(self, *, withdraw: bool) -> None:
        if withdraw:
            self._withdraw()
        for digest in self.affected.evaluations:
            self._delete_artifact("evaluate", digest)
        self._packs()
        self._tables()
        self._points()
        self._purge()
        self.store.delete(sorted(self.affected.packs))
        self._items(self.gone)
        self.store.delete([key.attempt for key in sorted(self.gone)])

    # ----------------------------------------------------------------------------------------------------------- packs

    def _packs(self) -> None:
        """Copy what else is in its packs into new ones."""
        affected = {pack: keys for pack, keys in self.affected.packs.items() if keys}
        wanted = dict.fromkeys(key for keys in affected.values() for key in keys)
        items = Items(self.store)
        there = items.load(wanted)
        copies = Items(self.store, [each for artifact in self._latents() for each in artifact.bundle()])
        for key in copies.load(key for key in wanted if key not in there):
            items.hold(copies.need(key))
            there.add(key)
        pieces: dict[str, Piece] = {}
        for key in there:
            item = items.need(key)
            pack = item.objects[0]
            if pack.key in self.affected.packs:
                pieces.setdefault(pack.key, Piece(pack)).items.append((described(item)[1], key))
        for number, piece in enumerate(pieces.values(), start=1):
            self.tell(f"pack {number} of {len(pieces)}: {len(piece.items)} of others stay")
            into_one(self.store, [piece], items, "the run that has it")
        self.now = {key: items.need(key) for key in there}

    def _latents(self) -> list[Artifact]:
        """Artifacts of latents, whichever film they have."""
        found = []
        digests = {entry.key.split("/")[2] for entry in self.store.list("artifacts/latents/")}
        for digest in sorted(digests):
            manifest = find_manifest(self.store, "latents", digest, earlier=True)
            if manifest is not None and manifest.tables:
                found.append(Artifact(self.store, manifest))
        return found

    # ---------------------------------------------------------------------------------------------------------- tables

    def _tables(self) -> None:
        places = defaultdict(list)
        for stage, digest in self.affected.rows:
            places[stage].append(digest)
        for digest in places["ingest"]:
            if ("ingest", digest) in self.affected.holding:
                self._move_ingest(digest)
        self.moved |= self._moved_before()
        for stage in _REWRITTEN[:-1]:
            for digest in places[stage]:
                self._write_again(stage, digest)
        known = set(places["latents"])
        for artifact in self._latents() if self.affected.packs else ():
            if artifact.manifest.digest not in known and self._leads_there(artifact):
                self._write_again("latents", artifact.manifest.digest)

    def _leads_there(self, artifact: Artifact) -> bool:
        return any(row.object in self.affected.packs for row in artifact.item_rows())

    def _move_ingest(self, digest: str) -> None:
        """Its rows stay, and say that it is refused: at another address, so that runs make their next stages anew."""
        manifest = find_manifest(self.store, "ingest", digest)
        if manifest is None:
            return
        new = self._beside(digest)
        ids = self.affected.rows["ingest", digest]
        artifact = Artifact(self.store, manifest)
        with scratch() as folder:
            made = self._changed(artifact, ids, folder)
            told = self._stored(manifest.model_copy(update={"digest": new}), made, folder, "")
            rows = {name: read_where(folder / "videos.parquet", ["state"], state=[name]) for name in VIDEO_STATES}
            counts = {name: len(each) for name, each in rows.items() if each and name != "beside"}
            kept = {name: num for name, num in manifest.counts.items() if name not in VIDEO_STATES}
            told = told.model_copy(update={"counts": dict(sorted((kept | counts).items()))})
        self.store.put(artifact_prefix("ingest", new) + MANIFEST, _json(told))
        self.moved[digest] = new

    def _moved_before(self) -> dict[str, str]:
        """What an earlier call has moved, and perhaps not deleted."""
        digests = {entry.key.split("/")[2] for entry in self.store.list("artifacts/ingest/")}
        there = {digest: self._beside(digest) for digest in digests}
        return {digest: new for digest, new in there.items() if new in digests and self._is_there(new)}

    def _is_there(self, digest: str) -> bool:
        return self.store.head(artifact_prefix("ingest", digest) + MANIFEST) is not None

    def _beside(self, digest: str) -> str:
        """Where an artifact of ingest lies once it says that the film is refused."""
        return artifact_digest(digest, {"taken_down": [self.affected.mark.sha256]})

    def _write_again(self, stage: str, digest: str) -> None:
        manifest = find_manifest(self.store, stage, digest)
        if manifest is None:
            return
        ids, artifact = self.affected.rows.get((stage, digest), set()), Artifact(self.store, manifest)
        inputs = {name: self.moved.get(each, each) for name, each in manifest.inputs.items()}
        with scratch() as folder:
            made = self._changed(artifact, ids, folder)
            if not made and inputs == manifest.inputs:
                return
            told = manifest.model_copy(update={"inputs": inputs})
            if made:
                content = b"".join((folder / name).read_bytes() for name in sorted(made))
                place = f"taken-{hashlib.sha256(content).hexdigest()[:16]}/"
                told = self._stored(told, made, folder, place)
        if find_manifest(self.store, stage, digest) != manifest:
            raise TryLater(f"{artifact.prefix} was made anew meanwhile. Nothing is lost: call it again.")
        self.tell(f"{stage}/{digest[:12]}: written again without it")
        self.store.put(artifact.prefix + MANIFEST, _json(told))

    def _changed(self, artifact: Artifact, ids: set[str], folder: Path) -> dict[str, int]:
        """The tables without its rows, written into a folder: their names (without the folder that they lie in) and
        how many rows were taken out. Empty: there is nothing to change."""
        manifest, found = artifact.manifest, {}
        for table in manifest.tables.values():
            name = table.key.rpartition("/")[2]
            with artifact.local(table.key) as file:
                found[name] = change_rows(file, folder / name, lambda row: self._row(row, ids))
        if manifest.records is not None and (items := table_of_items(manifest)) is not None:
            with artifact.local(items) as file:
                found[ITEMS] = change_rows(file, folder / ITEMS, self._item_row)
            name = manifest.records.key.rpartition("/")[2]
            records = artifact.prefix + manifest.records.key
            with self.store.local(records, sha256=manifest.records.sha256) as file:
                found[name] = change_rows(file, folder / name, self._record_row)
        changed = any(each.is_changed for each in found.values())
        return {name: each.num_gone for name, each in found.items()} if changed else {}

    def _row(self, row: Row, ids: set[str]) -> Row | None:
        if any(row.get(name) in ids for name in ROW_IDS):
            if "state" in row and "sha256" in row and "licence" in row:  # of ingest
                return row | {"state": "refused", "reason": self.affected.mark.reason}
            return None
        if "latents_offset_bytes" in row:
            return row | self._places(row)
        return row

    def _places(self, row: Row) -> Row:
        """Where the packs of a row of latents are now."""
        places: Row = {}
        for pack, offset, key in (
            ("pack", "latents_offset_bytes", ItemKey("latent", row["item"])),
            ("text_pack", "text_offset_bytes", ItemKey("text", row["text_item"])),
            ("empty_text_pack", "empty_text_offset_bytes", self._empty),
        ):
            if row[pack] in self.affected.packs and key in self.now:
                place: Place = described(self.now[key])[1]
                places |= {pack: place.pack, offset: place.offset_bytes}
        return places

    @property
    def _empty(self) -> ItemKey:
        """Features of the empty caption."""
        for key, item in self.now.items():
            if key.kind == "text" and item.made_of.get("text") == "":
                return key
        return ItemKey("text", "")

    def _item_row(self, row: Row) -> Row | None:
        key = ItemKey(row["kind"], row["key"])
        if key in self.gone:
            return None
        if row["object"] in self.affected.packs and key in self.now:
            stored = self.now[key].objects[0]
            return row | {"object": stored.key, "size_bytes": stored.size_bytes, "sha256": stored.sha256}
        return row

    def _record_row(self, row: Row) -> Row | None:
        kind, _, digits = row["id"].partition("/")
        key = ItemKey(kind, digits)
        if key in self.gone:
            return None
        return row | {"record": self.now[key].model_dump_json()} if key in self.now else row

    def _stored(self, manifest: Manifest, made: dict[str, int], folder: Path, place: str) -> Manifest:
        """Put changed tables beside those that are there; the manifest that names them."""
        prefix = artifact_prefix(manifest.stage, manifest.digest)

        def put(name: str) -> StoredObject:
            stored = self.store.put_file(prefix + place + name, folder / name)
            return stored.model_copy(update={"key": place + name})

        stored = {name: put(name) for name in sorted(made)}
        tables = {
            name: table.model_copy(
                update={
                    "key": place + table.key.rpartition("/")[2],
                    "num_rows": table.num_rows - made[table.key.rpartition("/")[2]],
                }
            )
            for name, table in manifest.tables.items()
        }
        before = {table.key for table in manifest.tables.values()} | {table_of_items(manifest)}
        records = stored.pop(manifest.records.key.rpartition("/")[2]) if manifest.records is not None else None
        objects = [each for each in manifest.objects if each.key not in before]
        update: dict[str, Any] = {
            "objects": sorted([*objects, *stored.values()], key=lambda each: each.key),
            "tables": tables,
            "records": records,
        }
        if ITEMS in made:
            update |= _counted(folder / ITEMS)
        num = sum(num for name, num in made.items() if name in {t.key.rpartition("/")[2] for t in tables.values()})
        counts = manifest.counts | ({"rows taken down": manifest.counts.get("rows taken down", 0) + num} if num else {})
        return manifest.model_copy(update=update | {"counts": counts})

    def _points(self) -> None:
        """Runs point to where ingest lies now, and to no report that is gone."""
        for run in run_names(self.store):
            pointers = read_points(self.store, run).stages
            ingest, evaluate = pointers.get("ingest"), pointers.get("evaluate")
            if ingest is not None and ingest.digest in self.moved:
                point(run, self.store, ingest.model_copy(update={"digest": self.moved[ingest.digest]}))
            if evaluate is not None and evaluate.digest in self.affected.evaluations:
                forget(run, self.store, ["evaluate"])
                self.store.delete([f"runs/{run}/status/evaluate.json"])

    def _purge(self) -> None:
        """Delete tables from before, and of ingest the whole artifact at its old address."""
        for digest in self.moved:
            self.store.delete([artifact_prefix("ingest", digest) + MANIFEST])  # first: half of it must look like none
            self._delete_artifact("ingest", digest)
        for stage, digest in self.affected.rows:
            manifest = None if digest in self.moved else find_manifest(self.store, stage, digest)
            if manifest is not None:
                prefix = artifact_prefix(stage, digest)
                named = {prefix + each.key for each in [*manifest.objects, *filter(None, [manifest.records])]}
                entries = [entry.key for entry in self.store.list(prefix) if entry.key.endswith(".parquet")]
                self.store.delete([key for key in entries if key not in named])

    # -------------------------------------------------------------------------------------------- items and trainings

    def _items(self, keys: Iterable[ItemKey]) -> None:
        """Their files, wherever they lie, then their records."""
        by_kind: dict[str, set[str]] = defaultdict(set)
        for key in keys:
            by_kind[key.kind].add(key.key)
        for kind, wanted in sorted(by_kind.items()):
            entries = [
                entry.key
                for entry in self.store.list(f"items/{kind}/")
                if entry.key.rpartition("/")[2].partition(".")[0] in wanted
            ]
            records = [key for key in entries if key.endswith(".json")]
            self.store.delete([*self._elsewhere(records), *(key for key in entries if not key.endswith(".json"))])
            self.store.delete(records)
            if records:
                self.tell(f"{len(records):,} {kind} deleted")

    def _elsewhere(self, records: list[str]) -> Iterator[str]:
        """Files of items that lie in artifacts, as an earlier version left them."""
        for key, data in self.store.get_many(records):
            parts = key.removesuffix(".json").split("/")
            try:
                item = Item.opened(data or b"", ItemKey(parts[1], parts[-1]))
            except ValueError:
                continue
            yield from (each.key for each in item.objects if each.key.startswith("artifacts/"))

    def _delete_artifact(self, stage: str, digest: str) -> None:
        """What it holds, but for files that items lead to; its manifest last, so that the next call finds the rest."""
        prefix = artifact_prefix(stage, digest)
        keys = [entry.key for entry in self.store.list(prefix) if entry.key not in self.affected.outside_items]
        self.store.delete([key for key in keys if key != prefix + MANIFEST])
        self.store.delete([prefix + MANIFEST])

    def _withdraw(self) -> None:
        """Delete the trainings that learnt from it."""
        learners = self.affected.learners
        if not learners:
            return
        digests = {digest for each in learners for digest in each.artifacts}
        places = {place for each in learners for place in each.places}

        def shows(inputs: Mapping[str, str]) -> bool:
            """Whether an evaluation has samples of one of them."""
            of_states = any(state.startswith(tuple(places)) for state in compared_states(inputs))
            return inputs.get("train") in digests or of_states

        for run in run_names(self.store):
            pointers = read_points(self.store, run).stages
            train, evaluate = pointers.get("train"), pointers.get("evaluate")
            if train is not None and train.digest in digests:
                gone = ["train", "evaluate"]
            elif evaluate is not None and shows(evaluate.inputs):
                gone = ["evaluate"]
            else:
                continue
            forget(run, self.store, gone)
            self.store.delete([f"runs/{run}/status/{stage}.json" for stage in gone])
        for digest in {entry.key.split("/")[2] for entry in self.store.list("artifacts/evaluate/")}:
            manifest = find_manifest(self.store, "evaluate", digest, earlier=True)
            if manifest is not None and shows(manifest.inputs):
                self._delete_artifact("evaluate", digest)
        self._items(self.affected.samples)
        for training in learners:
            self._delete_states(training)
        for digest in sorted(digests):
            self._delete_artifact("train", digest)
        for run in run_names(self.store):
            forget_places(self.store, run, places)

    def _delete_states(self, training: Training) -> None:
        self.tell(f"{training.name}: withdrawn")
        keys = [entry.key for place in training.places for entry in self.store.list(place)]
        commits = [key for key in keys if key.endswith(f"/{COMMIT}")]
        self.store.delete(commits)
        self.store.delete([key for key in keys if not key.endswith(f"/{COMMIT}")])


def _counted(items: Path) -> dict[str, int]:
    rows = read_where(items, ["kind", "key", "object", "size_bytes"])
    files = {row["object"]: row["size_bytes"] for row in rows if row["object"]}
    num = len({(row["kind"], row["key"]) for row in rows})
    return {"num_items": num, "num_item_objects": len(files), "item_bytes": sum(files.values())}


def _json(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=1) + "\n").encode()
