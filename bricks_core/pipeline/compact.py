"""Many small packs become a few large ones: bytes are copied as they are, and nothing is decoded or encoded.

Every later addition leaves packs of its own. Here, what a run's latents have in small packs is copied into packs of
`latents.pack_bytes`; the records are made to lead there, and then the run's index is. In this order, so that at any
moment every record and every index leads to bytes that are there: the old packs stay until `bricks gc` finds that
nothing reaches them any more, and whoever reads them goes on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, DataError, NoSuchObject, TryLater, nearest
from bricks_core.pipeline.points import Pointer, read_pointer, run_names
from bricks_core.spec.items import Item, ItemKey
from bricks_core.spec.latents import Latent, LatentAnswer, LatentsSpec, TextAnswer
from bricks_core.spec.manifest import StoredObject, Table
from bricks_core.storage.artifacts import (
    ITEMS,
    MANIFEST,
    RECORDS,
    Artifact,
    find_manifest,
    open_artifact,
    table_of_items,
)
from bricks_core.storage.claims import Claims
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.items import Items
from bricks_core.storage.scratch import scratch
from bricks_core.storage.shards import ALIGNMENT_BYTES, HEADING, Packs, PackWriter, pack_key
from bricks_core.storage.store import Entry, Store
from bricks_core.storage.tables import write_rows
from bricks_core.storage.work import write_items

BATCH = "compact/latents"
"""What is claimed: one compaction at a time in a store."""
_RECORDS_AT_ONCE = 16


@dataclass
class Compacted:
    """What came of it, or would."""

    prefix: str
    """Of the artifact."""
    num_before: int
    """Packs that its index led to."""
    num_after: int
    num_bytes: int
    """Of what its index leads to."""
    copied_bytes: int
    is_changed: bool
    """Whether its index leads elsewhere now."""


class Place(NamedTuple):
    """Where the bytes of an item lie."""

    pack: str
    offset_bytes: int
    num_bytes: int


@dataclass
class Piece:
    """What one small pack has of one shape."""

    pack: StoredObject
    items: list[tuple[Place, ItemKey]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """What it takes in another pack."""
        return sum(_aligned(place.num_bytes) for place in {place for place, _ in self.items})


def compact(
    store: Store, run: str, *, dry_run: bool = False, tell: Callable[[str], None] = lambda line: None
) -> Compacted:
    """Bring what a run's latents have in small packs together. Can be called again, and while runs are under way.

    `dry_run` only says what it would do. `tell` hears of every pack that is made.

    Raises:
        DataError: the run has no finished latents, or a pack of it is damaged (AlteredObject): nothing of that pack is
            copied.
        TryLater: another process is at it, or has made the artifact anew meanwhile.
    """
    with Claims(store, f"bricks store compact {run}") as claims:
        if not dry_run and (holder := claims.take(BATCH)) is not None:
            raise TryLater(f"Packs of {store.uri} are compacted already, by {holder}: call it again when that is done.")
        pointer = _pointer(store, run)
        artifact = open_artifact(store, "latents", pointer.digest)
        found = _Found(artifact, _pack_bytes(run, pointer))
        if dry_run:
            return found.done
        for number, joined in enumerate(found.to_join, start=1):
            tell(f"pack {number} of {len(found.to_join)}: {len(joined)} small ones")
            found.places |= into_one(store, joined, found.items, run)
        if found.done.is_changed:
            _index_anew(artifact, found)
        return found.done


class _Found:
    """Where everything lies that an artifact's index leads to, and which small packs are to be joined."""

    def __init__(self, artifact: Artifact, pack_bytes: int):
        rows = {ItemKey(row.kind, row.key): row.object for row in artifact.item_rows()}
        self.items = Items(artifact.store)
        self._load(artifact, rows)
        self.places: dict[ItemKey, Place] = {}
        self.empty_text: ItemKey | None = None
        by_shape: dict[tuple[object, ...], dict[str, Piece]] = defaultdict(dict)
        for _, text in self.items.texts(rows):
            item = Item.model_validate_json(text)
            key, pack = item.item_key, _pack_of(item)
            shape, self.places[key] = described(item)
            if key.kind == "text" and item.made_of.get("text") == "":
                self.empty_text = key
            if 2 * pack.size_bytes < pack_bytes:
                by_shape[shape].setdefault(pack.key, Piece(pack)).items.append((self.places[key], key))
        self.to_join = [
            joined
            for shape in sorted(by_shape, key=repr)
            for joined in _filled(sorted(by_shape[shape].values(), key=lambda piece: piece.pack.key), pack_bytes)
            if len(joined) > 1
        ]
        moved = {key for joined in self.to_join for piece in joined for _, key in piece.items}
        self.done = Compacted(
            prefix=artifact.prefix,
            num_before=len(set(rows.values())),
            num_after=len(self.to_join) + len({each.pack for key, each in self.places.items() if key not in moved}),
            num_bytes=sum(place.num_bytes for place in set(self.places.values())),
            copied_bytes=sum(piece.num_bytes for joined in self.to_join for piece in joined),
            is_changed=bool(moved) or any(self.places[key].pack != pack for key, pack in rows.items()),
        )

    def _load(self, artifact: Artifact, rows: dict[ItemKey, str]) -> None:
        """The records as they are now. Where one is gone, or leads to a pack that is not whole, the artifact's own copy
        of it counts."""
        there = self.items.load(rows)
        packs: dict[str, StoredObject] = {}
        elsewhere: dict[ItemKey, str] = {}
        for key, text in self.items.texts(there):
            pack = _pack_of(Item.model_validate_json(text))
            if pack.key != rows[key]:
                packs[pack.key], elsewhere[key] = pack, pack.key
        broken = {key for key, entry in artifact.store.heads(packs) if not _is_whole(artifact.store, entry, packs[key])}
        wanted = [key for key in rows if key not in there or elsewhere.get(key) in broken]
        copy = Items(artifact.store, artifact.bundle())
        copy.load(wanted)
        for key in wanted:
            self.items.hold(copy.need(key))


def _is_whole(store: Store, entry: Entry | None, pack: StoredObject) -> bool:
    """As far as can be told without reading it."""
    if entry is None or entry.size_bytes != pack.size_bytes:
        return False
    return store.known_sha256(entry) in (None, pack.sha256)


def _pack_of(item: Item) -> StoredObject:
    if len(item.objects) != 1:
        raise CorruptManifest(f"{item.item_key.record} names {len(item.objects)} files instead of one pack.")
    return item.objects[0]


def described(item: Item) -> tuple[tuple[object, ...], Place]:
    """The shape that a pack has one of, and where the item's bytes lie."""
    pack = item.objects[0].key
    try:
        if item.kind == "latent":
            latent = LatentAnswer.model_validate(item.answer)
            is_image = item.made_of.get("of", [])[1:] == ["image"]
            shape = (latent.codec, latent.channels, latent.height, latent.width, is_image)
            return (item.kind, *shape), Place(pack, latent.offset_bytes, latent.num_bytes)
        text = TextAnswer.model_validate(item.answer)
        return (item.kind, text.encoder, text.width), Place(pack, text.offset_bytes, text.num_bytes)
    except ValidationError as error:
        raise CorruptManifest(f"{item.item_key.record} tells of no {item.kind}: {error.errors()[0]['msg']}.") from None


def _filled(pieces: Iterable[Piece], pack_bytes: int) -> list[list[Piece]]:
    """Pieces together, as many as fill a pack, each where it fits first. All but one are more than half full then, so
    that who comes again finds nothing to do."""
    filled: list[list[Piece]] = []
    sizes: list[int] = []
    for piece in pieces:
        size = piece.num_bytes
        at = next((at for at, before in enumerate(sizes) if before + size <= pack_bytes), None)
        if at is None:
            filled.append([piece])
            sizes.append(len(HEADING) + size)
        else:
            filled[at].append(piece)
            sizes[at] += size
    return filled


def into_one(store: Store, pieces: list[Piece], items: Items, run: str) -> dict[ItemKey, Place]:
    """Copy pieces into one new pack, look whether they are there, and let their records lead to it. Returns where they
    lie now.

    Raises:
        AlteredObject: one of the packs is damaged: `run` mends it.
    """
    moved: dict[ItemKey, Place] = {}
    copied: dict[tuple[int, int], bytes] = {}
    with scratch() as folder:
        file = folder / "pack.bin"
        with PackWriter(file) as writer:
            for piece in pieces:
                for offset, place, data, keys in _read(store, piece, writer, run):
                    copied[offset, place.num_bytes] = data
                    moved |= dict.fromkeys(keys, Place("", offset, place.num_bytes))
        stored = items.put_file(pack_key(moved), file, ".bin")
    with store.local(stored.key, sha256=stored.sha256) as path:
        pack = Packs(lambda key: path)
        for (offset, num_bytes), digest in copied.items():
            if hashlib.sha256(pack.piece(stored.key, offset, num_bytes).data).digest() != digest:
                raise AlteredObject(
                    stored.key, f"is not what was copied into it, at {offset}: nothing leads to it yet."
                )
        pack.close()

    def lead(key: ItemKey) -> None:
        item = items.need(key)
        answer = item.answer | {"offset_bytes": moved[key].offset_bytes}
        items.replace(item.model_copy(update={"answer": answer, "objects": [stored]}))

    in_threads(lead, moved, _RECORDS_AT_ONCE)
    return {key: place._replace(pack=stored.key) for key, place in moved.items()}


def _read(
    store: Store, piece: Piece, writer: PackWriter, run: str
) -> Iterator[tuple[int, Place, bytes, list[ItemKey]]]:
    """Append what a small pack has: where it lies now and lay before, its hash, and whose it is."""
    keys: dict[Place, list[ItemKey]] = defaultdict(list)
    for place, key in sorted(piece.items):
        keys[place].append(key)
    try:
        with store.local(piece.pack.key, sha256=piece.pack.sha256) as path:
            pack = Packs(lambda key: path)
            for place, owners in keys.items():
                data = pack.piece(place.pack, place.offset_bytes, place.num_bytes)
                yield writer.add_bytes(data), place, hashlib.sha256(data.data).digest(), owners
            pack.close()
    except (AlteredObject, NoSuchObject) as error:
        raise AlteredObject(
            piece.pack.key, f"is damaged, and is not copied: bricks run of {run} mends it first. ({error})"
        ) from None


def _index_anew(artifact: Artifact, found: _Found) -> None:
    """Write the artifact's tables again, beside those that others may be reading; then its manifest names them."""
    store, manifest = artifact.store, artifact.manifest
    with scratch() as folder:
        table = folder / "latents.parquet"
        num_rows = write_rows(table, Latent, _rows(artifact, found))
        files = write_items(folder, found.items, found.places)
        # What they are called depends on what is in them: two that do this at once are in nobody's way.
        place = f"compact-{hashlib.sha256((folder / ITEMS).read_bytes()).hexdigest()[:16]}/"

        def put(name: str) -> StoredObject:
            stored = store.put_file(artifact.prefix + place + name, folder / name)
            return stored.model_copy(update={"key": place + name})

        # The table of items first: where there are two of them, gc knows that the artifact is compacted.
        objects = [put(ITEMS), put(table.name)]
        records = put(RECORDS)
    replaced = {table_of_items(manifest), *(each.key for each in manifest.tables.values())}
    kept = [each for each in manifest.objects if each.key not in replaced]
    new = manifest.model_copy(
        update={
            "objects": sorted([*kept, *objects], key=lambda each: each.key),
            "tables": {"latents": Table(key=objects[1].key, row=Latent.__name__, num_rows=num_rows)},
            "records": records,
            "num_item_objects": files.num,
            "item_bytes": files.size_bytes,
        }
    )
    if find_manifest(store, manifest.stage, manifest.digest) != manifest:
        raise TryLater(f"{artifact.prefix} was made anew meanwhile. Nothing is lost: call it again.")
    store.put(artifact.prefix + MANIFEST, (new.model_dump_json(indent=1) + "\n").encode())


def _rows(artifact: Artifact, found: _Found) -> Iterator[Latent]:
    empty = found.places[found.empty_text] if found.empty_text is not None else None
    for row in artifact.rows("latents", Latent):
        latents, text = found.places[ItemKey("latent", row.item)], found.places[ItemKey("text", row.text_item)]
        places = {
            "pack": latents.pack,
            "latents_offset_bytes": latents.offset_bytes,
            "text_pack": text.pack,
            "text_offset_bytes": text.offset_bytes,
        }
        if empty is not None:
            places |= {"empty_text_pack": empty.pack, "empty_text_offset_bytes": empty.offset_bytes}
        yield row.model_copy(update=places)


def _pointer(store: Store, run: str) -> Pointer:
    pointer = read_pointer(store, run, "latents")
    if pointer is None:
        names = run_names(store)
        near = "" if run in names else nearest(run, names)
        raise DataError(f"{store.uri} has no run {run} with finished latents{near}.")
    return pointer


def _pack_bytes(run: str, pointer: Pointer) -> int:
    try:
        return LatentsSpec.model_validate(pointer.spec).pack_bytes
    except ValidationError:
        raise DataError(
            f"The latents of run {run} were asked for by another version of Bricks: bricks run of its file first."
        ) from None


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
