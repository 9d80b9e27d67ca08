"""Which states are used, kept, and taken away."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from bricks_core.errors import AlteredObject, DataError, Stopped
from bricks_core.spec.latents import Latent
from bricks_core.spec.train import TrainSpec
from bricks_core.stages.train import stage
from bricks_core.stages.train.checkpoint import STATE, Checkpoints
from bricks_core.stages.train.parallel import Processes
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.trainings import COMMIT, OPTIMIZER
from tests.stages.train.conftest import CLIPS, IMAGES
from tests.stages.train.latents_made_up import state_folder, train_work

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def work(store, spec):
    return train_work(store, spec())


@pytest.fixture
def half_way(work, spec, monkeypatch):
    """Training that was interrupted after step 7, with states at 0, 3 and 6."""
    step = Trainer.step

    def interrupted(self, *arguments):
        if self.num_steps_done == 7:
            raise Stopped(9)
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(Stopped):
            stage.run(spec(), work)
    return Checkpoints(work, spec(), [IMAGES, CLIPS])


def folder(work, step: int) -> Path:
    assert isinstance(work.spec, TrainSpec)
    return state_folder(work, work.spec, step)


def latent_rows(work):
    return work.rows("latents", "latents", Latent)


def steps_with(work, name: str) -> list[int]:
    root = Path(work.store.uri) / "trainings"
    return sorted(int(file.parent.name.split("-")[1]) for file in root.glob(f"*/*/{name}"))


def left_to_do(checkpoints: Checkpoints) -> list[tuple[int, list[int]]]:
    """Where every part begins, and the steps at which there is something to be made."""
    return [(each.first, list(each.due)) for each in checkpoints.stretches()]


def test_training_goes_on_from_the_newest_and_the_two_newest_keep_their_optimizer_as_does_the_end_of_a_phase(
    half_way, work
):
    assert left_to_do(half_way) == [(6, [8])]
    assert steps_with(work, OPTIMIZER) == [3, 6]


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", OPTIMIZER, STATE, "losses.safetensors"])
@pytest.mark.parametrize("how", ["altered", "cut short", "missing"])
def test_a_state_that_is_not_what_its_record_says_is_made_again_from_the_one_before(half_way, work, name, how):
    file = folder(work, 6) / name
    data = file.read_bytes()
    file.unlink()
    if how != "missing":
        # The same length, one bit changed in the middle; or half of it.
        middle = len(data) // 2
        file.write_bytes(data[:middle] + (bytes([data[middle] ^ 1]) + data[middle + 1 :] if how == "altered" else b""))
    assert left_to_do(half_way) == [(3, [6, 8])]


@pytest.mark.parametrize("record", [None, b"", b"{}", b'{"step": 6'])
def test_a_state_without_a_record_that_can_be_read_is_not_used(half_way, work, record):
    file = folder(work, 6) / COMMIT
    file.unlink()
    if record is not None:
        file.write_bytes(record)
    assert left_to_do(half_way) == [(3, [6, 8])]


def test_when_an_early_state_is_broken_that_one_alone_is_made_again(half_way, work, spec, alone):
    (folder(work, 0) / "ema.safetensors").unlink()
    assert left_to_do(half_way) == [(0, [0]), (6, [8])]
    stage.run(spec(), work)
    assert left_to_do(half_way) == []
    for step in (0, 8):
        undisturbed = alone / folder(work, step).relative_to(work.store.uri)
        for file in undisturbed.glob("*.safetensors"):
            if (step, file.name) != (0, OPTIMIZER):
                assert (folder(work, step) / file.name).read_bytes() == file.read_bytes()


def test_a_file_altered_after_it_was_looked_at_is_noticed_when_it_is_read(half_way, work, spec):
    (stretch,) = half_way.stretches()
    file = folder(work, 6) / "weights.safetensors"
    file.unlink()
    file.write_bytes(b"something else")
    trainer = Trainer(spec(), stage.make_network(spec(), work, list(latent_rows(work))), ALONE)
    with pytest.raises(AlteredObject, match=r"weights\.safetensors"):
        half_way.load(stretch.begin, trainer, with_randomness=True)


def test_the_state_of_another_training_is_refused(half_way, spec, work):
    (stretch,) = half_way.stretches()
    other = Checkpoints(train_work(work.store, spec(seed=43)), spec(seed=43), [IMAGES, CLIPS])
    theirs = other.trajectory.folder(6)
    for file in stretch.begin.files:
        with work.store.local(file.key) as path:
            work.store.put_file(theirs + file.key.rpartition("/")[2], path)
    files = [file.model_copy(update={"key": theirs + file.key.rpartition("/")[2]}) for file in stretch.begin.files]
    record = stretch.begin.model_copy(update={"folder": theirs, "files": files})
    trainer = Trainer(spec(), stage.make_network(spec(), work, list(latent_rows(work))), ALONE)
    with pytest.raises(AlteredObject, match="belongs to another training"):
        other.load(record, trainer, with_randomness=True)


def test_when_the_loss_breaks_down_nothing_is_written_and_what_was_is_kept(half_way, work, spec, monkeypatch):
    root = Path(work.store.uri) / "trainings"
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    step = Trainer.step

    def broken(self, micro_batches, *arguments):
        micro_batches[0].latents.fill_(float("nan"))
        step(self, micro_batches, *arguments)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(DataError, match="broke down at step 6"):
        stage.run(spec(), work)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_when_the_held_out_loss_breaks_down_that_checkpoint_is_not_written(half_way, work, spec, monkeypatch):
    step = Trainer.step

    def broken(self, *arguments):
        step(self, *arguments)
        with torch.no_grad():
            self.model.final_layer.linear.bias.fill_(float("inf"))

    monkeypatch.setattr(Trainer, "step", broken)
    changed = spec(held_out=spec().held_out.model_copy(update={"every_steps": 7}), log_every_steps=100)
    with pytest.raises(DataError, match=r"broke down before step 7: the held-out loss .* lower the learning rate"):
        stage.run(changed, work)
    assert steps_with(work, COMMIT) == [0, 3, 6]


def test_at_the_end_the_ends_of_phases_keep_their_optimizer(half_way, work, spec):
    stage.run(spec(), work)
    assert steps_with(work, OPTIMIZER) == [3, 8]
    assert left_to_do(half_way) == []


def test_the_state_of_a_stop_is_taken_away_once_training_has_passed_it(work, spec, monkeypatch):
    step = Trainer.step

    def told_to_stop(self, *arguments):
        step(self, *arguments)
        if self.num_steps_done == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", told_to_stop)
        with pytest.raises(Stopped):
            stage.run(spec(), work)
    assert steps_with(work, COMMIT) == [0, 3, 6, 7]
    stage.run(spec(), work)
    assert steps_with(work, COMMIT) == [0, 3, 6, 8]
    assert not folder(work, 7).exists()
