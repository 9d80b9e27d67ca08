"""All that was made of a film: found by its content, whatever it is called, in tables and in the recipes of items.

Also what is left of it where an earlier takedown was killed: what tells of other things is deleted last, and the mark
knows the rest.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bricks_core.errors import DataError, UsageError, nearest
from bricks_core.pipeline.ledger import Evaluation, Film, Ledger, Training, full_name
from bricks_core.pipeline.lineage import of_clip
from bricks_core.pipeline.points import run_names
from bricks_core.spec.items import KINDS, Item, ItemKey
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_where
from bricks_core.storage.takedowns import Side, Takedown
from bricks_core.storage.trainings import ROOT

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-f]{64}|[a-z_]+/[0-9a-f]{32}")
_BETWEEN = ("score", "caption", "latents")
ROW_IDS = ("id", "clip_id", "video_id")
"""Columns by which a row is known to be of a film."""
_OF_A_TRAINING = ("held_out", "sample", "guidance")
_STAYS = ("content", *_OF_A_TRAINING)
"""`content` says of an object in S3 which content it has: what refuses it unread. The others are its trainings'."""

Place = tuple[str, str]
"""A stage and a digest."""


@dataclass
class Affected:
    """What is to go with a film."""

    mark: Takedown
    """As it will be written."""
    films: list[Film]
    """The film, and clips and pictures of it that were given as files of their own."""
    rows: dict[Place, set[str]] = field(default_factory=dict)
    """Of artifacts made from it: ids of its rows, whether these are there or not."""
    holding: list[Place] = field(default_factory=list)
    """Those of them that have such rows; of ingest, rows that do not say yet that it is refused."""
    items: dict[str, list[ItemKey]] = field(default_factory=dict)
    """By kind."""
    num_files: dict[str, int] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    packs: dict[str, list[ItemKey]] = field(default_factory=dict)
    """Packs with something of it, and what else is in each."""
    trainings: list[Training] = field(default_factory=list)
    """That learnt from it, or had it held out."""
    evaluations: list[str] = field(default_factory=list)
    """Digests of those made from its data: their reports may show it."""
    samples: list[ItemKey] = field(default_factory=list)
    """Samples, and held-out losses, of trainings that learnt from it."""
    reports: list[Evaluation] = field(default_factory=list)
    """Of other data, that show samples of trainings that learnt from it."""
    runs: list[str] = field(default_factory=list)
    """That point to something of it now."""
    outside_items: set[str] = field(default_factory=set)
    """Files of other items that lie in artifacts, as an earlier version left them."""
    earlier: list[str] = field(default_factory=list)
    """Artifacts of the first version of Bricks: what is in them is not known from here."""

    @property
    def learners(self) -> list[Training]:
        return [each for each in self.trainings if each.learnt]

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is left in the store."""
        return not (self.items or self.evaluations or self.holding)

    @property
    def kept_keys(self) -> set[ItemKey]:
        return {key for keys in self.items.values() for key in keys}


def find_affected(store: Store, wanted: str) -> Affected:
    """What there is of a film.

    `wanted`: its name, path, sha256 (or the first digits of that) or video_id, or a file of it on this disk.

    Raises:
        DataError: the store knows nothing of that name. UsageError: it means several contents, or no film.
    """
    ledger = Ledger(store)
    sha256 = _meant(ledger, wanted)
    graph = _Graph.of(ledger)
    films, files = _contents(ledger, graph, sha256)
    before = ledger.takedowns.marks.get(sha256)
    known = ledger.films(films)
    names = sorted({name for film in known.values() for name in film.names})
    affected = Affected(
        Takedown(sha256=sha256, names=names, at=datetime.now(UTC), files=sorted(files | films - {sha256})),
        sorted(known.values(), key=lambda film: film.sha256 != sha256),
        outside_items=graph.outside,
    )
    affected.rows, refused = _rows_of(ledger, films)
    affected.holding = [
        place for place in affected.rows if place[1] not in refused and _has_rows(ledger, place, affected)
    ]
    items = _items_of(ledger, graph, films, affected.rows)
    items.update(before.item_keys if before is not None else ())
    _measure(store, affected, items)
    _packs(ledger, affected, graph)
    sides = _sides(ledger, affected)
    if before is not None:
        for digest, told in before.latents.items():
            sides[digest] = sorted({*sides.get(digest, ()), *told})
    affected.trainings = ledger.learners(sides)
    _of_trainings(ledger, affected, graph)
    affected.runs = _runs_of(ledger, affected)
    affected.earlier = _earlier(store)
    affected.mark = affected.mark.model_copy(
        update={"items": sorted("/".join(each) for each in items), "latents": dict(sorted(sides.items()))}
    )
    if before is not None:
        affected.mark = before.joined(affected.mark)
    return affected


def _meant(ledger: Ledger, wanted: str) -> str:
    """The content that a name means."""
    found = ledger.find_films(wanted)
    if not found and Path(wanted).is_file():
        found = {sha256_of_file(Path(wanted))}
    if not found and _SHA256.fullmatch(wanted):
        found = {wanted}
    if len(found) > 1:
        told = ", ".join(sorted(each[:12] for each in found))
        raise UsageError(f"{wanted} is the name of {len(found)} contents: name one by its sha256 ({told}).")
    if found:
        return found.pop()
    store = ledger.store
    clip = of_clip(ledger, wanted)
    if clip is not None and clip.film is not None:
        raise UsageError(
            f"{wanted} is a {clip.kind} of {', '.join(clip.film.names)}, and only whole films are taken down: "
            f"bricks takedown {clip.film.sha256[:12]}."
        )
    if wanted in run_names(store):
        raise UsageError(f"{wanted} is a run, and films are taken down: bricks lineage {wanted} names those it has.")
    names = [name for row in ledger.videos() for name in (row["name"], full_name(row))]
    near = nearest(wanted, [*names, *(name.rpartition("/")[2] for name in names)])
    raise DataError(
        f"{store.uri} knows no film {wanted}{near}. Name it as bricks show RUN/ingest has it, by its sha256, or give "
        "the file itself: one that no run has used is then refused from the start."
    )


class _Graph:
    """What items are made of."""

    def __init__(self) -> None:
        self.users: dict[str, list[ItemKey]] = defaultdict(list)
        """By what is in their recipes: a content, `kind/key` of another item, or the folder of a training."""
        self.texts: dict[str, list[ItemKey]] = defaultdict(list)
        """Items of kind text by their text."""
        self.prompted: dict[str, list[ItemKey]] = defaultdict(list)
        """Items of kind sample by their prompt."""
        self.said: dict[ItemKey, list[str]] = {}
        """Captions that came out."""
        self.cut: dict[ItemKey, list[str]] = {}
        """sha256 of the files of clips."""
        self.packed: dict[ItemKey, str] = {}
        """The pack of what is in one."""
        self.outside: set[str] = set()

    @classmethod
    def of(cls, ledger: Ledger) -> _Graph:
        """Of all items: most records are in few files, beside the artifacts made from them."""
        graph, seen = cls(), set[str]()
        for artifacts in ledger.artifacts.values():
            for artifact in artifacts.values():
                for name, text in _records_of(artifact, seen):
                    graph._add(name, json.loads(text))
                    seen.add(name)
        for kind in KINDS:
            missing = {}
            for entry in ledger.store.list(f"items/{kind}/"):
                key = ItemKey(kind, entry.key.rpartition("/")[2].removesuffix(".json"))
                # Of latents the record may lead elsewhere by now.
                if entry.key.endswith(".json") and "/".join(key) not in seen:
                    missing[entry.key] = key
            for place, data in ledger.store.get_many(missing):
                try:
                    record = Item.text_of(data or b"", missing[place])
                except ValueError:
                    continue
                graph._add("/".join(missing[place]), json.loads(record))
        return graph

    def _add(self, name: str, record: dict[str, Any]) -> None:
        kind, _, digits = name.partition("/")
        key, objects = ItemKey(kind, digits), record.get("objects", [])
        for each in dict.fromkeys(_strings(record["made_of"])):
            if _NAME.fullmatch(each):
                self.users[each].append(key)
            elif each.startswith(ROOT):
                self.users["/".join(each.split("/")[:2]) + "/"].append(key)
        if kind == "text":
            self.texts[record["made_of"].get("text", "")].append(key)
        if kind == "sample":
            self.prompted[record["made_of"].get("prompt", "")].append(key)
        if kind in ("answer", "description"):
            self.said[key] = [each for each in record["answer"].values() if isinstance(each, str)]
        if kind in ("clip", "file"):
            self.cut[key] = [each["sha256"] for each in objects]
        if kind in ("latent", "text") and objects:
            self.packed[key] = objects[0]["key"]
        self.outside.update(each["key"] for each in objects if each["key"].startswith("artifacts/"))

    def made_of(self, names: Iterable[str]) -> set[ItemKey]:
        """All items that are made of these, or of what is."""
        found: set[ItemKey] = set()
        todo = list(names)
        while todo:
            for key in self.users.get(todo.pop(), ()):
                if key.kind not in _STAYS and key not in found:
                    found.add(key)
                    todo.append("/".join(key))
        return found


def _records_of(artifact: Artifact, seen: Collection[str]) -> Iterator[tuple[str, str]]:
    records = artifact.manifest.records
    if records is None or not artifact.store.head(artifact.prefix + records.key):
        return
    with artifact.store.local(artifact.prefix + records.key) as file:
        for row in read_where(file, ["id", "record"]):
            if row["id"] not in seen:
                yield row["id"], row["record"]


def _contents(ledger: Ledger, graph: _Graph, sha256: str) -> tuple[set[str], set[str]]:
    """sha256 of the film and of what was given of it as files of their own; and of the clips and pictures cut from
    these."""
    films, files = {sha256}, set[str]()
    mark = ledger.takedowns.marks.get(sha256)
    files.update(mark.files if mark is not None else ())
    while True:
        for artifact in ledger.artifacts["clip"].values():
            for table in ("clips", "images"):
                rows = ledger.rows(artifact, table, ["sha256"], source_sha256=films)
                files.update(row["sha256"] for row in rows)
        made = graph.made_of(films)
        files.update(each for key in made for each in graph.cut.get(key, ()))
        new = {row["sha256"] for row in ledger.videos(sha256=files)} if files else set()
        ids = {each[:16] for each in films}
        for artifact in ledger.artifacts["ingest"].values():
            given = {row["id"] for row in ledger.rows(artifact, "given", ["id"], video_id=ids)}
            if given:
                rows = ledger.rows(artifact, "videos", ["sha256"], id=given)
                new.update(row["sha256"] for row in rows if row["sha256"])
        if new <= films:
            return films, files
        films |= new


def _rows_of(ledger: Ledger, films: set[str]) -> tuple[dict[Place, set[str]], set[str]]:
    """Ids of rows, by the artifact that may have them. An id is looked for only where its film's is: tables give
    their own ids."""
    found: dict[Place, set[str]] = {}
    states: dict[str, set[str]] = defaultdict(set)
    for row in ledger.videos(sha256=films):
        found.setdefault(("ingest", row["ingest"]), set()).add(row["id"])
        states[row["ingest"]].add(row["state"])
    for digest, artifact in ledger.artifacts["clip"].items():
        videos = found.get(("ingest", artifact.manifest.inputs.get("ingest", "")))
        if videos is None:
            continue
        ids = set(videos)
        for table in ("shots", "clips", "images"):
            rows = ledger.rows(artifact, table, ["id"], video_id=videos, source_sha256=films)
            ids.update(row["id"] for row in rows)
        found["clip", digest] = ids
    for stage in _BETWEEN:
        for digest, artifact in ledger.artifacts[stage].items():
            clip = found.get(("clip", artifact.manifest.inputs.get("clip", "")))
            if clip is not None:
                found[stage, digest] = clip
    return found, {digest for digest, told in states.items() if told == {"refused"}}


def _items_of(ledger: Ledger, graph: _Graph, films: set[str], rows: dict[Place, set[str]]) -> set[ItemKey]:
    """The items that are made of the film, and features and samples of captions that nothing else has."""
    found = graph.made_of(films)
    own = {text for key in found for text in graph.said.get(key, ())}
    others: set[str] = {""}
    for (stage, digest), ids in rows.items():
        artifact = ledger.artifacts[stage][digest]
        if stage in ("ingest", "caption"):
            table = "given" if stage == "ingest" else "captions"
            told = ledger.rows(artifact, table, ["text"], id=ids, clip_id=ids)
            own.update(row["text"] for row in told)
    for stage, table, column in (("caption", "captions", "text"), ("latents", "latents", "caption")):
        for digest, artifact in ledger.artifacts[stage].items():
            ids = rows.get((stage, digest), set())
            for row in ledger.rows(artifact, table, ["id", "clip_id", column]):
                if row["id"] not in ids and row["clip_id"] not in ids:
                    others.add(row[column])
    for text in own - others:
        found.update(graph.texts.get(text, ()))
    for text in own - others - _prompts(ledger, rows):
        found.update(graph.prompted.get(text, ()))
    return found


def _prompts(ledger: Ledger, rows: dict[Place, set[str]]) -> set[str]:
    """What evaluations sample that is no caption of the film: somebody may have written the same."""
    found = set()
    for artifact in ledger.artifacts["evaluate"].values():
        clips = rows.get(("clip", artifact.manifest.inputs.get("clip", "")), set())
        for row in ledger.rows(artifact, "samples", ["prompt", "prompt_set", "held_out_clip"]):
            if row["prompt_set"] != "held_out" or row["held_out_clip"] not in clips:
                found.add(row["prompt"])
    return found


def _measure(store: Store, affected: Affected, items: set[ItemKey]) -> None:
    """What of the items is there, with their files."""
    by_kind: dict[str, set[str]] = defaultdict(set)
    for key in items:
        by_kind[key.kind].add(key.key)
    for kind, wanted in sorted(by_kind.items()):
        there = set()
        for entry in store.list(f"items/{kind}/"):
            name = entry.key.rpartition("/")[2].partition(".")[0]
            if name in wanted:
                there.add(name)
                affected.num_files[kind] = affected.num_files.get(kind, 0) + (not entry.key.endswith(".json"))
                affected.num_bytes[kind] = affected.num_bytes.get(kind, 0) + entry.size_bytes
        if there:
            affected.items[kind] = sorted(ItemKey(kind, each) for each in there)


def _packs(ledger: Ledger, affected: Affected, graph: _Graph) -> None:
    """The packs that hold something of it, as tables and as records have it."""
    gone = {*(key for kind in ("latent", "text") for key in affected.items.get(kind, ()))}
    current: dict[ItemKey, str] = dict(graph.packed)
    for place, data in ledger.store.get_many([key.record for key in gone]):
        if data is not None:
            key = ItemKey(place.split("/")[1], place.rpartition("/")[2].removesuffix(".json"))
            try:
                current[key] = Item.opened(data, key).objects[0].key
            except (ValueError, IndexError):
                continue
    inside: dict[str, set[ItemKey]] = defaultdict(set)
    for key, pack in current.items():
        inside[pack].add(key)
    for artifact in ledger.artifacts["latents"].values():
        for row in artifact.item_rows():
            if row.object:
                inside[row.object].add(ItemKey(row.kind, row.key))
    affected.packs = {pack: sorted(keys - gone) for pack, keys in sorted(inside.items()) if not keys.isdisjoint(gone)}


def _sides(ledger: Ledger, affected: Affected) -> dict[str, list[Side]]:
    """On which sides of the split artifacts of latents have it."""
    found: dict[str, list[Side]] = {}
    for (stage, digest), ids in affected.rows.items():
        if stage == "latents":
            artifact = ledger.artifacts[stage][digest]
            if rows := ledger.rows(artifact, "latents", ["split"], clip_id=ids, video_id=ids):
                found[digest] = sorted({row["split"] for row in rows})
    return found


def _of_trainings(ledger: Ledger, affected: Affected, graph: _Graph) -> None:
    """Evaluations of its data, and samples of what learnt from it."""
    for digest, artifact in ledger.artifacts["evaluate"].items():
        if ("clip", artifact.manifest.inputs.get("clip", "")) in affected.holding:
            affected.evaluations.append(digest)
    places = {place for each in affected.learners for place in each.places}
    digests = {digest for each in affected.learners for digest in each.artifacts}
    places |= {f"artifacts/train/{digest}" for digest in digests}
    found = {key for place in places for key in graph.users.get(place, ()) if key.kind in _OF_A_TRAINING}
    affected.samples = sorted(found)
    own = {f"evaluate/{digest[:12]}" for digest in affected.evaluations}
    shown = ledger.evaluations({}, affected.learners, set()) if affected.learners else []
    affected.reports = [each for each in shown if each.artifact not in own]


def _has_rows(ledger: Ledger, place: Place, affected: Affected) -> bool:
    artifact, ids = ledger.artifacts[place[0]][place[1]], affected.rows[place]
    wanted = dict.fromkeys(ROW_IDS, ids)
    return any(ledger.rows(artifact, table, ["id"], **wanted) for table in artifact.manifest.tables)


def _runs_of(ledger: Ledger, affected: Affected) -> list[str]:
    found = set()
    for run, sets in ledger.points.items():
        for stage, pointer in sets[-1].stages.items() if sets else ():
            if (stage, pointer.digest) in affected.holding:
                found.add(run)
    return sorted(found)


def _earlier(store: Store) -> list[str]:
    """Where runs point to work of the first version of Bricks, whose files are in its artifacts."""
    found = [
        entry.key for entry in store.list("runs/") if re.fullmatch(r"runs/[^/]+/(wanted/)?ingest\.json", entry.key)
    ]
    return sorted({key.split("/")[1] for key in found})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
