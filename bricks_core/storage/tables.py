"""Rows to Parquet and back. A row class is its table's schema; nothing is inferred from the data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from bricks_core.errors import CorruptManifest
from bricks_core.spec.strict import Row

if TYPE_CHECKING:  # imported where it is used: 45 MB that whoever asks for manifests alone (the controller) can spare
    import pyarrow as pa

R = TypeVar("R", bound=Row)

ROWS_PER_GROUP = 4096


def schema_of(row: type[Row]) -> pa.Schema:
    """The Parquet schema of a row class: its fields in their order, none of them nullable."""
    import pyarrow as pa

    hints = get_type_hints(row)
    return pa.schema([pa.field(name, _arrow_type(hints[name]), nullable=False) for name in row.model_fields])


def write_rows(path: Path, row: type[R], rows: Iterable[R]) -> int:
    """Write a table, a row group at a time, so that memory does not grow with it. Returns the number of rows.

    The same rows make the same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(row)
    num_rows = 0
    rows = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            # A row's fields are plain values, or lists of them: no need to have each copied as model_dump does.
            writer.write_table(pa.Table.from_pylist([vars(each) for each in group], schema=schema))
            num_rows += len(group)
    return num_rows


def read_rows(path: Path, row: type[R]) -> Iterator[R]:
    """The rows of a table, a row group at a time.

    Raises:
        CorruptManifest: the file is not such a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_GROUP):
                yield from map(row.model_validate, batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptManifest(f"{path.name} is no table of {row.__name__} rows: {error}".rstrip(".") + ".") from error


def read_head(path: Path, num_rows: int) -> list[dict[str, Any]]:
    """The first rows of a table, with whatever columns it has.

    Raises:
        CorruptManifest: the file is no table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(max(1, num_rows)):
                return list(batch.to_pylist()[:num_rows])
    except (pa.ArrowException, OSError) as error:
        raise CorruptManifest(f"{path.name} is no table: {error}".rstrip(".") + ".") from error
    return []


def read_columns(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """Some columns of a table, row by row: also of one that another version wrote, with other columns beside them.

    Raises:
        CorruptManifest: the file is no table, or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if missing := set(names) - set(file.schema_arrow.names):
                raise CorruptManifest(f"{path.name} has no column {min(missing)}.")
            for batch in file.iter_batches(ROWS_PER_GROUP, columns=names):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorruptManifest(f"{path.name} is no table: {error}".rstrip(".") + ".") from error


def read_where(path: Path, names: list[str], **wanted: Collection[str]) -> list[dict[str, Any]]:
    """Some columns of the rows of which one of the `wanted` columns has one of its values (none wanted: of all rows),
    with whatever columns the table has: None stands for those that it lacks.

    Only these columns are read, and only these rows become Python's.

    Raises:
        CorruptManifest: the file is no table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = set(file.schema_arrow.names)
            table = file.read(columns=sorted(there & {*names, *wanted}))
    except (pa.ArrowException, OSError) as error:
        raise CorruptManifest(f"{path.name} is no table: {error}".rstrip(".") + ".") from error
    if wanted:
        mask = pa.array([False] * len(table), pa.bool_())
        for name, values in wanted.items():
            if name in there and values:
                mask = pc.or_(mask, pc.is_in(table[name], value_set=pa.array(sorted(values), table[name].type)))
        table = table.filter(mask)
    return [{name: row.get(name) for name in names} for row in table.to_pylist()]


@dataclass(frozen=True)
class Changed:
    """What became of a table's rows."""

    is_changed: bool
    num_gone: int


def change_rows(path: Path, to: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Changed:
    """Write a table again with other rows, a row group at a time; `change` gives what a row is to be, or None: it goes.
    Its columns stay, also those of another version.

    Raises:
        CorruptManifest: the file is no table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_gone, is_changed = 0, False
    try:
        with pq.ParquetFile(path) as file, pq.ParquetWriter(to, file.schema_arrow, compression="zstd") as writer:
            for batch in file.iter_batches(ROWS_PER_GROUP):
                before = batch.to_pylist()
                after = [row for each in before if (row := change(each)) is not None]
                num_gone += len(before) - len(after)
                is_changed = is_changed or after != before
                writer.write_table(pa.Table.from_pylist(after, schema=file.schema_arrow))
    except (pa.ArrowException, OSError) as error:
        raise CorruptManifest(f"{path.name} is no table: {error}".rstrip(".") + ".") from error
    return Changed(is_changed, num_gone)


def _arrow_type(annotation: Any) -> pa.DataType:
    import pyarrow as pa

    origin = get_origin(annotation)
    if origin is Literal:
        return pa.string()
    if origin is list:
        return pa.list_(pa.field("item", _arrow_type(get_args(annotation)[0]), nullable=False))
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation]
