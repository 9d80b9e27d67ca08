"""Numbers of the report: nothing lost, nothing made up, whatever the values are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.report.charts import Series, line_chart, log_ticks, number, ticks
from bricks_core.report.facts import Curve, Reasons, held_out_facts, histogram, nice_step, smoothed
from bricks_core.spec.train import HeldOutRow

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def row(step, weights="raw", bucket="16f", place=0, loss=1.0, num_bins=2):
    return HeldOutRow(
        id=f"{step}-{weights}-{bucket}-{place}",
        step=step,
        weights=weights,
        bucket=bucket,
        first_timestep=1000 * place // num_bins,
        end_timestep=1000 * (place + 1) // num_bins,
        loss=loss,
        mse=loss,
        vb=0.0,
        num_samples=4,
    )


@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=400))
def test_every_clip_stands_in_exactly_one_bar(values):
    bars = histogram("x", "y", lambda: iter(values))
    assert sum(bars.kept) == sum(kept for _, kept in values)
    assert sum(bars.dropped) == sum(not kept for _, kept in values)
    assert len(bars.edges) == len(bars.kept) + 1
    assert bars.edges == sorted(bars.edges)


def test_bars_hold_what_lies_between_their_edges():
    bars = histogram("x", "y", lambda: iter([(value, value < 5) for value in (0.5, 1.5, 1.6, 9.5)]))
    for low, high, kept, dropped in zip(bars.edges, bars.edges[1:], bars.kept, bars.dropped, strict=False):
        assert kept == sum(low <= value < high for value in (0.5, 1.5, 1.6))
        assert dropped == (low <= 9.5 < high)


def test_one_odd_clip_does_not_flatten_the_histogram():
    bars = histogram("x", "y", lambda: iter([(index / 10, True) for index in range(1000)] + [(1e6, True)]))
    assert bars.edges[-1] < 200
    assert sum(bars.kept) == 1001


def test_no_values_no_histogram():
    assert histogram("x", "y", lambda: iter([])) is None


@given(st.floats(1e-9, 1e9))
def test_steps_of_an_axis_are_round(step):
    nice = nice_step(step)
    assert step * (1 - 1e-6) <= nice <= 2.51 * step
    assert round(nice / 10 ** math.floor(math.log10(nice) + 1e-9), 6) in (1, 2, 2.5, 5)


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
def test_ticks_lie_inside_their_axis(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)


@given(st.floats(-8, 5), st.floats(0.7, 6))
def test_ticks_of_a_log_axis_lie_inside_it_and_are_few(low, width):
    found = log_ticks(low, low + width)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-9 <= math.log10(tick) <= low + width + 1e-9 for tick in found)


def test_a_loss_that_falls_far_is_drawn_on_a_log_axis_and_one_that_does_not_is_not():
    far, near = ([(0, 1.0), (10, last)] for last in (0.01, 0.5))
    assert "loss, log scale" in line_chart("x", [Series("", far, "s1")], y_label="loss", log_scale=True).svg
    assert "log scale" not in line_chart("x", [Series("", near, "s1")], y_label="loss", log_scale=True).svg


def test_reasons_that_differ_in_numbers_only_are_counted_together_and_others_keep_their_numbers():
    reasons = Reasons()
    for text in (
        "shorter than 15 frames.",
        "shorter than 15 frames",
        "motion 3.2 is low",
        "motion 4.1 is low",
        "black",
    ):
        reasons.add(text)
    assert reasons.counted() == {"motion … is low": 2, "shorter than 15 frames": 2, "black": 1}


def test_reasons_without_end_are_counted_in_bounded_memory():
    reasons = Reasons()
    for index in range(1000):
        reasons.add("broken " + "x" * index)
    counted = reasons.counted()
    assert sum(counted.values()) == 1000
    assert len(counted) <= 41


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(-10, 10)), min_size=1, max_size=100), st.integers(1, 50))
def test_a_curve_is_the_same_in_whatever_order_its_values_come(values, width):
    forth, back = Curve(width), Curve(width)
    for step, value in values:
        forth.add(step, value)
    for step, value in reversed(values):
        back.add(step, value)
    assert forth.points() == [pytest.approx(point, abs=1e-9) for point in back.points()]
    assert len(forth.points()) <= 501 // width + 1


def test_smoothing_keeps_a_level_and_is_not_pulled_towards_the_start():
    assert smoothed([(step, 2.0) for step in range(100)]) == [(step, pytest.approx(2.0)) for step in range(100)]


def test_a_mean_is_over_bins_and_then_over_buckets():
    losses = {("1f", 0): 1.0, ("1f", 1): 3.0, ("16f", 0): 10.0, ("16f", 1): 20.0}
    rows = [
        row(step, bucket=bucket, place=place, loss=loss + step)
        for step in (0, 10)
        for (bucket, place), loss in losses.items()
    ]
    facts = held_out_facts(rows)
    assert facts.curves == {"raw": [(0, 8.5), (10, 18.5)]}
    assert [(each.first_timestep, each.end_timestep) for each in facts.bins] == [(0, 500), (500, 1000)]
    assert facts.bins[0].curves == {"raw": [(0, 5.5), (10, 15.5)]}


def test_what_became_of_one_kind_of_weights_over_all_buckets_and_a_rise_is_a_negative_improvement():
    rows = [row(0, "raw", loss=1.0), row(0, "ema", loss=1.0), row(10, "raw", loss=2.0), row(10, "ema", loss=1.5)]
    overall = held_out_facts(rows).overall("ema")
    assert overall is not None
    assert (overall.weights, overall.before, overall.after, overall.improvement_percent) == ("ema", 1.0, 1.5, -50.0)


def test_a_bucket_that_is_measured_only_later_does_not_move_the_whole():
    rows = [row(0, loss=1.0), row(10, loss=0.5), row(10, bucket="64f", loss=9.0)]
    facts = held_out_facts(rows)
    assert facts.curves == {"raw": [(0, 1.0), (10, 0.5)]}


def test_many_bins_are_joined_to_few():
    rows = [row(step, place=place, num_bins=100, loss=float(place)) for step in (0, 1) for place in range(100)]
    bins = held_out_facts(rows).bins
    assert len(bins) == 10
    assert bins[0].curves["raw"][0] == (0, pytest.approx(4.5))
    assert (bins[0].first_timestep, bins[-1].end_timestep) == (0, 1000)


def test_nothing_measured_is_nothing():
    facts = held_out_facts([])
    assert facts.overall("ema") is None
    assert facts.curves == {}


def test_a_chart_says_in_words_what_it_shows():
    chart = line_chart("Loss", [Series("raw", [(0, 1.0), (10, 0.25)], "s2")], y_label="loss")
    assert 'aria-label="Loss: raw from 1 to 0.25"' in chart.svg


def test_a_chart_of_one_point_and_one_of_nothing_can_be_drawn():
    assert "<svg" in line_chart("Loss", [Series("", [(0, 1.0)], "s1")], y_label="loss").svg
    assert "no numbers" in line_chart("Loss", [], y_label="loss").svg


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (1500, "1,500"), (0.25, "0.25"), (0.0001, "1e-4"), (2.5e-7, "2.5e-7"), (3e6, "3e6")]
)
def test_numbers_on_an_axis_are_short(value, words):
    assert number(value) == words
