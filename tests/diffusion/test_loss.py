"""What training minimises, against the reference's losses, gradients and first steps, and against what it means."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bricks_core.diffusion.loss import (
    REFERENCE_MASK_RATIOS,
    Losses,
    denoising_loss,
    draw_frame_mask,
    frame_mask,
    gaussian_divergence,
)
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.errors import SpecError
from tests.golden_vectors import every_case, every_entry

SCHEDULE = NoiseSchedule.of()
SIZES = ("num_frames", "height", "width", "ar", "fps")
STRATEGIES = st.sampled_from(sorted(REFERENCE_MASK_RATIOS))


def relative(a: Tensor, reference: Tensor) -> float:
    return ((a.double() - reference.double()).abs() / reference.double().abs()).max().item()


# ------------------------------------------------------------------------------------------------------ golden losses


@every_case("diffusion_losses", "in.t")
def test_losses_of_given_answers_are_the_reference_s(case, golden):
    vectors = golden("diffusion_losses")[case]
    x0, noise, step, mask = vectors["in.x0"], vectors["in.noise"], vectors["in.t"], vectors.get("in.mask")
    x_t = SCHEDULE.add_noise(x0, noise, step, mask)
    torch.testing.assert_close(x_t, vectors["out.x_t_seen_by_model"], rtol=1e-5, atol=1e-6)
    assert torch.equal(SCHEDULE.timesteps[step], vectors["out.t_seen_by_model"])
    losses = denoising_loss(SCHEDULE, vectors["in.model_output"], x0, x_t, noise, step, mask)
    assert relative(losses.mse, vectors["out.mse"]) <= 1e-5
    assert relative(losses.vb, vectors["out.vb"]) <= 1e-4
    assert relative(losses.loss, vectors["out.loss"]) <= 1e-4


def losses_of(model, vectors: dict[str, Tensor], sizes: dict[str, Tensor]) -> Losses:
    """One training step's losses, as the trainer computes them."""
    x0, noise, step, mask = vectors["in.x0"], vectors["in.noise"], vectors["in.t"], vectors.get("in.x_mask")
    x_t = SCHEDULE.add_noise(x0, noise, step, mask)
    output = model(x_t, step, vectors["in.y"], vectors.get("in.mask"), mask, **sizes)
    return denoising_loss(SCHEDULE, output, x0, x_t, noise, step, mask)


def probe(tensor: Tensor) -> Tensor:
    """L2 norm, sum, and eight entries: how the golden files describe a large tensor (tests/golden/README.md)."""
    flat = tensor.detach().double().flatten()
    places = torch.linspace(0, len(flat) - 1, 8, dtype=torch.float64).floor().long()
    return torch.cat([flat.norm()[None], flat.sum()[None], flat[places]])


@every_case("gradients", "in.t")
def test_gradients_of_all_parameters_are_the_reference_s(case, golden, small_model):
    vectors = golden("gradients")[case]
    small_model.train()
    losses = losses_of(small_model, vectors, {name: vectors[f"in.{name}"] for name in SIZES})
    for name in ("loss", "mse", "vb"):
        assert relative(getattr(losses, name), vectors[f"out.{name}"]) <= 1e-4
    assert relative(losses.loss.detach().mean(), vectors["out.mean_loss"]) <= 1e-4
    losses.loss.mean().backward()

    trained = {name: parameter for name, parameter in small_model.named_parameters() if parameter.requires_grad}
    assert {f"probe.{name}" for name in trained} == {name for name in vectors if name.startswith("probe.")}
    assert {name.removeprefix("grad.") for name in vectors if name.startswith("grad.")} <= trained.keys()
    for name, parameter in trained.items():
        ours, theirs = probe(parameter.grad), vectors[f"probe.{name}"]
        assert relative(ours[0], theirs[0]) <= 1e-4, name
        assert (ours[2:] - theirs[2:]).abs().max() <= 1e-4 * theirs[0], name
        if f"grad.{name}" in vectors:
            whole = vectors[f"grad.{name}"]
            assert (parameter.grad - whole).abs().max() <= 1e-4 * whole.abs().max(), name
    norm = torch.nn.utils.get_total_norm([parameter.grad.double() for parameter in trained.values()])
    assert relative(norm, vectors["out.grad_norm"]) <= 1e-5


def test_its_first_steps_of_training_follow_the_reference(golden, small_model):
    cases = golden("train_trajectory")
    small_model.train()
    trained = {name: parameter for name, parameter in small_model.named_parameters() if parameter.requires_grad}
    averaged = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    assert "step0" in cases
    for number in range(sum(case.startswith("step") for case in cases)):
        vectors = cases[f"step{number}"]
        loss = losses_of(small_model, vectors, {name: cases["info"][name] for name in SIZES}).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.param_groups[0]["lr"] = vectors["in.lr"].item()
        optimizer.step()
        for name, parameter in trained.items():
            averaged[name].lerp_(parameter.detach(), 0.1)
        assert relative(loss.detach(), vectors["out.loss"]) <= 1e-4, number
        assert relative(norm, vectors["out.grad_norm"]) <= 1e-3, number
    assert cases[""].keys() == {f"{which}.probe.{name}" for which in ("final", "ema") for name in trained}
    for which, weights in (("final", trained), ("ema", averaged)):
        for name, weight in weights.items():
            ours, theirs = probe(weight), cases[""][f"{which}.probe.{name}"]
            assert relative(ours[0], theirs[0]) <= 1e-4, name
            assert (ours[2:] - theirs[2:]).abs().max() <= 5e-4, name


# --------------------------------------------------------------------------------------------------------- properties


def batch(seed: int, samples: int = 3, frames: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(samples, channels, frames, 4, 6, generator=generator)

    return {"x0": draw(4), "noise": draw(4), "output": draw(8), "step": torch.tensor([0, 40, 900])[:samples]}


def test_the_right_noise_has_no_error():
    given_ = batch(0)
    x_t = SCHEDULE.add_noise(given_["x0"], given_["noise"], given_["step"])
    output = torch.cat([given_["noise"], given_["output"][:, 4:]], dim=1)
    losses = denoising_loss(SCHEDULE, output, given_["x0"], x_t, given_["noise"], given_["step"])
    assert losses.mse.tolist() == [0, 0, 0]
    assert torch.equal(losses.loss, losses.mse + losses.vb)


def test_the_variational_bound_is_least_at_the_true_variance():
    """With the right noise, KL(q ‖ p) is 0 when p has q's variance (ν = -1), and more for any other."""
    given_ = batch(1)
    step = torch.tensor([5, 40, 200])
    x_t = SCHEDULE.add_noise(given_["x0"], given_["noise"], step)

    def bound(nu: float) -> Tensor:
        output = torch.cat([given_["noise"], torch.full_like(given_["noise"], nu)], dim=1)
        return denoising_loss(SCHEDULE, output, given_["x0"], x_t, given_["noise"], step).vb

    assert (bound(-1.0).abs() < 1e-5).all()
    assert (bound(1.0) > bound(-1.0)).all()


def test_the_variational_bound_trains_the_variance_alone():
    given_ = batch(2)
    output = given_["output"].requires_grad_()
    x_t = SCHEDULE.add_noise(given_["x0"], given_["noise"], given_["step"])
    losses = denoising_loss(SCHEDULE, output, given_["x0"], x_t, given_["noise"], given_["step"])
    (gradient,) = torch.autograd.grad(losses.vb.sum(), output)
    assert gradient[:, :4].abs().max() == 0
    assert gradient[:, 4:].abs().max() > 0


def test_what_a_network_says_of_clean_frames_changes_nothing():
    given_ = batch(3)
    mask = torch.tensor([[False, True, True, True], [True, True, False, False], [True] * 4])
    x_t = SCHEDULE.add_noise(given_["x0"], given_["noise"], given_["step"], mask)
    answers = [given_["output"], torch.where(mask[:, None, :, None, None], given_["output"], 123.0)]
    first, second = (
        denoising_loss(SCHEDULE, answer, given_["x0"], x_t, given_["noise"], given_["step"], mask) for answer in answers
    )
    assert torch.equal(first.loss, second.loss)


def test_a_mask_that_is_true_everywhere_is_no_mask():
    given_ = batch(4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    x_t = SCHEDULE.add_noise(given_["x0"], given_["noise"], given_["step"])
    assert torch.equal(x_t, SCHEDULE.add_noise(given_["x0"], given_["noise"], given_["step"], mask))
    arguments = (given_["output"], given_["x0"], x_t, given_["noise"], given_["step"])
    torch.testing.assert_close(
        denoising_loss(SCHEDULE, *arguments, mask).loss, denoising_loss(SCHEDULE, *arguments).loss
    )


def test_a_sample_has_the_same_loss_in_any_batch():
    given_ = batch(5)
    x_t = SCHEDULE.add_noise(given_["x0"], given_["noise"], given_["step"])
    arguments = (given_["output"], given_["x0"], x_t, given_["noise"], given_["step"])
    together = denoising_loss(SCHEDULE, *arguments).loss
    for i in range(3):
        alone = denoising_loss(SCHEDULE, *(tensor[i : i + 1] for tensor in arguments)).loss
        torch.testing.assert_close(alone[0], together[i])


def test_the_divergence_of_gaussians_is_that_of_torch():
    generator = torch.Generator().manual_seed(6)
    mean_q, log_q, mean_p, log_p = torch.randn(4, 100, generator=generator)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean_q, (0.5 * log_q).exp()), torch.distributions.Normal(mean_p, (0.5 * log_p).exp())
    )
    torch.testing.assert_close(gaussian_divergence(mean_q, log_q, mean_p, log_p), expected, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- frame masks


class Replayed(random.Random):
    """Draws the integers it is told to, and holds that they are asked for within the bounds it is told."""

    def __init__(self, draws: list[list[int]]):
        super().__init__(0)
        self.draws = list(draws)

    def randint(self, a: int, b: int) -> int:
        low, high, value = self.draws.pop(0)
        assert (a, b) == (low, high)
        return value


def test_given_draws_make_the_reference_s_masks(golden_json):
    stored = golden_json("training_masks")["deterministic"]
    assert stored
    for case in stored:
        draws = Replayed(case["integer_draws"])
        mask = frame_mask(case["strategy"], case["T"], draws)
        assert [int(frame) for frame in mask] == case["mask"], case
        assert draws.draws == []


@every_entry("training_masks", "seeded")
def test_a_seed_of_python_s_random_draws_the_reference_s_masks(case, golden_json):
    stored = golden_json("training_masks")["seeded"][case]
    rng = random.Random(stored["python_random_seed"])
    masks = [draw_frame_mask(stored["ratios"], stored["T"], rng) for _ in range(stored["batch"])]
    assert [[int(frame) for frame in mask] for mask in masks] == stored["masks"]


def test_the_reference_s_ratios_are_those_of_its_recipes(golden_json):
    assert golden_json("training_masks")["train_ratios"] == REFERENCE_MASK_RATIOS


@given(strategy=STRATEGIES, num_frames=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_a_mask_always_leaves_a_frame_to_generate_and_clean_ones_only_where_it_says(strategy, num_frames, seed):
    mask = frame_mask(strategy, num_frames, random.Random(seed))
    assert len(mask) == num_frames
    assert any(mask)
    clean = mask.count(False)
    ends = 2 if strategy.endswith("head_tail") else 1
    if strategy == "mask_no" or num_frames == 1:
        assert clean == 0
    elif "quarter" in strategy:
        assert clean <= ends * (num_frames // 4)
    else:
        assert clean in (0, ends)
    if clean and "head" in strategy:
        assert not mask[0]
    if clean and "tail" in strategy:
        assert not mask[-1]


def test_strategies_are_drawn_as_often_as_the_ratios_say():
    rng = random.Random(7)
    masks = [draw_frame_mask(REFERENCE_MASK_RATIOS, 16, rng) for _ in range(4000)]
    assert sum(all(mask) for mask in masks) / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("ratios", "sentence"),
    [({"mask_no": 0.5}, "add up to 1"), ({"mask_half": 1.0}, "no mask mask_half"), ({}, "add up to 1")],
)
def test_ratios_that_cannot_be_are_refused(ratios, sentence):
    with pytest.raises(SpecError, match=sentence):
        draw_frame_mask(ratios, 8, random.Random(0))
