"""The tables of a training that is not finished: the beginning of those it will have, at an address of their own."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from bricks_core.errors import DataError
from bricks_core.stages.train import stage
from bricks_core.storage.artifacts import problems
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.storage.trainings import OPTIMIZER
from tests.stages.train.apart import left, train_apart
from tests.stages.train.conftest import small_spec
from tests.stages.train.latents_made_up import train_work, trajectory_of

SPEC = small_spec()


@pytest.fixture(scope="module")
def stopped(latents, tmp_path_factory) -> Path:
    """A training that was told to stop after 5 of its 8 steps; measured at 0 and 4, wanted at 0, 3, 6 and 8."""
    store = tmp_path_factory.mktemp("stopped") / "store"
    shutil.copytree(latents, store)
    assert train_apart(str(store), SPEC, at=("step", 5), send=signal.SIGTERM) == 143
    return store


@pytest.fixture
def store(stopped, tmp_path) -> Store:
    return open_store(str(shutil.copytree(stopped, tmp_path / "store")))


def so_far(store: Store):
    work = train_work(store, SPEC)
    joined = stage.join_so_far(SPEC, work)
    tables = {name: list(rows) for name, rows in joined.tables.items()}
    joined = stage.join_so_far(SPEC, work)
    return tables, work.commit(joined)


def test_they_are_the_beginning_of_those_of_the_finished_training(store):
    tables, manifest = so_far(store)
    work = train_work(store, SPEC)
    stage.run(SPEC, work)
    joined = stage.join(SPEC, work)
    whole = {name: list(rows) for name, rows in joined.tables.items()}
    assert tables["steps"] == whole["steps"][: len(tables["steps"])]
    assert [row.step for row in tables["steps"]] == [0, 1, 2, 3]
    assert tables["held_out"] == [row for row in whole["held_out"] if row.step <= 4]
    assert [row.step for row in tables["checkpoints"]] == [0, 3, 5]
    assert (manifest.counts["steps"], manifest.counts["samples"]) == (5, 3 * 2 + 2 * 6)
    assert work.commit(joined).digest != manifest.digest


def test_it_does_not_touch_the_training_nor_name_an_optimizer(store):
    def trainings() -> dict[str, bytes]:
        return {key: data for key, data in left(store.uri).items() if not key.startswith("artifacts/")}

    before = trainings()
    _, manifest = so_far(store)
    assert trainings() == before
    assert not [each.key for each in manifest.objects if each.key.endswith(OPTIMIZER)]
    assert problems(store, manifest, thorough=True) == []
    assert so_far(store)[1] == manifest  # the same states are the same artifact


def test_a_training_that_went_on_after_it_leaves_what_it_would_have_left(store, alone):
    so_far(store)
    assert train_apart(store.uri, SPEC) == 0
    ours = {key: data for key, data in left(store.uri).items() if "/trainings/" in f"/{key}"}
    assert ours == {key: data for key, data in left(str(alone)).items() if "/trainings/" in f"/{key}"}


def test_an_optimizer_that_is_just_being_taken_away_is_no_reason_to_leave_a_state_out(store):
    record = trajectory_of(train_work(store, SPEC), SPEC).records(store)[5]
    store.delete([record.folder + OPTIMIZER])
    assert [row.step for row in so_far(store)[0]["checkpoints"]] == [0, 3, 5]


def test_of_no_steps_there_is_nothing_to_tell(store):
    for step, record in trajectory_of(train_work(store, SPEC), SPEC).records(store).items():
        if step:
            store.delete([file.key for file in record.files])
            store.delete([f"{record.folder}checkpoint.json"])
    with pytest.raises(DataError, match="No step is kept of this training yet"):
        stage.join_so_far(SPEC, train_work(store, SPEC))
