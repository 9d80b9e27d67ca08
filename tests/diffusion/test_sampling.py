"""Sampling: the reference's chains step by step, and what a sampled video may and may not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bricks_core.diffusion.conditions import Condition, end_image, start_image
from bricks_core.diffusion.guidance import (
    Denoiser,
    Network,
    NullLength,
    guided,
    guided_denoiser,
    null_captions,
    side_by_side,
)
from bricks_core.diffusion.iddpm import IDDPMScheduler
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.diffusion.sampling import Chain, captioned_denoiser, check_scheduler, sample_latents, scheduler_named
from bricks_core.errors import SpecError
from bricks_core.models.stdit2 import STDiT2
from tests.golden_vectors import every_case

SIZES = ("num_frames", "height", "width", "ar", "fps")
TINY = {"hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 16, "model_max_length": 8}


def relmax(a: Tensor, reference: Tensor) -> float:
    assert a.shape == reference.shape
    return ((a - reference).abs().max() / reference.abs().max()).item()


# ------------------------------------------------------------------------------------------------------ golden chains


def signal_share(timestep: Tensor) -> Tensor:
    """g of the golden denoisers: about the share of noise in x at a timestep."""
    tau = timestep / 1000
    return torch.sqrt(1 - torch.exp(-(0.1 * tau + 9.95 * tau**2)))


def toy_network(x: Tensor, timestep: Tensor, captions: Tensor, x_mask: Tensor | None) -> Tensor:
    """The closed-form denoiser of tests/golden/README.md ("Toy denoiser")."""
    t = timestep.float()[:, None].expand(len(x), x.shape[2])
    if x_mask is not None:
        t = t * x_mask
    t = t[:, None, :, None, None]
    said = captions.flatten(1).mean(dim=1).reshape(-1, 1, 1, 1, 1)
    channel = torch.arange(4).reshape(1, 4, 1, 1, 1)
    noise = signal_share(t) * x + 0.1 * torch.sin(x.roll(-1, dims=1) + channel) + 0.2 * said
    return torch.cat([noise, 0.5 * torch.cos(x) + 0.3 * (2 * t / 1000 - 1)], dim=1)


def chain_as_the_golden_one(vectors: dict[str, Tensor], network: Network, scale: float, channels: int) -> None:
    """Walk a golden chain with its noise, and hold every step it kept."""
    noise = iter(vectors["in.noise"])
    steps: list[tuple[Tensor, Tensor]] = []
    num_steps = len(vectors["in.timestep_map"])
    chain = Chain(IDDPMScheduler(), num_steps, lambda: next(noise), device="cpu", frame_mask=vectors.get("in.mask"))
    assert torch.equal(chain.timesteps.flip(0), vectors["in.timestep_map"])
    final = chain.run(
        guided_denoiser(network, vectors["in.y"], vectors["in.y_null"], scale=scale, num_channels=channels),
        vectors["in.z"],
        vectors["in.z"],  # holds the frames that are given, too
        on_step=lambda number, x, x0: steps.append((x, x0)),
    )
    assert len(steps) == num_steps
    assert next(noise, None) is None, "the chain must use all of the noise"
    kept = vectors["out.steps_kept"].tolist()
    assert len(kept) == len(vectors["out.sample_after_step"]) == len(vectors["out.pred_xstart_at_step"]) > 0
    for place, number in enumerate(kept):
        assert relmax(steps[number][0], vectors["out.sample_after_step"][place]) <= 1e-4, number
        assert relmax(steps[number][1], vectors["out.pred_xstart_at_step"][place]) <= 1e-4, number
    assert relmax(final, vectors["out.final"]) <= 1e-4


@every_case("sampling_toy", "in.z")
def test_chains_of_a_closed_form_denoiser_are_the_reference_s(case, golden):
    vectors = golden("sampling_toy")[case]
    channels = 4 if "chNone" in case else 3  # the file says it in the name alone
    chain_as_the_golden_one(vectors, toy_network, vectors["in.cfg_scale"].item(), channels)


@every_case("sampling_model", "in.z")
@torch.no_grad()
def test_chains_of_the_small_network_are_the_reference_s(case, golden, small_model):
    vectors = golden("sampling_model")[case]
    sizes = {name: vectors[f"in.{name}"] for name in SIZES}

    def network(x: Tensor, timestep: Tensor, captions: Tensor, x_mask: Tensor | None) -> Tensor:
        noise, nu = small_model(x, timestep, captions, vectors["in.text_mask"], x_mask, **sizes).chunk(2, dim=1)
        return torch.cat([signal_share(timestep.float()).reshape(-1, 1, 1, 1, 1) * x + 0.1 * noise, 0.25 * nu], dim=1)

    chain_as_the_golden_one(vectors, network, 7.0, 3)


# ----------------------------------------------------------------------------------------------------------- guidance


def test_guidance_goes_away_from_the_captionless_answer_in_the_first_channels_only():
    with_caption, without = torch.randn(2, 8, 1, 2, 2), torch.randn(2, 8, 1, 2, 2)
    answer = guided(with_caption, without, scale=3.0, num_channels=3)
    torch.testing.assert_close(answer[:, :3], without[:, :3] + 3 * (with_caption[:, :3] - without[:, :3]))
    assert torch.equal(answer[:, 3:], with_caption[:, 3:])


def test_guidance_of_scale_1_is_the_answer_with_the_caption():
    x, timestep = torch.randn(2, 4, 3, 4, 4), torch.tensor([500, 20])
    captions, null = torch.randn(2, 1, 5, 8), torch.randn(6, 8)
    denoise = guided_denoiser(toy_network, captions, null, scale=1.0, num_channels=4)
    torch.testing.assert_close(denoise(x, timestep, None), toy_network(x, timestep, captions, None))


def test_the_null_caption_is_read_at_the_caption_s_length_or_whole():
    null, mask = torch.randn(6, 8), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    rows, seen = null_captions(null, mask, "caption")
    assert torch.equal(rows, null[:4].expand(2, 1, 4, 8))
    assert torch.equal(seen, mask)
    rows, seen = null_captions(null, mask, "whole")
    assert torch.equal(rows, null.expand(2, 1, 6, 8))
    assert torch.equal(seen, torch.ones(2, 6, dtype=torch.long))


def test_captions_of_two_lengths_are_laid_side_by_side():
    captions, mask, other, other_mask = side_by_side(
        torch.ones(2, 1, 3, 5), torch.ones(2, 3), torch.ones(2, 1, 4, 5), torch.ones(2, 4)
    )
    assert captions.shape == other.shape == (2, 1, 4, 5)
    assert mask.tolist() == [[1, 1, 1, 0]] * 2
    assert not captions[:, :, 3].any()
    assert other_mask.tolist() == [[1] * 4] * 2


def test_with_the_whole_null_caption_what_is_said_without_a_caption_depends_on_no_caption():
    model = awake_model()

    def without(length: int, null_length: NullLength) -> Tensor:
        captions, mask = torch.zeros(1, 1, 8, 16), (torch.arange(8) < length).long()[None]
        null = null_captions(model.y_embedder.y_embedding, mask, null_length)
        told = {"num_frames": 2, "pixel_size": (32, 32), "fps": 8.0}
        denoise = captioned_denoiser(model, captions, mask, *null, **told, scale=0.0, num_channels=4)
        return denoise(torch.ones(1, 4, 2, 4, 4), torch.tensor([500]), None)[:, :4]

    with torch.no_grad():
        torch.testing.assert_close(without(3, "whole"), without(7, "whole"))
        assert not torch.allclose(without(3, "caption"), without(7, "caption"))


# ----------------------------------------------------------------------------------------------------------- sampling


def awake_model(seed: int = 0) -> STDiT2:
    """A tiny network whose zero-initialised layers are filled, so that captions and frames matter."""
    torch.manual_seed(seed)
    model = STDiT2(**TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)
    return model.eval()


def sampled(model: STDiT2, seeds: list[int], captions: Tensor | None = None, **changed) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(8, 1, 8, 16, generator=generator)[seeds] if captions is None else captions
    mask = (torch.arange(8) < torch.arange(1, 9)[:, None]).long()[seeds]
    arguments = {"num_frames": 3, "latent_size": (4, 6), "pixel_size": (32, 48), "fps": 8.0, "num_steps": 4}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return sample_latents(model, features, mask, generators=generators, **(arguments | changed))


@pytest.mark.parametrize("method", ["iddpm", "dpm-solver++", "unipc"])
def test_a_sample_is_the_same_in_any_batch(method):
    model = awake_model()
    together = sampled(model, [1, 5, 2], method=method)
    assert together.shape == (3, 4, 3, 4, 6)
    assert together.dtype == torch.float32
    for place, seed in enumerate([1, 5, 2]):
        torch.testing.assert_close(sampled(model, [seed], method=method)[0], together[place], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["iddpm", "dpm-solver++", "unipc"])
def test_a_sample_follows_its_seed_and_its_caption(method):
    model = awake_model()
    first = sampled(model, [1], method=method)
    assert torch.equal(first, sampled(model, [1], method=method))
    other_caption = sampled(model, [1], torch.randn(1, 1, 8, 16), method=method)
    assert relmax(other_caption, first) > 1e-3
    other_noise = sampled(model, [2], torch.randn(1, 1, 8, 16), method=method)
    assert relmax(other_noise, other_caption) > 0.1


def test_sampling_reports_every_step():
    numbers = []
    sampled(awake_model(), [1], num_steps=5, on_step=lambda number, x, x0: numbers.append((number, x.shape, x0.shape)))
    assert numbers == [(number, (1, 4, 3, 4, 6), (1, 4, 3, 4, 6)) for number in range(5)]


def test_an_image_is_sampled_at_the_frame_rate_of_images():
    model = awake_model()
    assert torch.equal(sampled(model, [1], num_frames=1, fps=8.0), sampled(model, [1], num_frames=1, fps=120.0))
    assert not torch.equal(sampled(model, [1], fps=8.0), sampled(model, [1], fps=120.0))


def test_every_caption_needs_its_own_noise():
    with pytest.raises(SpecError, match="2 captions need as many generators"):
        sample_latents(
            awake_model(),
            torch.randn(2, 1, 8, 16),
            torch.ones(2, 8),
            num_frames=1,
            latent_size=(4, 4),
            pixel_size=(32, 32),
            fps=8,
            generators=[torch.Generator()],
        )


# -------------------------------------------------------------------------------------------- schedulers of diffusers

SOLVERS = {
    "DPM++": lambda: scheduler_named("dpm-solver++"),
    "UniPC": lambda: scheduler_named("unipc"),
    "UniPC, third order": lambda: of("UniPCMultistepScheduler", solver_order=3),
    "DDIM": lambda: of("DDIMScheduler"),
    "Euler": lambda: of("EulerDiscreteScheduler"),
    "Heun": lambda: of("HeunDiscreteScheduler"),
    "KDPM2": lambda: of("KDPM2DiscreteScheduler"),
    "DEIS": lambda: of("DEISMultistepScheduler"),
    "PNDM": lambda: of("PNDMScheduler", skip_prk_steps=True),
    "DPM++ singlestep": lambda: of("DPMSolverSinglestepScheduler"),
    "DPM++ third order, Karras": lambda: of("DPMSolverMultistepScheduler", solver_order=3, use_karras_sigmas=True),
}
"""Schedulers that draw no noise on the way."""
DRAWING = {
    "DDPM": lambda: of("DDPMScheduler"),
    "DDPM, learned variance": lambda: of("DDPMScheduler", variance_type="learned_range", timestep_spacing="linspace"),
    "Euler ancestral": lambda: of("EulerAncestralDiscreteScheduler"),
    "DPM++ SDE": lambda: of("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
}


def of(name: str, **changed: Any) -> Any:
    """Any scheduler of diffusers, from the config of ours, as its users change schedulers."""
    return getattr(diffusers, name).from_config(scheduler_named("dpm-solver++").config, **changed)


def every_scheduler(*kinds: dict[str, Callable[[], Any]]) -> pytest.MarkDecorator:
    made = {name: make for kind in kinds for name, make in kind.items()}
    return pytest.mark.parametrize("make", list(made.values()), ids=list(made))


def signal_variance(timestep: Tensor) -> Tensor:
    """ᾱ, also between two steps, where some schedulers stand.  (B,) -> (B, 1, 1, 1, 1)"""
    bar = NoiseSchedule.of().alphas_cumprod
    odds, low = ((1 - bar) / bar).sqrt(), timestep.floor().long()
    sigma = odds[low].lerp(odds[(low + 1).clamp(max=999)], (timestep.double() % 1).float())
    return (1 / (1 + sigma**2)).reshape(-1, 1, 1, 1, 1)


def perfect(mean: float, deviation: float) -> Denoiser:
    """The best possible denoiser of latents that are all N(mean, deviation²), with the variance of the process."""

    def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
        level = signal_variance(timestep)
        seen_variance = level * deviation**2 + 1 - level
        noise = (1 - level).sqrt() * (x - level.sqrt() * mean) / seen_variance
        return torch.cat([noise, torch.ones_like(noise)], dim=1)

    return denoise


def chained(
    scheduler: Any,
    denoise: Denoiser,
    num_steps: int,
    shape: tuple[int, ...] = (1, 4, 2, 8, 8),
    *,
    seed: int = 4,
    clean: Tensor | None = None,
    frame_mask: Tensor | None = None,
    on_step: Any = None,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    chain = Chain(scheduler, num_steps, draw, device="cpu", generator=generator, frame_mask=frame_mask)
    return chain.run(denoise, draw(), clean, on_step=on_step)


@every_scheduler(SOLVERS, DRAWING, {"IDDPM": IDDPMScheduler})
def test_any_scheduler_samples_the_distribution_a_perfect_denoiser_knows(make):
    latents = chained(make(), perfect(1.5, 0.5), 100, (2, 4, 4, 16, 16))
    assert latents.mean().item() == pytest.approx(1.5, abs=0.04)
    assert latents.std().item() == pytest.approx(0.5, abs=0.04)


@every_scheduler(SOLVERS)
def test_a_solver_s_few_steps_end_where_many_do(make):
    """The flow from noise to latents is one map. A thousand steps of DDIM, of first order, follow it closely."""
    exact = chained(of("DDIMScheduler"), perfect(0.5, 0.7), 1000)
    assert relmax(chained(make(), perfect(0.5, 0.7), 50), exact) < 0.05


@pytest.mark.parametrize("method", ["dpm-solver++", "unipc"])
def test_the_named_solvers_need_few_steps(method):
    exact = chained(scheduler_named(method), perfect(0.5, 0.7), 1000)
    assert relmax(chained(scheduler_named(method), perfect(0.5, 0.7), 20), exact) < 0.02


@pytest.mark.parametrize("num_steps", [60, 61, 103, 201])
@pytest.mark.parametrize("method", ["iddpm", "dpm-solver++", "unipc"])
def test_a_chain_has_as_many_steps_as_were_asked_for_and_none_below_timestep_0(method, num_steps):
    asked: list[int] = []

    def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
        asked.append(int(timestep[0]))
        return perfect(0.5, 0.7)(x, timestep, x_mask)

    chained(scheduler_named(method), denoise, num_steps, (1, 4, 1, 2, 2))
    assert len(asked) == num_steps
    assert min(asked) >= 0
    assert asked == sorted(asked, reverse=True)


@every_scheduler(SOLVERS, {"IDDPM": IDDPMScheduler})
def test_between_the_network_s_calls_everything_is_float32_whatever_autocast_is_around(make):
    usual = chained(make(), perfect(0.5, 0.7), 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chained(make(), perfect(0.5, 0.7), 6), usual)


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), "flow matching"),
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "flow matching"),
        (diffusers.DDIMScheduler(prediction_type="v_prediction"), 'predictions of kind "v_prediction"'),
        (diffusers.DDIMScheduler(), "clips to"),
        (diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False), "on another schedule"),
        (diffusers.DPMSolverMultistepScheduler(variance_type="learned_range"), "no use for a learned variance"),
        (diffusers.RePaintScheduler(clip_sample=False), "a way of its own"),
    ],
)
def test_a_scheduler_of_another_process_is_refused_with_its_reason(scheduler, why):
    with pytest.raises(SpecError, match=why):
        check_scheduler(scheduler)


def test_a_learned_variance_needs_a_last_step_that_has_none():
    with pytest.raises(SpecError, match="leave noise in the last step"):
        chained(of("DDPMScheduler", variance_type="learned_range"), perfect(0, 1), 5)


def test_a_way_to_sample_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(SpecError, match=r'"unipcc" is no way .*did you mean "unipc"'):
        scheduler_named("unipcc")


def test_the_reference_s_scheduler_is_saved_and_loaded_and_makes_others(tmp_path):
    IDDPMScheduler().save_pretrained(tmp_path)
    loaded = IDDPMScheduler.from_pretrained(tmp_path)
    assert loaded.config.beta_end == 0.02
    torch.testing.assert_close(chained(loaded, perfect(0, 1), 5), chained(IDDPMScheduler(), perfect(0, 1), 5))
    check_scheduler(diffusers.DDIMScheduler.from_config(loaded.config))
    IDDPMScheduler.from_config(scheduler_named("unipc").config)


def test_the_reference_s_scheduler_is_of_its_process_and_no_other():
    with pytest.raises(SpecError, match=r"cannot have beta_end 0\.012"):
        IDDPMScheduler(beta_end=0.012)


def test_the_reference_s_scheduler_wants_a_network_that_learned_a_variance():
    with pytest.raises(SpecError, match="learned no variance"):
        chained(IDDPMScheduler(), lambda x, timestep, x_mask: torch.zeros_like(x), 5)


# ------------------------------------------------------------------------------------------------------- given frames


def knows(clean: Tensor) -> Denoiser:
    """Sees in any noise the one video there is; the network's answers for clean frames are noise, as they may be."""

    def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
        level = signal_variance(timestep)
        answer = (x - level.sqrt() * clean) / (1 - level).sqrt()
        if x_mask is not None:
            answer = torch.where(x_mask[:, None, :, None, None], answer, 100 * torch.randn_like(answer))
        return torch.cat([answer, torch.ones_like(answer)], dim=1)

    return denoise


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([*SOLVERS, *DRAWING]),
    num_steps=st.integers(3, 12),
    ratios=st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_kept_frames_come_back_exactly_and_frames_that_join_have_no_wrong_memory(name, num_steps, ratios, seed):
    """By a network that knows the video, whatever is begun anywhere on the way ends in it."""
    clean = torch.randn(1, 4, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    scheduler, mask = (SOLVERS | DRAWING)[name](), torch.tensor([ratios])
    final = chained(scheduler, knows(clean), num_steps, tuple(clean.shape), clean=clean, frame_mask=mask)
    kept = (mask[0] * len(scheduler.timesteps)).long() == 0
    assert torch.equal(final[:, :, kept], clean[:, :, kept])
    torch.testing.assert_close(final, clean, atol=0.1, rtol=0)  # DDIM takes 1000 / n for a whole number


@every_scheduler(SOLVERS, DRAWING)
def test_a_mask_that_keeps_nothing_changes_nothing(make):
    free = chained(make(), perfect(0.5, 0.7), 6)
    assert torch.equal(
        chained(make(), perfect(0.5, 0.7), 6, clean=torch.ones(1, 4, 2, 8, 8), frame_mask=torch.ones(1, 2)), free
    )


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7])
def test_a_frame_is_shown_clean_until_its_share_of_the_steps_is_left(ratio):
    """And then as noise, and called so."""
    clean, seen = torch.full((1, 4, 2, 4, 4), 7.0), []

    def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
        assert x_mask is not None
        seen.append((bool(x_mask[0, 0]), torch.equal(x[:, :, 0], clean[:, :, 0])))
        return perfect(0.0, 1.0)(x, timestep, x_mask)

    chained(
        scheduler_named("dpm-solver++"),
        denoise,
        10,
        tuple(clean.shape),
        clean=clean,
        frame_mask=torch.tensor([[ratio, 1]]),
    )
    num_noisy = 0 if ratio == 0 else int(10 * ratio) + 1
    assert seen == [(False, True)] * (10 - num_noisy) + [(True, False)] * num_noisy


@pytest.mark.parametrize("method", ["dpm-solver++", "unipc"])
def test_the_smaller_its_ratio_the_nearer_an_edited_frame_stays(method):
    clean = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0.0, 0.2, 0.5, 0.8, 1.0]])
    final = chained(scheduler_named(method), perfect(0.0, 1.0), 20, tuple(clean.shape), clean=clean, frame_mask=mask)
    distances = (final - clean).pow(2).mean(dim=(0, 1, 3, 4)).tolist()
    assert distances == sorted(distances)
    assert distances[0] == 0
    assert distances[1] < distances[4] / 2


def test_with_the_reference_s_chain_frames_that_are_kept_come_back_as_they_were_but_for_the_last_step():
    clean, seen = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(5)), []
    chained(
        IDDPMScheduler(),
        perfect(0.0, 1.0),
        10,
        tuple(clean.shape),
        clean=clean,
        frame_mask=torch.tensor([[0.0, 1.0, 1.0, 0.0]]),
        on_step=lambda number, x, x0: seen.append(x),
    )
    for x in seen[:-1]:
        assert torch.equal(x[:, :, [0, 3]], clean[:, :, [0, 3]])
        assert not torch.equal(x[:, :, [1, 2]], clean[:, :, [1, 2]])
    torch.testing.assert_close(seen[-1][:, :, [0, 3]], clean[:, :, [0, 3]], rtol=0, atol=0.1)


@pytest.mark.parametrize("method", ["iddpm", "dpm-solver++", "unipc"])
def test_given_frames_shape_the_frames_between_them(method):
    model, generator = awake_model(), torch.Generator().manual_seed(3)
    first, last = torch.randn(4, 1, 4, 6, generator=generator), torch.randn(4, 1, 4, 6, generator=generator)
    between = {"references": [[first, last]], "conditions": [[start_image(), end_image(1)]], "method": method}
    made = sampled(model, [1], **between)
    if method != "iddpm":
        assert torch.equal(made[0, :, [0]], first)
        assert torch.equal(made[0, :, [2]], last)
    free = sampled(model, [1], method=method)
    assert relmax(made[:, :, 1], free[:, :, 1]) > 1e-3
    assert torch.equal(
        sampled(model, [1], references=[[first]], conditions=[[Condition(loop=2)]], method="unipc"),
        sampled(model, [1], method="unipc"),
    ), "another loop's"
