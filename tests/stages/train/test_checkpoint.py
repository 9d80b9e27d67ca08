"""Which checkpoints are used, kept, and taken away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bricks_core.errors import AlteredObject, DataError, Stopped
from bricks_core.spec.latents import Latent
from bricks_core.stages.train import stage
from bricks_core.stages.train.checkpoint import COMMIT, OPTIMIZER, Checkpoints
from bricks_core.stages.train.parallel import Processes
from bricks_core.stages.train.step import Trainer
from tests.stages.train.latents_made_up import train_work

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def work(store, spec):
    return train_work(store, spec())


@pytest.fixture
def half_way(work, spec, monkeypatch):
    """Training that was interrupted after step 7, with checkpoints at 0, 3 and 6."""
    step = Trainer.step

    def interrupted(self, *arguments):
        if self.num_steps_done == 7:
            raise Stopped(9)
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(Stopped):
            stage.run(spec(), work)
    return Checkpoints(work, spec())


def folder(work, step: int) -> Path:
    return Path(work.store.uri) / work.prefix / f"checkpoints/step-{step:06d}"


def latent_rows(work):
    return work.rows("latents", "latents", Latent)


def optimizers(work) -> list[str]:
    return sorted(file.parent.name for file in folder(work, 0).parent.glob(f"*/{OPTIMIZER}"))


def test_the_newest_is_continued_from_and_the_two_newest_keep_their_optimizer(half_way, work):
    newest = half_way.newest()
    assert newest is not None
    assert newest.folder == "checkpoints/step-000006/"
    assert optimizers(work) == ["step-000003", "step-000006"]


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", OPTIMIZER, "state.json", "rows.json"])
@pytest.mark.parametrize("how", ["altered", "cut short", "missing"])
def test_a_checkpoint_that_is_not_what_its_record_says_is_not_used_but_the_one_before(half_way, work, name, how):
    file = folder(work, 6) / name
    data = file.read_bytes()
    file.unlink()
    if how != "missing":
        # The same length, one bit changed in the middle; or half of it.
        middle = len(data) // 2
        file.write_bytes(data[:middle] + (bytes([data[middle] ^ 1]) + data[middle + 1 :] if how == "altered" else b""))
    newest = half_way.newest()
    assert newest is not None
    assert newest.step == 3
    assert not folder(work, 6).exists() or not list(folder(work, 6).iterdir())


@pytest.mark.parametrize("record", [None, b"", b"{}", b'{"step": 6'])
def test_a_checkpoint_without_a_record_that_can_be_read_is_not_used(half_way, work, record):
    file = folder(work, 6) / COMMIT
    file.unlink()
    if record is not None:
        file.write_bytes(record)
    newest = half_way.newest()
    assert newest is not None
    assert newest.step == 3


def test_when_an_old_checkpoint_is_broken_training_begins_anew_since_it_must_be_made_again(half_way, work, spec):
    (folder(work, 0) / "ema.safetensors").unlink()
    assert half_way.newest() is None
    assert not half_way.records()
    stage.run(spec(), work)
    assert half_way.is_complete()


def test_a_file_altered_after_it_was_looked_at_is_noticed_when_it_is_read(half_way, work, spec):
    newest = half_way.newest()
    file = folder(work, 6) / "weights.safetensors"
    file.unlink()
    file.write_bytes(b"something else")
    trainer = Trainer(spec(), stage.make_network(spec(), work, list(latent_rows(work))), ALONE)
    with pytest.raises(AlteredObject, match=r"weights\.safetensors"):
        half_way.load(newest, trainer, with_randomness=True)


def test_the_checkpoint_of_another_artifact_is_refused(half_way, spec, store, work):
    newest = half_way.newest()
    other = Checkpoints(train_work(store, spec(), digest="0" * 31 + "3"), spec())
    for file in newest.files:
        with work.store.local(work.prefix + file.key) as path:
            store.put_file("artifacts/train/" + "0" * 31 + "3/" + file.key, path)
    trainer = Trainer(spec(), stage.make_network(spec(), work, list(latent_rows(work))), ALONE)
    with pytest.raises(AlteredObject, match="belongs to another artifact"):
        other.load(newest, trainer, with_randomness=True)


def test_when_the_loss_breaks_down_nothing_is_written_and_what_was_is_kept(half_way, work, spec, monkeypatch):
    before = {file: file.read_bytes() for file in folder(work, 0).parent.rglob("*") if file.is_file()}
    step = Trainer.step

    def broken(self, micro_batches, *arguments):
        micro_batches[0].latents.fill_(float("nan"))
        step(self, micro_batches, *arguments)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(DataError, match="broke down at step 6"):
        stage.run(spec(), work)
    assert {file: file.read_bytes() for file in folder(work, 0).parent.rglob("*") if file.is_file()} == before


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
    assert sorted(record.step for record in half_way.records()) == [0, 3, 6]


def test_at_the_end_only_the_last_keeps_its_optimizer(half_way, work, spec):
    stage.run(spec(), work)
    assert optimizers(work) == ["step-000008"]
    assert half_way.is_complete()


def test_files_that_no_record_lists_are_taken_away(half_way, work, spec):
    stray = folder(work, 5) / "weights.safetensors"
    stray.parent.mkdir()
    stray.write_bytes(b"of a writer that was killed")
    stage.run(spec(), work)
    assert not stray.exists()
