"""Intervals cover, are the same every time, and say what cannot be said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.errors import DataError
from bricks_core.report.intervals import Interval, difference, interval, joined, t_quantile

FINITE = st.floats(-1e6, 1e6)
DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
}


@pytest.mark.parametrize("num_groups", [3, 5, 24, 96])
@pytest.mark.parametrize("shape", DRAWS)
def test_of_100_repetitions_in_which_nothing_changed_90_to_99_are_within_noise(shape, num_groups):
    rng = np.random.default_rng(num_groups)
    inside = 0
    for _ in range(100):
        a, b = DRAWS[shape](rng, (2, num_groups))
        inside += not difference(a, b, num_draws=1000).leaves_out()
    assert 90 <= inside <= 99


@pytest.mark.parametrize("share_of_group", [0.0, 0.7, 1.0], ids=["no", "some", "all"])
def test_intervals_cover_where_seeds_of_a_prompt_have_much_in_common(share_of_group):
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(24), 4)
    inside = 0
    for _ in range(100):
        of_prompt, of_seed = rng.normal(size=(24, 1)), rng.normal(size=(24, 4))
        values = share_of_group * of_prompt + (1 - share_of_group) * of_seed
        inside += not interval(values.ravel(), groups, num_draws=1000).leaves_out()
    assert 90 <= inside <= 99


def test_seeds_of_one_prompt_are_no_evidence_of_their_own():
    rng = np.random.default_rng(1)
    prompts = rng.normal(size=12)
    values, groups = np.repeat(prompts, 8), np.repeat(np.arange(12), 8)
    found, alone = interval(values, groups), interval(prompts)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert found.num == 12


def test_a_change_that_is_there_is_found_and_has_its_sign():
    rng = np.random.default_rng(2)
    base = rng.normal(size=96)
    better = base + 0.5 + rng.normal(scale=0.3, size=96)
    found = difference(better, base, np.repeat(np.arange(24), 4))
    assert found.leaves_out()
    assert found.low < 0.5 < found.high
    assert found.low > 0
    turned = difference(base, better, np.repeat(np.arange(24), 4))
    assert turned.value == -found.value
    assert turned.leaves_out()


def test_what_pairs_have_in_common_is_no_noise():
    rng = np.random.default_rng(3)
    clip = rng.normal(scale=100, size=50)
    assert difference(clip + 1 + rng.normal(scale=0.1, size=50), clip).leaves_out()


def test_the_same_values_have_the_same_interval_whatever_the_groups_are_called():
    values = np.random.default_rng(4).normal(size=20)
    by_number = interval(values, [i // 2 for i in range(20)])
    assert by_number == interval(values, [f"prompt {i // 2:02d}" for i in range(20)])
    assert by_number == interval(list(values), np.repeat(np.arange(10), 2))


def test_more_groups_are_more_evidence():
    rng = np.random.default_rng(5)
    widths = [found.high - found.low for found in (interval(rng.normal(size=num)) for num in (3, 10, 40, 160))]
    assert widths == sorted(widths, reverse=True)


@given(st.lists(FINITE, min_size=2, max_size=20))
def test_the_value_lies_in_its_interval(values):
    found = interval(values, num_draws=200)
    assert found.low <= found.value <= found.high
    assert found.num == len(values)


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_the_interval_of_a_share_is_one_of_shares(hits):
    found = interval([float(hit) for hit in hits], num_draws=200, bounds=(0, 1))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high, "a few hits are no certainty"


def test_where_all_of_24_have_a_fact_one_in_nine_may_still_lack_it():
    found = interval(np.ones(24), bounds=(0, 1))
    assert found.high == 1
    assert found.low == pytest.approx(1 - 3 / 24, abs=0.01)
    assert interval(np.zeros(24), bounds=(0, 1)).high == pytest.approx(3 / 24, abs=0.01)


def test_a_single_group_tells_nothing_of_the_spread():
    assert interval([1.0, 2.0, 3.0], ["a", "a", "a"]) == Interval(2.0, -math.inf, math.inf, 1)
    assert not interval([5.0]).leaves_out()


def test_distances_of_ends_add_as_squares():
    assert joined(1.0, Interval(1, -2, 4, 5), Interval(1, -3, 5, 9)) == Interval(1.0, -4.0, 6.0, 5)


def test_students_t_is_as_in_the_tables():
    assert [round(t_quantile(0.975, df), 3) for df in (1, 2, 3, 10, 23)] == [12.706, 4.303, 3.182, 2.228, 2.069]
    assert t_quantile(0.975, 10**6) == pytest.approx(1.96, abs=0.003)


@pytest.mark.parametrize(
    ("values", "groups", "told"),
    [
        ([], None, "at least one"),
        ([[1.0], [2.0]], None, "a row of values"),
        ([1.0, math.nan], None, "1 of 2 values are not finite"),
        ([1.0, 2.0], ["a"], "2 values have 1 groups"),
    ],
)
def test_what_cannot_be_meant_is_told(values, groups, told):
    with pytest.raises(DataError, match=told):
        interval(values, groups)


def test_pairs_need_as_many_of_both():
    with pytest.raises(DataError, match="Pairs"):
        difference([1.0, 2.0], [1.0])
