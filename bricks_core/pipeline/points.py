"""What a run points to: one consistent set of artifacts, written anew whenever one of them is another.

runs/<run>/points/00000007.json     put if absent, so that of two writers neither loses the other's word
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, ValidationError

from bricks_core.errors import DataError, NoSuchObject, TryLater
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Strict
from bricks_core.storage.began import keep_only_now
from bricks_core.storage.store import Store

_NAME = re.compile(r"runs/[^/]+/points/(\d{8})\.json")
_TRIES = 50
_END = 10**8
"""Sets are numbered below it."""


class Pointer(Strict):
    """One of a run's artifacts, and what it was asked for."""

    stage: str
    digest: str = Field(pattern="^[0-9a-f]+$")  # a part of keys of the store
    cache_key: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    """Digests of the artifacts that it reads, and fingerprints of what lies outside the store."""


class Points(Strict):
    """A run's artifacts, by stage."""

    number: int = Field(0, ge=0, lt=_END)
    at: datetime = datetime.min.replace(tzinfo=UTC)
    stages: dict[str, Pointer] = {}

    def stale(self) -> dict[str, str]:
        """Stages whose artifact was made from others than the run has now, each with why."""
        found: dict[str, str] = {}
        for name, stage in STAGES.items():
            if name not in self.stages:
                continue
            for need in stage.needs:
                now = self.stages.get(need)
                if need in found:
                    found[name] = f"{need} is stale"
                elif now is None or self.stages[name].inputs.get(need) != now.digest:
                    found[name] = f"{need} has changed since"
                if name in found:
                    break
        return found


def points_place(run: str) -> str:
    """Where a run's sets lie."""
    return f"runs/{run}/points/"


def run_names(store: Store) -> list[str]:
    """All runs of a store."""
    return sorted({entry.key.split("/")[1] for entry in store.list("runs/")})


def read_points(store: Store, run: str) -> Points:
    """The newest set of a run; an empty one when it has none that can be read."""
    return _newest(store, run)[0]


def read_pointer(store: Store, run: str, stage: str) -> Pointer | None:
    """The artifact a run had last, or None."""
    return read_points(store, run).stages.get(stage)


def point(run: str, store: Store, *pointers: Pointer) -> None:
    """Let a run point to artifacts. Written only when it says something new, so that nothing to do writes nothing."""
    _change(run, store, lambda stages: stages | {each.stage: each for each in pointers})


def forget(run: str, store: Store, stages: Iterable[str]) -> None:
    """Let a run point no more to what these stages left, so that they are done again, and no item of an earlier version
    counts for it. The artifacts stay."""
    names = set(stages)
    for name in sorted(names):
        keep_only_now(store, run, STAGES[name])
    _change(run, store, lambda now: {name: pointer for name, pointer in now.items() if name not in names})


def _change(run: str, store: Store, change: Callable[[dict[str, Pointer]], dict[str, Pointer]]) -> None:
    for _ in range(_TRIES):
        now, last_number = _newest(store, run)
        stages = change(now.stages)
        # Behind a damaged set the same is said anew, so that the newest one can be read again.
        if stages == now.stages and now.number == last_number:
            return
        if last_number + 1 == _END:
            raise DataError(f"{points_place(run)}{last_number:08d}.json has the last number there is: delete it.")
        new = Points(number=last_number + 1, at=datetime.now(UTC), stages=stages)
        data = (new.model_dump_json(indent=1) + "\n").encode()
        if store.put(f"{points_place(run)}{new.number:08d}.json", data, if_absent=True):
            return
    raise TryLater(f"Others write what run {run} points to, all the time: start again later.")


def _newest(store: Store, run: str) -> tuple[Points, int]:
    """The newest set that can be read, and the last number that is taken: a damaged set keeps its number."""
    found = [match for entry in store.list(points_place(run)) if (match := _NAME.fullmatch(entry.key))]
    last_number = int(found[-1][1]) if found else 0
    for match in reversed(found):
        try:
            return Points.model_validate_json(store.get(match[0])), last_number
        except (NoSuchObject, ValidationError):
            continue
    return Points(), last_number
