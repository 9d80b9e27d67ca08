"""A claim: what says in the store who is at some work, and whether that process still runs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from bricks_core.spec.strict import Strict

MAX_CLAIM_BYTES = 10_000
_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # what would move the cursor of whoever is told
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"


class Claim(Strict):
    """The content of a claim's object. Written by its owner alone, anew at every beat."""

    owner: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Random: one `Claims` object of one process."""
    host: str = Field(max_length=255, pattern=_PRINTABLE)
    pid: int = Field(ge=1, le=2**31 - 1)
    process_start: int | None = Field(None, ge=0, lt=2**63)
    """When the process began, in ticks since boot (Linux): another process with the same number has another one."""
    boot_id: str | None = Field(None, max_length=64, pattern=_PRINTABLE)
    pid_namespace: int | None = Field(None, ge=0, lt=2**63)
    """Process numbers mean the same within one boot and one such namespace (a container has its own)."""
    since: str = Field(max_length=40, pattern=_PRINTABLE)
    """ISO 8601, by the owner's clock; for people only."""
    beat: int = Field(0, ge=0, lt=2**63)
    """Counts renewals, so that a renewed claim has another content."""
    what: str = Field("", max_length=500, pattern=_PRINTABLE)
    """What its owner is doing, in words."""

    @classmethod
    def of_this_process(cls, owner: str, what: str) -> Self:
        return cls(
            owner=owner,
            host=_printable(socket.gethostname(), 255),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            what=_printable(what, 500),
        )

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """What the store holds; None when it is no claim."""
        try:
            return cls.model_validate_json(data) if len(data) <= MAX_CLAIM_BYTES else None
        except ValidationError:
            return None

    @property
    def is_dead(self) -> bool:
        """Whether its owner is known not to run any more. What runs elsewhere is not known."""
        here = self.process_start is not None and self.boot_id is not None and self.boot_id == _boot_id()
        return here and self.pid_namespace == _pid_namespace() and not _runs(self.pid, self.process_start)


@dataclass(frozen=True)
class Holder:
    """Who is at it, as a person is told."""

    owner: str | None
    """None: its claim cannot be read."""
    host: str
    pid: int
    """0 when unknown."""
    since: str
    what: str
    is_here: bool
    """Runs on this machine."""
    unreadable: str = ""
    """Key of the claim's object where it cannot be read; empty where it can, or is not known."""

    @classmethod
    def of(cls, claim: Claim | None, key: str = "") -> Self:
        """`key`: of the claim's object."""
        if claim is None:
            return cls(None, "unknown", 0, "", "", False, key)
        if claim.boot_id is not None and _boot_id() is not None:
            is_here = claim.boot_id == _boot_id()
        else:
            is_here = claim.host == _printable(socket.gethostname(), 255)
        return cls(claim.owner, claim.host, claim.pid, claim.since, claim.what, is_here)

    def __str__(self) -> str:
        if self.owner is None:
            if not self.unreadable:
                return "an owner whose claim cannot be read"
            work = "the run" if self.unreadable.startswith("claims/run/") else "this work"
            return f"an unknown owner ({self.unreadable} cannot be read: delete it if nobody is at {work})"
        where = f"process {self.pid} on {'this machine, ' if self.is_here else ''}{self.host}"
        return f"{self.what} ({where}, since {self.since})" if self.what else f"{where}, since {self.since}"


def names_of(holders: Iterable[Holder]) -> str:
    """The processes that hold claims, each told once, with the earliest time: 'A; B'."""
    named: dict[tuple[str, ...], Holder] = {}
    for holder in sorted(holders, key=lambda each: (each.since, str(each))):
        unknown = (str(holder),)
        named.setdefault(unknown if holder.owner is None else (holder.host, str(holder.pid)), holder)
    return "; ".join(sorted(map(str, named.values())))


def _printable(text: str, max_length: int) -> str:
    """Also of a host name or words that hold lone surrogates, which JSON has no bytes for."""
    return re.sub(_UNPRINTABLE, " ", text.encode("utf-8", "replace").decode())[:max_length]


@cache
def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()[:64] or None
    except (OSError, ValueError):
        return None


def _pid_namespace() -> int | None:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def _stat_fields(pid: int) -> list[str] | None:
    """Fields 3 and on of /proc/<pid>/stat (proc_pid_stat(5)); None where there is no such thing, or not for us."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    except (OSError, ValueError):
        return None


def _process_start(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and len(fields) > 19 and fields[19].isdecimal() else None


def _runs(pid: int, start: int | None) -> bool:
    """Whether this very process runs; where that cannot be told, it does. One that nobody has waited for is over."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's: it is there
    fields: list[Any] | None = _stat_fields(pid)
    if not fields:  # ended just now, or hidden from us (hidepid)
        return True
    return fields[0] not in ("Z", "X") and _process_start(pid) in (None, start)
