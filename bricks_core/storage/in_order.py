"""Rows in the order of their ids, however many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from bricks_core.spec.strict import Row

R = TypeVar("R", bound=Row)


def in_order(rows: Iterable[R], row: type[R]) -> Iterator[R]:
    """The rows sorted by id, sorted on disk: memory does not grow with them. Of two with one id the first stays."""
    # No name: SQLite's file of its own, which grows on disk and is gone when closed. Rows are appended and sorted once,
    # at the end: that takes half the time of a table that is always in order.
    with closing(sqlite3.connect("")) as table:
        table.execute("CREATE TABLE unsorted (id TEXT, row TEXT)")
        table.executemany("INSERT INTO unsorted VALUES (?, ?)", ((each.id, each.model_dump_json()) for each in rows))
        last = None
        for id_, text in table.execute("SELECT id, row FROM unsorted ORDER BY id, rowid"):
            if id_ != last:
                yield row.model_validate_json(text)
            last = id_
