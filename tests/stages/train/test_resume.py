"""Killed and continued is as never killed: every bit of every object."""

from __future__ import annotations

import shutil
import signal

import pytest

from tests.stages.train.apart import left, steps_of, train_apart
from tests.stages.train.conftest import small_spec

SPEC = small_spec()
TABLES = ("steps", "bucket_losses", "held_out", "clip_losses", "checkpoints", "items", "records")


@pytest.fixture(scope="module")
def undisturbed(alone):
    return left(str(alone))


@pytest.fixture
def store(latents, tmp_path):
    shutil.copytree(latents, tmp_path / "store")
    return str(tmp_path / "store")


def test_weights_and_average_of_every_wanted_step_are_kept_and_the_optimizer_of_every_phases_end(undisturbed):
    every = ("checkpoint.json", "config.json", "ema.safetensors", "losses.safetensors", "state.json")
    for name in (*every, "weights.safetensors"):
        assert steps_of(undisturbed, name) == [0, 3, 6, 8], name
    assert steps_of(undisturbed, "optimizer.safetensors") == [3, 8]
    tables = {key.rpartition("/")[2] for key in undisturbed if key.startswith("artifacts/")}
    rows = {f"{name}.parquet" for name in TABLES}
    assert tables == rows
    assert len(undisturbed) == 4 * 6 + 2 + len(tables) + 3 * 2  # held out at 0, 4 and 8, images and clips


def test_a_second_undisturbed_run_leaves_the_same(store, undisturbed):
    assert train_apart(store, SPEC) == 0
    assert left(store) == undisturbed


@pytest.mark.slow
def test_killed_at_every_write_in_turn_it_leaves_the_same(store, undisturbed):
    """The first try dies at its first write, the second at its second, ... until one gets through to the end.

    A checkpoint takes seven writes, so every kind of write is among them, and each try goes on where the last one died.
    """
    num_kills = 0
    while (code := train_apart(store, SPEC, at=("write", num_kills + 1))) == -signal.SIGKILL:
        num_kills += 1
    assert code == 0
    assert num_kills > 7
    assert left(store) == undisturbed


@pytest.mark.parametrize("steps", [(5, 2), pytest.param((1, 8), marks=pytest.mark.slow)])
def test_killed_between_checkpoints_it_leaves_the_same(store, undisturbed, steps):
    for step in steps:
        code = train_apart(store, SPEC, at=("step", step))
        assert code in (-signal.SIGKILL, 0)
    assert train_apart(store, SPEC) == 0
    assert left(store) == undisturbed


@pytest.mark.parametrize("step", [1, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (5, 8))])
def test_told_to_stop_it_finishes_the_step_writes_a_checkpoint_and_ends_with_143(store, undisturbed, step):
    assert train_apart(store, SPEC, at=("step", step), send=signal.SIGTERM) == 143
    assert step in steps_of(left(store), "optimizer.safetensors")
    assert train_apart(store, SPEC) == 0
    assert left(store) == undisturbed


@pytest.mark.slow
def test_stopped_again_and_again_it_leaves_the_same(store, undisturbed):
    codes = [train_apart(store, SPEC, at=("step", 1), send=signal.SIGTERM) for _ in range(4)]
    assert codes == [143] * 4
    assert train_apart(store, SPEC) == 0
    assert left(store) == undisturbed
