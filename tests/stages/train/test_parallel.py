"""Two processes train as one does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bricks_core.spec.manifest import artifact_digest
from bricks_core.spec.train import BucketLossRow, HeldOutRow, StepRow
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from tests.stages.train.apart import left, steps_of, train_apart, train_together
from tests.stages.train.conftest import small_spec
from tests.stages.train.latents_made_up import state_folder, train_work

SPEC = small_spec()
TRAIN = artifact_digest("0" * 31 + "2", SPEC.shown)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def together(latents, tmp_path_factory):
    """A store in which two processes have trained, started by torchrun."""
    store = tmp_path_factory.mktemp("together") / "store"
    shutil.copytree(latents, store)
    (store.parent / "spec.json").write_text(SPEC.model_dump_json(), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*torchrun, "-m", "tests.stages.train.apart", str(store), str(store.parent / "spec.json")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return store


def state(store: Path, step: int) -> Path:
    return state_folder(train_work(open_store(str(store)), SPEC), SPEC, step)


def rows(store: Path, table: str, row: type) -> list:
    return list(open_artifact(open_store(str(store)), "train", TRAIN).rows(table, row))


@pytest.mark.parametrize(
    ("table", "row"), [("steps", StepRow), ("bucket_losses", BucketLossRow), ("held_out", HeldOutRow)]
)
def test_under_torchrun_every_loss_is_that_of_one_process(alone, together, table, row):
    ours, theirs = rows(alone, table, row), rows(together, table, row)
    assert len(ours) > 4
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.model_dump(exclude={"loss", "mse", "vb", "gradient_norm"}) == other.model_dump(
            exclude={"loss", "mse", "vb", "gradient_norm"}
        )


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors"])
def test_under_torchrun_the_weights_become_those_of_one_process(alone, together, name):
    begun, ours, theirs = (
        load_file(state(store, step) / name) for store, step in ((alone, 0), (alone, 8), (together, 8))
    )
    for key, tensor in ours.items():
        # Adam's first steps move a weight by the rate whichever way its gradient's last bit points.
        assert float((tensor - theirs[key]).norm()) <= 0.02 * float((tensor - begun[key]).norm()) + 1e-6, key


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_the_continued_run_is_as_never_stopped(
    latents, together, tmp_path
):
    store = tmp_path / "store"
    shutil.copytree(latents, store)
    assert train_together(str(store), SPEC, 2, at=(1, 5)) == [143, 143]
    assert 5 in steps_of(left(str(store)), "optimizer.safetensors")
    assert train_together(str(store), SPEC, 2) == [0, 0]
    assert left(str(store)) == left(str(together))


@pytest.mark.slow
def test_one_process_can_continue_what_two_began(latents, alone, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(latents, store)
    assert train_together(str(store), SPEC, 2, at=(0, 4)) == [143, 143]
    assert train_apart(str(store), SPEC) == 0
    for one, other in zip(rows(alone, "steps", StepRow), rows(store, "steps", StepRow), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_a_batch_that_does_not_divide_by_the_processes_ends_all_with_78_before_any_step(latents, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(latents, store)
    spec = SPEC.model_copy(update={"phases": [SPEC.phases[0].model_copy(update={"buckets": odd_buckets()})]})
    assert train_together(str(store), spec, 2) == [78, 78]
    assert left(str(store)) == {}


def odd_buckets():
    return [SPEC.phases[0].buckets[0].model_copy(update={"batch_size": 3})]
