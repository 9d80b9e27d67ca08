"""Who encodes what, and how it gets into the store: pending work is claimed, put into packs, and recorded.

A pack is written whole before the records of what is in it, so that a kill loses at most the pack in hand. Its name is
made of what is in it: more work makes another pack, and no pack that is there is ever written again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar, cast

from bricks_core.spec.items import ItemKey, Recipe
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.strict import Strict
from bricks_core.stages.latents.sources import batch_number
from bricks_core.storage.claim import names_of
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.shards import pack_key
from bricks_core.storage.sharing import Shared
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")

RECORDS_AT_ONCE = 16
_POLL_S, _MAX_POLL_S = 0.5, 5.0


class PackedTask(Protocol):
    """What goes into a pack."""

    @property
    def key(self) -> ItemKey: ...
    @property
    def keys(self) -> tuple[ItemKey, ...]: ...
    def num_bytes(self, spec: LatentsSpec) -> int: ...


T = TypeVar("T", bound=PackedTask)


def packs(
    work: Work, tasks: Iterable[T], spec: LatentsSpec, shape_of: Callable[[T], Hashable]
) -> Generator[list[T], None, None]:
    """The pending tasks, a pack's worth at a time, sorted by key; all of one shape, and all claimed until the next one.

    Whoever takes a pack has it in the store before asking for the next. What others are at is left to them; when
    nothing else is left, they are waited for, and what they gave up is done here.
    """
    left, pause_s, said = list(tasks), _POLL_S, ""
    while left:
        shared = Shared(
            work.claims,
            (([f"{each.key.kind}/{batch_number(each.key):02x}"], each) for each in left),
            lambda some: _done(work, some),
            wait=False,
            poll_s=_POLL_S,
            max_poll_s=_MAX_POLL_S,
            start=0.0,  # packs of the same work are the same packs
        )
        yield from _filled(shared, spec, shape_of)
        others = [each for each, _ in shared.left]
        left = [each for each, done in zip(others, _done(work, others), strict=True) if not done]
        if left:
            names = names_of(holder for _, holder in shared.left)
            if names != said:
                log.info("%s: waiting for %d that others are at: %s.", work.stage.name, len(left), names)
                said = names
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _MAX_POLL_S)


def _filled(shared: Shared[T], spec: LatentsSpec, shape_of: Callable[[T], Hashable]) -> Generator[list[T], None, None]:
    """Packs from what comes. At most one pack of every shape is begun, and its tasks claimed, at any time."""
    begun: dict[Hashable, list[T]] = {}
    sizes: dict[Hashable, int] = {}
    held: dict[ItemKey, T] = {}

    def full(shape: Hashable) -> Generator[list[T], None, None]:
        del sizes[shape]
        pack = begun.pop(shape)
        yield sorted(pack, key=lambda each: each.key)
        for each in pack:
            shared.finished(held.pop(each.key))

    try:
        with closing(cast(Generator[T, None, None], iter(shared))) as coming:
            for task in coming:
                held[task.key] = task
                shape, num_bytes = shape_of(task), task.num_bytes(spec)
                if shape in begun and sizes[shape] + num_bytes > spec.pack_bytes:
                    yield from full(shape)
                begun.setdefault(shape, []).append(task)
                sizes[shape] = sizes.get(shape, 0) + num_bytes
        for shape in list(begun):
            yield from full(shape)
    finally:
        for task in held.values():
            shared.finished(task)


def _done(work: Work, tasks: Sequence[PackedTask]) -> list[bool]:
    """Which tasks others have done since."""
    there = work.items.load(key for each in tasks for key in each.keys)
    done = [there.issuperset(each.keys) for each in tasks]
    if any(done):
        work.progress.advance(sum(done))
    return done


def store_pack(
    work: Work,
    file: Path,
    keys: Sequence[ItemKey],
    made: Iterable[tuple[Recipe, Strict]],
    by: str,
    seconds: float,
    note: str = "",
) -> None:
    """Put a pack into the store, then the records of what is in it, in the order of `keys`.

    `by`: the encoder. `seconds`: what all of it took.
    """
    stored = work.items.put_file(pack_key(keys), file, ".bin")
    cost = {"seconds": round(seconds / len(keys), 6)}

    def put(each: tuple[Recipe, Strict]) -> None:
        work.items.put(*each, [stored], by=by, cost=cost)

    in_threads(put, made, RECORDS_AT_ONCE)
    work.progress.advance(len(keys), note)
