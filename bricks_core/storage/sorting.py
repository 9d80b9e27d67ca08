"""Rows in the order of their ids, however many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from bricks_core.spec.strict import Row

R = TypeVar("R", bound=Row)


def by_id(rows: Iterable[R], row: type[R]) -> Iterator[R]:
    """The same rows sorted by id, one at a time in memory: SQLite sorts them in a file of its own.

    Read to the end or close it: the file goes with it.
    """
    with closing(sqlite3.connect("")) as sorter:  # no name: grows on disk, not in memory, and vanishes when closed
        sorter.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, row TEXT) WITHOUT ROWID")
        sorter.executemany("INSERT INTO rows VALUES (?, ?)", ((each.id, each.model_dump_json()) for each in rows))
        for (each,) in sorter.execute("SELECT row FROM rows ORDER BY id"):
            yield row.model_validate_json(each)
