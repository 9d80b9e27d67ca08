"""How far a running stage is, out of the heartbeats that its shards leave in the store (progress.py writes them)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from bricks_core.controller.status import StageProgress, clipped
from bricks_core.errors import NoSuchObject
from bricks_core.storage.store import Store

MAX_READ = 512
"""Heartbeats read at a time: a stage may have thousands of shards, and the rest are like these."""
_THREADS = 16
LONGEST_S = 10 * 365 * 86_400
"""An end further away is not told."""


@dataclass(frozen=True)
class Heartbeat:
    """What one shard of a stage told last."""

    state: str
    done: int
    total: int
    unit: str
    note: str
    rate_per_s: float
    time: datetime


def read_heartbeats(store: Store, run: str, stage: str) -> list[Heartbeat]:
    """What the shards of a stage of a run told last; what cannot be read is left out, as it is only a report."""
    mine = re.compile(rf"runs/{re.escape(run)}/status/{stage}(-\d+)?\.json")
    keys = [entry.key for entry in store.list(f"runs/{run}/status/{stage}") if mine.fullmatch(entry.key)][:MAX_READ]
    if not keys:
        return []
    with ThreadPoolExecutor(min(_THREADS, len(keys))) as pool:
        return [beat for beat in pool.map(lambda key: _read(store, key), keys) if beat is not None]


def _read(store: Store, key: str) -> Heartbeat | None:
    try:
        told = json.loads(store.get(key))
        return Heartbeat(
            state=str(told["state"]),
            done=max(0, int(told["done"])),
            total=max(0, int(told["total"])),
            unit=str(told["unit"]),
            note=str(told["note"]),
            rate_per_s=max(0.0, float(told["rate_per_s"])),
            time=datetime.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC),
        )
    except (NoSuchObject, ValueError, KeyError, TypeError):
        return None


def progress_of(beats: Iterable[Heartbeat], *, num_shards: int, since: datetime) -> StageProgress | None:
    """The shards' heartbeats as one, or None while there is none from this try (`since` it was made)."""
    beats = [beat for beat in beats if beat.time >= since and beat.total > 0]
    if not beats:
        return None
    done = sum(beat.done for beat in beats)
    total = sum(beat.total for beat in beats)
    if len(beats) < num_shards:
        total = round(total * num_shards / len(beats))
    rate = sum(beat.rate_per_s for beat in beats if beat.state == "running")
    last = max(beats, key=lambda beat: beat.time)
    # What is done may be more than was thought; and a pace of next to nothing has no end that a number could hold.
    eta_s = round(max(0, total - done) / rate) if rate * LONGEST_S > total else None
    return StageProgress(
        done=done,
        total=total,
        unit=clipped(last.unit, 32),
        per_second=f"{rate:.3g}" if rate > 0 else "",
        per_hour=f"{rate * 3600:.0f} {clipped(last.unit, 32)}/h" if rate > 0 else "",
        eta_s=eta_s,
        eta="" if eta_s is None else duration(eta_s),
        note=clipped(last.note, 128),
        told_at=f"{last.time:%Y-%m-%dT%H:%M:%SZ}",
    )


def duration(seconds: float) -> str:
    """For people, to the second, the minute or the hour: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
