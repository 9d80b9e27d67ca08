"""One step of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.family_stdit2 import noised_loss
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.errors import DataError
from bricks_core.models.stdit2 import STDiT2
from bricks_core.spec.train import Constant, Phase, TrainSpec
from bricks_core.stages.train import ema
from bricks_core.stages.train.dataloader import Loader, Plan
from bricks_core.stages.train.parallel import Processes
from bricks_core.stages.train.step import Trainer
from bricks_core.storage.shards import Packs
from tests.stages.train.conftest import CLIPS, IMAGES, small_spec
from tests.stages.train.latents_made_up import MAX_TOKENS, TEXT_WIDTH, made_up_rows

ALONE = Processes(0, 1, torch.device("cpu"))


def made_trainer(spec: TrainSpec) -> Trainer:
    torch.manual_seed(0)
    size = spec.model.model_dump(exclude={"family", "input_sq_size_px"})
    model = STDiT2(**size, caption_channels=TEXT_WIDTH, model_max_length=MAX_TOKENS)
    with torch.no_grad():  # as built it answers 0 everywhere, and most gradients are 0
        model.final_layer.linear.weight.normal_(std=0.1)
    return Trainer(spec, model, ALONE)


@pytest.fixture(scope="module")
def batches_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    rows = made_up_rows(folder)
    packs = Packs(lambda key: folder / key)

    def make(spec: TrainSpec, step: int = 0) -> list[MicroBatch]:
        return Loader(Plan(spec, rows), packs).micro_batches(step)

    return make


def mixed(images=IMAGES, clips=CLIPS, **changes):
    phase = Phase(name="mixed", steps=50, buckets=[images, clips], schedule=Constant(lr=1e-3))
    return small_spec(phases=[phase], **changes)


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in trainer.model.named_parameters() if each.grad is not None}


def test_its_first_steps_are_those_of_the_reference(golden, small_model, monkeypatch):
    """Loss, clipping, AdamW and EMA in the order of the specification's section 17."""
    monkeypatch.setattr(ema, "decay_at", lambda num_updates, share: 0.9)
    cases = golden("train_trajectory")
    trainer = Trainer(small_spec(gradient_clip=1.0), small_model, ALONE)
    assert "step0" in cases
    for step in range(sum(case.startswith("step") for case in cases)):
        given = cases[f"step{step}"]
        samples = len(given["in.t"])
        batch = MicroBatch(
            bucket=0,
            latents=given["in.x0"].transpose(1, 2),
            noise=given["in.noise"],
            text=given["in.y"][:, 0],
            text_mask=given["in.mask"].bool(),
            timestep=given["in.t"],
            drop=torch.zeros(samples, dtype=torch.bool),
            frame_mask=given["in.x_mask"].bool(),
            sizes=cases["info"],
        )
        trainer.step([batch], samples, 1, float(given["in.lr"]))
        assert float(trainer.losses().sums[..., 0].sum()) / samples == pytest.approx(
            float(given["out.loss"].mean()), rel=1e-4
        )
        assert float(trainer.gradient_norm) == pytest.approx(float(given["out.grad_norm"]), rel=1e-3)
    for prefix, network in (("final.probe.", trainer.model), ("ema.probe.", trainer.ema.model)):
        probes = {
            name.removeprefix(prefix): probe
            for tensors in cases.values()
            for name, probe in tensors.items()
            if name.startswith(prefix)
        }
        trained = {name: each for name, each in network.named_parameters() if name != "rope.freqs"}
        assert probes.keys() == trained.keys()
        for name, parameter in trained.items():
            flat = parameter.detach().double().flatten()
            places = torch.linspace(0, len(flat) - 1, 8, dtype=torch.float64).floor().long()
            assert float(flat.norm()) == pytest.approx(float(probes[name][0]), rel=1e-4), name
            assert flat[places].tolist() == pytest.approx(probes[name][2:].tolist(), abs=5e-4), name


def test_every_sample_counts_the_same_whichever_bucket_it_is_in(batches_of):
    spec = mixed(gradient_clip=1e9)
    trainer = made_trainer(spec)
    batches = batches_of(spec)
    assert [len(batch) for batch in batches] == [2, 4]
    with torch.no_grad():
        losses = [noised_loss(trainer.model, NoiseSchedule.of(), batch, "float32").loss for batch in batches]
    trainer.step(batches, 6, 2, 1e-3)
    sums = trainer.losses().sums
    assert sums[0, :, 3].tolist() == [2, 4]
    assert float(sums[..., 0].sum()) / 6 == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)

    parts = []
    for batch in batches:
        alone = made_trainer(spec)
        alone.step([replace(batch, bucket=0)], len(batch), 1, 1e-3)
        parts.append(gradients(alone))
    for name, gradient in gradients(trainer).items():
        assert torch.allclose(gradient, (2 * parts[0][name] + 4 * parts[1][name]) / 6, atol=1e-6), name


def test_with_weights_by_frame_a_clip_counts_as_much_as_its_frames_as_images(batches_of):
    spec = mixed(gradient_clip=1e9, loss_weight="frame")
    num_frames = CLIPS.num_frames
    trainer = made_trainer(spec)
    trainer.step(batches_of(spec), 2 + 4 * num_frames, 2, 1e-3)
    parts = []
    for batch in batches_of(spec):
        alone = made_trainer(mixed(gradient_clip=1e9))
        alone.step([replace(batch, bucket=0)], len(batch), 1, 1e-3)
        parts.append(gradients(alone))
    for name, gradient in gradients(trainer).items():
        expected = (2 * parts[0][name] + 4 * num_frames * parts[1][name]) / (2 + 4 * num_frames)
        assert torch.allclose(gradient, expected, atol=1e-6), name


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_have_the_gradients_of_the_whole(batches_of, size):
    whole, cut = mixed(), mixed(clips=CLIPS.model_copy(update={"micro_batch_size": size}))
    one, other = made_trainer(whole), made_trainer(cut)
    one.step(batches_of(whole), 6, 2, 1e-3)
    other.step(batches_of(cut), 6, 2, 1e-3)
    assert float(other.gradient_norm) == pytest.approx(float(one.gradient_norm), rel=1e-5)
    for name, gradient in gradients(one).items():
        assert torch.allclose(gradient, gradients(other)[name], atol=1e-6), name


def test_gradients_are_scaled_down_to_their_largest_norm_and_never_up(batches_of):
    spec = mixed(gradient_clip=0.01)
    trainer = made_trainer(spec)
    trainer.step(batches_of(spec), 6, 2, 1e-3)
    clipped = torch.cat([each.flatten() for each in gradients(trainer).values()]).norm()
    assert float(trainer.gradient_norm) > 0.02
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)
    free = made_trainer(mixed(gradient_clip=1e3))
    free.step(batches_of(spec), 6, 2, 1e-3)
    unclipped = torch.cat([each.flatten() for each in gradients(free).values()]).norm()
    assert float(unclipped) == pytest.approx(float(free.gradient_norm), rel=1e-5)


def test_recomputing_blocks_changes_no_gradient(batches_of):
    one, other = made_trainer(mixed()), made_trainer(mixed(activation_checkpointing=True))
    for trainer in (one, other):
        trainer.step(batches_of(mixed()), 6, 2, 1e-3)
    for name, gradient in gradients(one).items():
        assert torch.allclose(gradient, gradients(other)[name], atol=1e-7), name


def test_bfloat16_is_near_float32_and_keeps_weights_moments_and_average_in_float32(batches_of):
    one, other = made_trainer(mixed()), made_trainer(mixed(precision="bfloat16"))
    for trainer in (one, other):
        trainer.step(batches_of(mixed()), 6, 2, 1e-3)
    ours, theirs = (trainer.losses().sums[0, :, 0].tolist() for trainer in (one, other))
    assert ours != theirs
    assert theirs == pytest.approx(ours, rel=0.02)
    moments = [tensor for state in other.optimizer.state.values() for tensor in state.values()]
    assert {tensor.dtype for tensor in (*other.model.parameters(), *other.ema.model.parameters(), *moments)} == {
        torch.float32
    }


def test_a_loss_that_is_no_number_is_found_in_the_step_it_came_from(batches_of):
    trainer = made_trainer(mixed())
    for step in range(4):
        batches = batches_of(mixed(), step)
        if step == 2:
            batches[1].latents[0, 0, 0, 0, 0] = float("nan")
        trainer.step(batches, 6, 2, 1e-3)
    with pytest.raises(DataError, match=r"broke down at step 2: .* lower the learning rate"):
        trainer.check_finite()
