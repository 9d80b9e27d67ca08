"""Another family goes through the same stage: Wan, on latents that join four frames after the first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bricks_core.errors import SpecError
from bricks_core.models.wan import new_wan
from bricks_core.spec.train import Constant, HeldOutRow, HeldOutSpec, Phase, StepRow, TrainBucket, WanSpec
from bricks_core.stages.train import stage
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.places import open_store
from tests.stages.train.conftest import IMAGES, small_spec
from tests.stages.train.latents_made_up import TEXT_WIDTH, made_up_latents, state_folder, train_work

WAN = WanSpec(
    family="wan",
    num_layers=1,
    num_attention_heads=2,
    attention_head_dim=12,
    ffn_dim=48,
    freq_dim=32,
    text_dim=TEXT_WIDTH,
    in_channels=4,
)
CLIPS = TrainBucket(num_frames=9, resolution="64x48", batch_size=4, micro_batch_size=2)


def wan_spec(steps=6, **changes):
    phase = Phase(name="all", steps=steps, buckets=[IMAGES, CLIPS], schedule=Constant(lr=3e-3))
    fields = {"model": WAN, "phases": [phase], "mask_ratios": None, "caption_dropout": 0.3}
    return small_spec(**(fields | changes))


def trained(folder: Path, spec):
    """The training of a store. -> its tables, and where the state after so many steps lies"""
    work = train_work(open_store(str(folder)), spec)
    stage.run(spec, work)
    tables = {name: list(rows) for name, rows in stage.join(spec, work).tables.items()}
    return tables, lambda step: state_folder(work, spec, step)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    made_up_latents(open_store(str(folder / "store")), folder / "scratch", time_stride=4)
    return folder / "store"


@pytest.fixture
def store(latents, tmp_path):
    return Path(shutil.copytree(latents, tmp_path / "store"))


def test_it_learns_from_captions_and_tells_its_loss_by_timesteps(store):
    held_out = HeldOutSpec(every_steps=60, num_samples=4, num_timestep_bins=3, timesteps_per_bin=1)
    tables, _ = trained(store, wan_spec(60, held_out=held_out, checkpoint_every_steps=60))
    rows = [row for row in tables["held_out"] if isinstance(row, HeldOutRow) and row.weights == "raw"]
    assert {(row.first_timestep, row.end_timestep) for row in rows} == {(0, 333), (333, 667), (667, 1000)}
    before, after = (sum(row.loss for row in rows if row.step == step) for step in (0, 60))
    assert after < 0.8 * before
    steps = [row for row in tables["steps"] if isinstance(row, StepRow)]
    assert all(row.vb == 0 and row.loss == row.mse > 0 for row in steps)


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def test_a_run_that_was_killed_continues_to_the_same_bytes(store, tmp_path, monkeypatch, caplog):
    again = Path(shutil.copytree(store, tmp_path / "killed"))
    tables, state_of = trained(store, wan_spec())
    take = Trainer.step

    def dies_in_the_fifth_step(trainer, *arguments):
        take(trainer, *arguments)
        if trainer.num_steps_done == 5:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", dies_in_the_fifth_step)
        with pytest.raises(Killed):
            trained(again, wan_spec())
    with caplog.at_level("INFO", logger="bricks"):
        continued, same_of = trained(again, wan_spec())
    assert "continuing from step 3" in caplog.text
    assert continued == tables
    for step in (0, 3, 6):
        files = sorted(state_of(step).glob("*.safetensors"))
        assert len(files) == 3 + (step == 6)
        for file in files:
            assert file.read_bytes() == (same_of(step) / file.name).read_bytes(), file.name


def test_it_begins_with_weights_as_diffusers_saves_them_in_shards(store, tmp_path):
    torch.manual_seed(7)
    network = new_wan(WAN)
    network.save_pretrained(tmp_path / "transformer", max_shard_size="10KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    _, state_of = trained(store, wan_spec(1, init_from=str(tmp_path / "transformer")))
    begun = load_file(state_of(0) / "weights.safetensors")
    assert all(torch.equal(tensor, begun[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 16}, "takes latents of 16 channels, these have 4"),
        ({"patch_size": (1, 3, 2)}, "their height must divide by 3"),
        ({"text_dim": 32}, "text_dim is 32, and the captions' features are 24 wide: set it to 24"),
    ],
)
def test_a_network_that_cannot_learn_from_the_latents_is_refused_before_the_first_step(store, changes, words):
    spec = wan_spec(model=WAN.model_copy(update=changes))
    with pytest.raises(SpecError, match=words):
        stage.run(spec, train_work(open_store(str(store)), spec))
