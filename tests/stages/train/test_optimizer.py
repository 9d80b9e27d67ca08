"""The learning rate of every step."""

from __future__ import annotations

import re

import pytest

from bricks_core.spec.train import Constant, CosineConstant, OneCycle

NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"


def schedule_of(case: str, name: str) -> CosineConstant | OneCycle:
    """The schedule that a golden name tells: cosine_const/warm<W>_lr<lr>, onecycle/warm<W>_cool<D>_<min>_<max>_<lr>."""
    if case == "cosine_const":
        [(warmup, lr)] = re.findall(rf"^warm(\d+)_lr{NUMBER}$", name)
        return CosineConstant(lr=float(lr), warmup_steps=int(warmup))
    assert case == "onecycle"
    [(warmup, cooldown, *rates)] = re.findall(rf"^warm(\d+)_cool(\d+)_{NUMBER}_{NUMBER}_{NUMBER}$", name)
    min_lr, max_lr, lr = map(float, rates)
    return OneCycle(min_lr=min_lr, max_lr=max_lr, lr=lr, warmup_steps=int(warmup), cooldown_steps=int(cooldown))


@pytest.mark.parametrize("kind", ["cosine_const", "onecycle"])
def test_the_rates_are_those_of_the_reference(golden, kind):
    stored = golden("lr_schedules")[kind]
    for name, rates in stored.items():
        schedule = schedule_of(kind, name)
        ours = [schedule.rate(step) for step in range(len(rates))]
        assert ours == pytest.approx(rates.tolist(), rel=2e-4), name


def test_constant_is_constant():
    assert {Constant(lr=3e-4).rate(step) for step in range(100)} == {3e-4}


def test_cosine_constant_reaches_its_rate_in_the_last_step_of_the_warm_up():
    schedule = CosineConstant(lr=1e-3, min_lr=0, warmup_steps=10)
    rates = [schedule.rate(step) for step in range(12)]
    assert rates == sorted(rates)
    assert rates[8] < rates[9] == rates[10] == rates[11] == 1e-3


def test_one_cycle_begins_lowest_is_highest_after_the_warm_up_and_ends_at_its_last_rate():
    schedule = OneCycle(min_lr=1e-5, max_lr=1e-3, lr=1e-4, warmup_steps=10, cooldown_steps=20)
    rates = [schedule.rate(step) for step in range(40)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == rates[10] == pytest.approx(1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:31] == sorted(rates[10:31], reverse=True)
    assert set(rates[30:]) == {1e-4}


@pytest.mark.parametrize(
    "schedule",
    [CosineConstant(lr=1, warmup_steps=0), OneCycle(max_lr=9, lr=1, warmup_steps=0, cooldown_steps=0)],
)
def test_without_a_warm_up_the_first_step_has_the_last_rate(schedule):
    assert schedule.rate(0) == 1
