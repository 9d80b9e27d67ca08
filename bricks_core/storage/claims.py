"""Claims: who is at which work, so that many processes, shards, runs and clusters share it instead of doing it twice.

A claim is on a *batch* of work, such as `answer/3fa`, and is an object: `claims/<batch>-<generation>.json`.

- Taken by putting generation 1 if it is absent. A claim whose owner is gone is taken over by putting the next
  generation if that is absent, so that one of many takers wins. Whoever has put a claim looks again, and gives way
  (deletes it) if anything else is there than the very claims that it saw before. So of two that put different
  generations at the same time, at most one keeps its claim; now and then neither does, and both come again.
- Renewed every 20 s, by a thread, with another content.
- Over when a watcher has seen it unchanged for 90 s by the watcher's own clock: no two machines' clocks are compared.
  Of the time between two looks at most a third of that counts, so that a watcher that slept, or could not reach the
  store any more than the owner could, gives the owner time to come back. On the same machine, over at once when that
  process does not run any more (killed, and started again).

What is guaranteed: while no owner dies, stands still or is cut off from the store for more than a minute, nobody else
has its batch. What the worst case costs: an owner that was taken to be dead and comes back does what it had in flight a
second time, until its next renewal (`lost`). Never a wrong answer: items are put if absent, and the first one counts.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypeVar

from bricks_core.errors import BricksError, NoSuchObject
from bricks_core.storage.claim import MAX_CLAIM_BYTES, Claim, Holder
from bricks_core.storage.sharing import Keyed, Shared
from bricks_core.storage.store import Entry, Store

T = TypeVar("T")
log = logging.getLogger("bricks")

RENEW_S = 20.0
STALE_S = 90.0
_PREFIX_DIGITS = 3  # 4096 batches a kind: about 24 items in each of 100,000
_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# Exactly the names that `_key` gives: of another spelling of a number, the object would be one that nobody deletes.
_KEY = re.compile(rf"claims/({_BATCH.pattern})-((?!0+\.)[0-9]{{6}}|[1-9][0-9]{{6,}})\.json")
_TRIES = 8  # of a taker that finds another situation every time


def batch_of(kind: str, key: str) -> str:
    """The batch of an item: the same for everybody, whatever else they have to do."""
    return f"{kind}/{key[:_PREFIX_DIGITS]}"


def batch_of_claim(key: str) -> str | None:
    """The batch that an object of the store is a claim on; None when its name is none that a claim has."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


@dataclass(frozen=True)
class _Seen:
    """An object of a claim, as this watcher has seen it."""

    generation: int
    etag: str
    claim: Claim | None
    """None: it cannot be read, and belongs to nobody knows whom."""
    key: str
    looked_at: float
    unchanged_s: float = 0.0


@dataclass(eq=False)
class _Held:
    """A claim of ours."""

    batch: str
    generation: int
    claim: Claim
    written_at: float
    """By our clock, before it was written."""
    count: int = 1
    lost: bool = False
    released: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    """No renewal while it is released: it would bring it back."""

    @property
    def key(self) -> str:
        return _key(self.batch, self.generation)


class Claims:
    """The claims of this process in a store. Safe to use from many threads. A forked child holds nothing.

    `what` tells people what this process is doing. The rest is for tests: a clock, and the intervals in seconds.
    """

    def __init__(
        self,
        store: Store,
        what: str = "",
        *,
        now: Callable[[], float] = time.monotonic,
        renew_s: float = RENEW_S,
        stale_s: float = STALE_S,
    ):
        self._store = store
        self._what = what
        self._now = now
        self._renew_s = renew_s
        self._stale_s = stale_s
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self.owner = secrets.token_hex(16)
        self._held: dict[str, _Held] = {}
        self._watched: dict[str, dict[int, _Seen]] = {}
        """By batch and generation: claims of others, as they were at the last look."""
        self._lock = threading.RLock()
        self._stop: threading.Event | None = None

    def take(self, batch: str) -> Holder | None:
        """None: it is ours now, until `release` (one for each `take`). Else who has it.

        To see that a holder elsewhere is gone, look again and again: every 30 s at least.

        Raises:
            StoreUnavailable, StoreDenied, ...: as the store does; then it is not ours.
        """
        _check(batch)
        with self._lock:
            held = self._held.get(batch)
            if held is not None and not held.lost:
                held.count += 1
                return None
            # What was never seen taken is most likely free: two requests instead of three.
            before = self._look(batch) if batch in self._watched else {}
            for _ in range(_TRIES):
                top = before[max(before)] if before else None
                if top is not None and top.claim is not None and top.claim.owner == self.owner:
                    # Left of a request that failed. Its age is not known, so that it is looked at before it is deleted.
                    self._hold(_Held(batch, top.generation, top.claim, self._now() - self._stale_s))
                    return None
                if top is not None and not self._is_over(top):
                    return Holder.of(top.claim, top.key)
                generation = top.generation + 1 if top is not None else 1
                claim, written_at = Claim.of_this_process(self.owner, self._what), self._now()
                held = _Held(batch, generation, claim, written_at)
                if self._put(batch, generation, claim, if_absent=True) and self._settle(held, before):
                    return None
                before = self._look(batch)
            last = before[max(before)] if before else None
            return Holder.of(last.claim, last.key) if last is not None else Holder.of(None)

    def release(self, batch: str) -> None:
        """Give it back. Does not fail: where the store cannot be reached, the claim is over after a while."""
        with self._lock:
            held = self._held.get(batch)
            if held is None:
                return
            held.count -= 1
            if not held.count:
                del self._held[batch]
                self._remove(held)

    def holder(self, batch: str) -> Holder | None:
        """Who has it (perhaps this process); None when nobody has, or is known to be gone."""
        _check(batch)
        with self._lock:
            seen = self._look(batch)
            top = seen[max(seen)] if seen else None
            return None if top is None or self._is_over(top) else Holder.of(top.claim, top.key)

    def lost(self, batch: str) -> bool:
        """Whether it was ours, and another took this process to be gone."""
        held = self._held.get(batch)
        return held is not None and held.lost

    @property
    def held(self) -> list[str]:
        """The batches that are ours."""
        return sorted(batch for batch, held in tuple(self._held.items()) if not held.lost)

    def each(
        self,
        tasks: Iterable[T],
        keys_of: Callable[[T], Iterable[Keyed]],
        is_done: Callable[[list[T]], list[bool]],
        *,
        wait: bool = True,
        poll_s: float = 1.0,
        max_poll_s: float = 5.0,
    ) -> Shared[T]:
        """The tasks that nobody else does, one by one; see `Shared`. With `wait=False`, `left` holds the others'."""
        return Shared(
            self,
            [(sorted({batch_of(key.kind, key.key) for key in keys_of(task)}), task) for task in tasks],
            is_done,
            wait=wait,
            poll_s=poll_s,
            max_poll_s=max_poll_s,
        )

    def take_or_wait(
        self,
        batch: str,
        is_done: Callable[[], bool],
        on_wait: Callable[[Holder], None] = lambda holder: None,
        *,
        poll_s: float = 1.0,
        max_poll_s: float = 5.0,
    ) -> bool:
        """True: it is ours, and not done. False: another has done it. `on_wait` is told who has it, at every change."""
        told: Holder | None = None
        while not is_done():
            holder = self.take(batch)
            if holder is None:
                if is_done():  # by another, between the look and the take
                    self.release(batch)
                    return False
                return True
            if holder != told:
                on_wait(holder)
                told = holder
            time.sleep(poll_s)
            poll_s = min(poll_s * 1.5, max_poll_s)
        return False

    def renew(self) -> None:
        """Renew what is held, now. The thread does it; it never fails, and tries on while the store is away."""
        for held in tuple(self._held.values()):
            with held.lock:
                if held.released or held.lost:
                    continue
                try:
                    self._renew_one(held)
                except Exception as error:
                    log.debug("The claim on %s could not be renewed: %s", held.batch, error)

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            if self._stop is not None:
                self._stop.set()
                self._stop = None
            for held in tuple(self._held.values()):
                self._remove(held)
            self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self, held: _Held, before: dict[int, _Seen]) -> bool:
        """Our claim is written: keep it, or give way where anything is there that was not before."""
        try:
            others = self._look(held.batch)
            mine = others.pop(held.generation, None)
            # A server that looks and writes in two steps may tell two takers that they were first: the last one was.
            if mine is None or mine.claim is None or mine.claim.owner != self.owner:
                return False
            if any(one not in before or before[one].etag != others[one].etag for one in others):
                self._store.delete([held.key])
                return False
            if others:
                self._store.delete([_key(held.batch, one) for one in others])
        except BaseException:
            with suppress(BricksError):
                self._store.delete([held.key])
            raise
        self._watched.pop(held.batch, None)
        self._hold(held)
        return True

    def _hold(self, held: _Held) -> None:
        before = self._held.get(held.batch)  # lost, and now ours again: who took it before still has to release it
        held.count += before.count if before is not None else 0
        self._held[held.batch] = held
        if self._stop is None:
            self._stop = threading.Event()
            threading.Thread(target=self._renewing, args=(self._stop,), name="claims", daemon=True).start()

    def _renewing(self, stop: threading.Event) -> None:
        while not stop.wait(self._renew_s):
            self.renew()

    def _renew_one(self, held: _Held) -> None:
        higher = [one for one in self._listed(held.batch) if one > held.generation]
        mine = self._is_mine(held)
        if higher or not mine:
            held.lost = True
            if mine:
                self._store.delete([held.key])
            return
        claim, written_at = held.claim.model_copy(update={"beat": held.claim.beat + 1}), self._now()
        self._put(held.batch, held.generation, claim)
        held.claim, held.written_at = claim, written_at

    def _remove(self, held: _Held) -> None:
        with held.lock:
            held.released = True
            if held.lost:
                return
            try:
                # Nobody takes over what was written a moment ago: it needs no look.
                if self._now() - held.written_at < self._stale_s / 2 or self._is_mine(held):
                    self._store.delete([held.key])
            except BricksError as error:
                log.debug("The claim on %s could not be released: %s", held.batch, error)

    def _is_mine(self, held: _Held) -> bool:
        try:
            claim = Claim.read(self._store.get(held.key))
        except NoSuchObject:
            return False
        return claim is not None and claim.owner == self.owner

    def _put(self, batch: str, generation: int, claim: Claim, *, if_absent: bool = False) -> bool:
        return self._store.put(_key(batch, generation), claim.model_dump_json().encode(), if_absent=if_absent)

    def _is_over(self, seen: _Seen) -> bool:
        return seen.unchanged_s >= self._stale_s or (seen.claim is not None and seen.claim.is_dead)

    def _look(self, batch: str) -> dict[int, _Seen]:
        """What there is now, by generation; remembers since when it is unchanged."""
        before, found = self._watched.get(batch, {}), {}
        for generation, entry in self._listed(batch).items():
            now, known = self._now(), before.get(generation)
            if known is not None and known.etag == entry.etag:
                more_s = min(now - known.looked_at, self._stale_s / 3)
                found[generation] = replace(known, looked_at=now, unchanged_s=known.unchanged_s + more_s)
                continue
            try:
                claim = Claim.read(self._store.get(entry.key)) if entry.size_bytes <= MAX_CLAIM_BYTES else None
            except NoSuchObject:  # released just now
                continue
            found[generation] = _Seen(generation, entry.etag, claim, entry.key, now)
        if found:
            self._watched[batch] = found
        else:
            self._watched.pop(batch, None)
        return dict(found)

    def _listed(self, batch: str) -> dict[int, Entry]:
        matches = ((_KEY.fullmatch(entry.key), entry) for entry in self._store.list(f"claims/{batch}-"))
        return {int(match[2]): entry for match, entry in matches if match and match[1] == batch}


def _key(batch: str, generation: int) -> str:
    return f"claims/{batch}-{generation:06d}.json"


def _check(batch: str) -> None:
    if not _BATCH.fullmatch(batch):
        raise ValueError(f"{batch!r} is no batch: write a kind, a slash and a name")


_ALL: weakref.WeakSet[Claims] = weakref.WeakSet()


def _forked() -> None:
    """What the parent holds is the parent's; its thread and its locks are not with us."""
    for claims in _ALL:
        claims._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
