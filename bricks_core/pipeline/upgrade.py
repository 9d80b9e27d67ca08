"""The way over from schema 1: items are made of what earlier artifacts hold, so that nothing is done or paid for again.

Files stay where they lie, and so do the artifacts: they can still be looked at, and are never built on. What no item
can be made of is told, with why.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any

from pydantic import ValidationError

from bricks_core.errors import AlteredObject, CorruptManifest, NoSuchObject
from bricks_core.pipeline.points import Pointer, Points, points_place, read_points
from bricks_core.spec.items import KINDS
from bricks_core.spec.manifest import SCHEMA_VERSION, Manifest, canonical_json
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import MANIFEST, artifact_prefix
from bricks_core.storage.earlier import Derived, Earlier, Left
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.items import Items
from bricks_core.storage.store import Store

NUM_AT_ONCE = 16
_CHUNK = 4096
_ANSWERED_BY = 1
"""The version of every kind's function that answered for schema 1."""
_STAGE_VERSION = 2
"""The version that every stage with items had when it last wrote schema 1; what is older was answered otherwise."""
_HAVE_ITEMS = ("ingest", "clip", "score", "caption", "latents")


@dataclass
class Upgraded:
    """What came of it."""

    made: Counter[str] = field(default_factory=Counter)
    """Items by kind that were made."""
    there: Counter[str] = field(default_factory=Counter)
    """Items by kind that were there already."""
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By what and why: of what no item could be made."""
    num_artifacts: int = 0
    """Of schema 1."""
    runs: list[str] = field(default_factory=list)
    """That point to what they had, so that it can be looked at."""


def upgrade(
    store: Store, *, dry_run: bool = False, decode: bool = True, tell: Callable[[str], None] = lambda line: None
) -> Upgraded:
    """Make the items that a store's artifacts of schema 1 hold, and let runs point to these artifacts as they do today.

    Can be called again, at any time, and while runs are under way. `dry_run` only says what it would do. `decode`: look
    at clips where that alone tells what a paid answer is about. `tell` hears of every artifact.
    """
    done, items = Upgraded(), Items(store)
    found = _artifacts(store, done)
    for stage in STAGES:
        for earlier in found.get(stage, {}).values():
            earlier.may_decode = decode
            earlier.needs = {
                need: found[need][digest] for need, digest in earlier.inputs.items() if digest in found.get(need, {})
            }
            if stage in _HAVE_ITEMS and not _is_current(earlier):
                done.left[f"{stage} artifacts", "they are older than what could be used; they can be looked at"] += 1
            elif stage in _HAVE_ITEMS:
                tell(f"{stage}  {earlier.prefix}")
                _make(earlier, items, done, dry_run=dry_run)
            else:
                done.left[f"{stage} artifacts", "they can be looked at, and are made again where a run wants them"] += 1
    _point(store, found, done, dry_run=dry_run)
    return done


def _artifacts(store: Store, done: Upgraded) -> dict[str, dict[str, Earlier]]:
    """Those of schema 1, by stage and digest, finished or not."""
    wanted = _wanted(store)
    found: dict[str, dict[str, Earlier]] = defaultdict(dict)
    for place, group in groupby(store.list("artifacts/"), lambda entry: tuple(entry.key.split("/")[1:3])):
        keys = [entry.key for entry in group]
        if len(place) != 2 or place[0] not in STAGES:
            continue
        stage, digest = place
        prefix = artifact_prefix(stage, digest)
        if prefix + MANIFEST in keys:
            try:
                manifest = Manifest.model_validate_json(store.get(prefix + MANIFEST))
            except (NoSuchObject, ValidationError):
                done.left[f"{stage} artifacts", "the manifest cannot be read"] += 1
                continue
            if manifest.schema_version < SCHEMA_VERSION:
                found[stage][digest] = Earlier(store, stage, digest, manifest.spec, manifest.inputs, manifest)
        elif any(key.startswith(f"{prefix}parts/") for key in keys):
            pointer = wanted.get(place)
            if pointer is None:
                done.left[f"{stage} artifacts", "not finished, and no run says what was asked"] += 1
            else:
                found[stage][digest] = Earlier(store, stage, digest, pointer.spec, pointer.inputs)
    done.num_artifacts = sum(map(len, found.values()))
    return found


def _is_current(earlier: Earlier) -> bool:
    """Whether it is of the last version that wrote schema 1. Its address says so, where there is no manifest."""
    if earlier.manifest is not None:
        return earlier.manifest.stage_version == _STAGE_VERSION
    asked = {
        "schema": 1,
        "stage": earlier.stage,
        "version": _STAGE_VERSION,
        "spec": earlier.spec,
        "inputs": earlier.inputs,
    }
    return hashlib.sha256(canonical_json(asked)).hexdigest()[:32] == earlier.digest


def _make(earlier: Earlier, items: Items, done: Upgraded, *, dry_run: bool) -> None:
    module = importlib.import_module(f"bricks_core.stages.{earlier.stage}.earlier")
    what = f"{earlier.stage} artifacts"
    try:
        some = _derived(module.derived(earlier), done)
        while chunk := list(islice(some, _CHUNK)):
            _put(chunk, items, done, dry_run=dry_run)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        done.left[what, f"their settings are not those of today ({where})"] += 1
    except (CorruptManifest, AlteredObject, NoSuchObject, KeyError) as error:
        done.left[what, f"they cannot be read ({error})"] += 1


def _derived(some: Iterable[Derived | Left], done: Upgraded) -> Iterator[Derived]:
    for each in some:
        if isinstance(each, Left):
            done.left[KINDS[each.what].what if each.what in KINDS else each.what, each.why] += 1
        elif KINDS[each.recipe.key.kind].version != _ANSWERED_BY:
            done.left[KINDS[each.recipe.key.kind].what, "the same would get another answer today"] += 1
        else:
            yield each


def _put(chunk: list[Derived], items: Items, done: Upgraded, *, dry_run: bool) -> None:
    by_key = {each.recipe.key: each for each in chunk}
    there = items.load(by_key)
    new = [each for key, each in by_key.items() if key not in there]
    done.there.update(key.kind for key in there)
    done.made.update(each.recipe.key.kind for each in new)

    def put(each: Derived) -> None:
        items.put(each.recipe, each.answer, each.objects, by=each.by, cost=each.cost)

    if not dry_run:
        in_threads(put, new, NUM_AT_ONCE)


def _point(store: Store, found: dict[str, dict[str, Earlier]], done: Upgraded, *, dry_run: bool) -> None:
    """Runs that have no set yet get one of what they pointed to."""
    for run, group in groupby(store.list("runs/"), lambda entry: entry.key.split("/")[1]):
        keys = {entry.key for entry in group}
        before = {
            stage: _pointer(store, f"runs/{run}/{stage}.json") for stage in STAGES if f"runs/{run}/{stage}.json" in keys
        }
        stages = {
            stage: pointer
            for stage, pointer in before.items()
            if pointer is not None and pointer.digest in found.get(stage, {})
        }
        if not stages or read_points(store, run).number:
            continue
        done.runs.append(run)
        if not dry_run:
            points = Points(number=1, at=datetime.now(UTC), stages=stages)
            store.put(f"{points_place(run)}{1:08d}.json", points.model_dump_json(indent=1).encode(), if_absent=True)


def _wanted(store: Store) -> dict[tuple[str, ...], Pointer]:
    """What runs had begun, by stage and digest."""
    found: dict[tuple[str, ...], Pointer] = {}
    for entry in store.list("runs/"):
        parts = entry.key.split("/")
        if len(parts) == 4 and parts[2] == "wanted" and (pointer := _pointer(store, entry.key)) is not None:
            found[pointer.stage, pointer.digest] = pointer
    return found


def _pointer(store: Store, key: str) -> Pointer | None:
    """A pointer of schema 1, which knew no cache key."""
    try:
        value: Any = json.loads(store.get(key))
        return Pointer.model_validate({"cache_key": "", **value})
    except (NoSuchObject, ValueError, TypeError):  # pydantic's is a ValueError
        return None
