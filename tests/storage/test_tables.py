"""Tables: what is written is read again, with the types that the row class says."""

from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import CorruptManifest
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Row
from bricks_core.storage import tables
from bricks_core.storage.tables import read_columns, read_rows, schema_of, write_rows


class Thing(Row):
    number: int
    share: float
    good: bool
    kind: Literal["a", "b"]
    words: list[str]


THINGS = st.lists(
    st.builds(
        Thing,
        id=st.text(max_size=8),
        number=st.integers(-(2**63), 2**63 - 1),
        share=st.floats(allow_nan=False),
        good=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        words=st.lists(st.text(max_size=5), max_size=3),
    ),
    max_size=20,
)


@given(rows=THINGS, group=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_again_whatever_the_size_of_a_group(tmp_path_factory, rows, group):
    file = tmp_path_factory.mktemp("table") / "things.parquet"
    before, tables.ROWS_PER_GROUP = tables.ROWS_PER_GROUP, group
    try:
        assert write_rows(file, Thing, iter(rows)) == len(rows)
        assert list(read_rows(file, Thing)) == rows
    finally:
        tables.ROWS_PER_GROUP = before


def test_the_same_rows_make_the_same_bytes(tmp_path):
    rows = [Thing(id=str(i), number=i, share=i / 3, good=True, kind="a", words=["x"] * i) for i in range(50)]
    for name in ("one", "two"):
        write_rows(tmp_path / name, Thing, rows)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_empty_table_still_has_its_columns(tmp_path):
    write_rows(tmp_path / "empty", Thing, [])
    assert pq.read_schema(tmp_path / "empty").equals(schema_of(Thing))


@pytest.mark.parametrize("row", [row for stage in STAGES.values() for row in stage.tables.values()])
def test_every_row_class_of_the_contract_has_a_schema(row):
    assert schema_of(row).names[0] == "id"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-20], lambda data: b"no table at all"])
def test_a_damaged_table_is_named(tmp_path, damage):
    file = Path(tmp_path / "things.parquet")
    write_rows(file, Thing, [])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptManifest, match=r"things\.parquet is no table of Thing rows"):
        list(read_rows(file, Thing))


def test_some_columns_are_read_of_a_table_whose_others_are_unknown(tmp_path):
    rows = [Thing(id=str(i), number=i, share=i / 3, good=True, kind="a", words=[]) for i in range(5)]
    write_rows(tmp_path / "things.parquet", Thing, rows)
    found = list(read_columns(tmp_path / "things.parquet", ["kind", "number"]))
    assert found == [{"kind": "a", "number": number} for number in range(5)]
    with pytest.raises(CorruptManifest, match=r"things\.parquet has no column weight"):
        next(read_columns(tmp_path / "things.parquet", ["kind", "weight"]))
    (tmp_path / "things.parquet").write_bytes(b"no table at all")
    with pytest.raises(CorruptManifest, match=r"things\.parquet is no table"):
        next(read_columns(tmp_path / "things.parquet", ["kind"]))
