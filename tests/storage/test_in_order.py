"""Rows are sorted by id on disk, and of two with one id the first stays."""

from hypothesis import given
from hypothesis import strategies as st

from bricks_core.spec.clip import Shot
from bricks_core.storage.in_order import in_order


@given(ids=st.lists(st.text("0123456789abcdef", min_size=1, max_size=3), max_size=50))
def test_rows_come_in_the_order_of_their_ids_and_of_two_with_one_id_the_first_stays(ids):
    rows = [Shot(id=id_, video_id="v", first_frame=n, end_frame=n + 1, state="clip") for n, id_ in enumerate(ids)]
    first = {row.id: row for row in reversed(rows)}
    assert list(in_order(rows, Shot)) == [first[id_] for id_ in sorted(first)]
