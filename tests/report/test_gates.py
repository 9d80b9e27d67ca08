"""Gates held against a report's numbers, and the comment that shows both."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.cluster.comment import _plain as plain
from bricks_core.report.gates import judge
from bricks_core.spec.gates import COUNTS, Gate


def change(weights, before, after, bucket="", num_clips=0):
    return {"weights": weights, "bucket": bucket, "before": before, "after": after, "num_clips": num_clips}


REPORT = {
    "held_out": {
        "last_step": 60,
        "changes": [
            change("raw", 1.0, 0.5),
            change("ema", 1.0, 0.6),
            change("raw", 1.0, 0.4, "16f-360p", 8),
            change("ema", 1.0, 0.7, "16f-360p", 8),
        ],
    },
    "dataset": {"num_kept": 120, "num_clips": 200, "clip_seconds": 300.5},
}


def judged(metric, report=REPORT, **bounds):
    (found,) = judge(report, [Gate(metric=metric, **bounds)]).gates
    return found.judgement


@pytest.mark.parametrize(
    ("metric", "bounds", "judgement"),
    [
        ("held_out.loss.ema", {"at_most": 0.6}, "passed"),
        ("held_out.loss.ema", {"at_most": 0.59}, "failed"),
        ("held_out.loss.raw", {"at_least": 0.6}, "failed"),
        ("held_out.loss.best", {"at_most": 0.5}, "passed"),
        ("held_out.loss.ema", {"at_most_of_base": 0.6}, "passed"),
        ("held_out.loss.ema", {"at_most_of_base": 0.5}, "failed"),
        ("held_out.loss.ema", {"at_least_of_base": 0.5}, "passed"),
        ("held_out.loss.ema.16f-360p", {"at_most": 0.7}, "passed"),
        ("held_out.loss.ema.32f-360p", {"at_most": 0.7}, "unknown"),
        ("dataset.num_kept", {"at_least": 100, "at_most": 150}, "passed"),
        ("dataset.num_kept", {"at_least": 100, "at_most": 110}, "failed"),
        ("dataset.mean_caption_words", {"at_least": 5}, "unknown"),
    ],
)
def test_a_gate_is_held_against_its_number(metric, bounds, judgement):
    assert judged(metric, **bounds) == judgement


def test_a_loss_that_is_no_number_has_reached_nothing():
    broken = {"held_out": {"changes": [change("raw", 1.0, math.nan), change("ema", 1.0, 0.5)]}}
    assert judged("held_out.loss.raw", broken, at_most=9) == "failed"
    assert judged("held_out.loss.best", broken, at_most=0.5) == "passed"


def test_a_base_that_is_no_number_leaves_a_relative_gate_unknown():
    broken = {"held_out": {"changes": [change("ema", math.nan, 0.5)]}}
    assert judged("held_out.loss.ema", broken, at_most_of_base=0.9) == "unknown"


def test_what_could_not_be_judged_is_not_passed():
    verdict = judge({}, [Gate(metric="held_out.loss.ema", at_most=1)])
    assert not verdict.passed
    assert "held_out.loss.ema (unknown)" in verdict.words


def test_without_gates_there_is_nothing_to_fail():
    verdict = judge(REPORT, [])
    assert verdict.passed
    assert verdict.others[0].metric == "held_out.loss.raw"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | inner, max_leaves=5
    )
)
def test_a_report_of_another_shape_is_unknown_and_no_crash(value):
    for report in ({"held_out": value, "dataset": value}, {"held_out": {"changes": [value, {"weights": value}]}}):
        assert judged("held_out.loss.ema", report, at_most=1) == "unknown"
        assert judged(COUNTS[0], report, at_least=1) == "unknown"


@given(st.text(max_size=400))
def test_a_text_from_elsewhere_brings_no_markup_and_calls_nobody(text):
    shown = plain(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert "@everyone" not in plain(f"{text}@everyone")
    assert all(shown[place - 1] == "\\" for place, letter in enumerate(shown) if letter in "`*_[]|~")


def test_the_reports_verdict_is_told_with_its_first_reason_and_a_report_without_one_tells_none():
    told = {"verdict": {"title": "Keep", "reasons": ["The held-out loss fell by 20 %.", "And more."]}}
    assert judge(REPORT | told, []).verdict == "Keep. The held-out loss fell by 20 %."
    assert judge(REPORT, []).verdict == ""
    assert judge(REPORT | {"verdict": {"title": 7}}, []).verdict == ""
