"""The report of a training that is not finished, under a later version of Bricks than the one that has begun it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bricks_core.errors import SpecError, Stopped
from bricks_core.pipeline.local import run_path
from bricks_core.pipeline.so_far import evaluate_so_far
from bricks_core.spec.items import KINDS
from bricks_core.spec.stages import STAGES
from bricks_core.stages.train import stage as train
from bricks_core.storage.places import open_store
from bricks_core.storage.trainings import trainings_of
from tests.journey.tiny_run import TINY

EVERY_CLIP = {"min_motion": 0, "max_near_duplicate_distance": None, "max_plain_share": 1.0}
SPEC = {
    "score": {"filter": EVERY_CLIP, "held_out_share": 0.3},
    "latents": {"resolutions": ["48x80"]},
    "train": TINY["spec"]["train"] | {"phases": TINY["spec"]["train"]["phases"][:1]},
    "evaluate": TINY["spec"]["evaluate"] | {"prompts": ["A red thing moves."], "num_frames": 1},
    "tracking": {"wandb": "off"},
}


@pytest.fixture
def stopped(drawn_films, run_of, tmp_path, monkeypatch):
    """A run whose training of 4 steps was stopped after 3, and its store."""
    run, store, save = run_of(drawn_films, **SPEC), open_store(str(tmp_path / "store")), train.Training._save

    def save_and_stop(training, step, *, is_wanted):
        save(training, step, is_wanted=is_wanted)
        if step == 3:
            raise Stopped(15)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "_save", save_and_stop)
        with pytest.raises(Stopped):
            run_path(run, store, "train")
    return run, store


def test_it_tells_of_the_states_and_losses_that_the_earlier_version_has_made(stopped, monkeypatch):
    run, store = stopped
    before = evaluate_so_far(run, store)
    (num_states, num_held_out) = (before["train"].tables[name].num_rows for name in ("checkpoints", "held_out"))
    assert num_held_out
    monkeypatch.setitem(STAGES, "train", replace(STAGES["train"], version=99))
    for kind in ("held_out", "latent", "measures"):
        monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], version=2))
    told = []
    after = evaluate_so_far(run, store, tell=told.append)
    assert after["latents"] == before["latents"]
    assert (after["train"].stage_version, after["train"].counts) == (
        before["train"].stage_version,
        before["train"].counts,
    )
    assert [after["train"].tables[name].num_rows for name in ("checkpoints", "held_out")] == [num_states, num_held_out]
    assert after["train"].item_versions == {"held_out": {1: before["train"].num_items}}
    assert told[-1].why == ["not finished: 3 of 4 steps are done"]
    # Nothing was begun by it: the run is told of as before.
    assert next(trainings_of(store, "films")).newest == 3
    with pytest.raises(SpecError, match="Another version of Bricks has begun this training"):
        run_path(run, store, "train")
