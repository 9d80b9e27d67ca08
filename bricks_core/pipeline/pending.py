"""What a limit stopped: how it is told, and how it is tried again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bricks_core.spec.manifest import Try
from bricks_core.spec.run import fields_at

TRY_AGAIN = "try again what a limit stopped"


def in_short(tries: Sequence[Try]) -> str:
    """Such as '3 pending: ingest.decode_timeout_s'; empty when nothing is."""
    limits = dict.fromkeys(name for each in tries for name in each.limits)
    return f"{len(tries):,} pending: {', '.join(limits)}" if tries else ""


def limits_of(each: Try) -> str:
    """Such as 'ingest.decode_timeout_s 60'."""
    return ", ".join(f"{name} {_number(limit)}" for name, limit in each.limits.items())


def to_try_again(tries: Iterable[Try]) -> list[str]:
    """What to override so that they are tried again: twice the limit, where it is a field of the run file."""
    most: dict[str, float] = {}
    for each in tries:
        for name, limit in each.limits.items():
            most[name] = max(limit, most.get(name, limit))
    return [f"{name}={_number(2 * limit)}" for name, limit in most.items() if _is_field(name)]


def _is_field(name: str) -> bool:
    section, _, field = name.partition(".")
    return field in fields_at(("spec", section))


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)
