"""How tables look on a terminal, in a pipe, and in a narrow window."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROW = 100
"""Columns of a terminal below which tables show only what nobody can do without."""
PIPED_WIDTH = 140


def console() -> Console:
    """Where tables go. A pipe or a log file has no width; addresses must not be broken in two there."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def grid(*columns: str, whole: Collection[str] = ()) -> Table:
    """An empty table; texts too long for their column go on in the next line, but in columns that stay `whole`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    return table


def facts(told: Mapping[str, str]) -> Table:
    """Names and what is known of them, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in told.items():
        table.add_row(Text(name, "bold"), Text(value or "—"))
    return table


def in_bytes(size_bytes: float) -> str:
    """12.3 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
