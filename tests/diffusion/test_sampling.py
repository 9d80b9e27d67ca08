"""Sampling: the reference's chains step by step, and what a sampled video may and may not depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bricks_core.diffusion.guidance import Network, guided, guided_denoiser
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.diffusion.sampling import ancestral_chain, sample_latents, solver_chain
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
    schedule = NoiseSchedule.of(len(vectors["in.timestep_map"]))
    assert torch.equal(schedule.timesteps, vectors["in.timestep_map"])
    noise = iter(vectors["in.noise"])
    steps: list[tuple[Tensor, Tensor]] = []
    final = ancestral_chain(
        guided_denoiser(network, vectors["in.y"], vectors["in.y_null"], scale=scale, num_channels=channels),
        schedule,
        vectors["in.z"],
        lambda: next(noise),
        frame_mask=vectors.get("in.mask"),
        on_step=lambda number, x, x0: steps.append((x, x0)),
    )
    assert len(steps) == schedule.num_steps
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


@pytest.mark.parametrize("method", ["iddpm", "dpm-solver++"])
def test_a_sample_is_the_same_in_any_batch(method):
    model = awake_model()
    together = sampled(model, [1, 5, 2], method=method)
    assert together.shape == (3, 4, 3, 4, 6)
    assert together.dtype == torch.float32
    for place, seed in enumerate([1, 5, 2]):
        torch.testing.assert_close(sampled(model, [seed], method=method)[0], together[place], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["iddpm", "dpm-solver++"])
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


def perfect(mean: float, deviation: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The best possible denoiser of latents that are all N(mean, deviation²), with the variance of the process."""
    bar = NoiseSchedule.of().alphas_cumprod

    def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
        level = bar[timestep].reshape(-1, 1, 1, 1, 1)
        seen_variance = level * deviation**2 + 1 - level
        noise = (1 - level).sqrt() * (x - level.sqrt() * mean) / seen_variance
        return torch.cat([noise, torch.ones_like(noise)], dim=1)

    return denoise


def test_both_chains_sample_the_distribution_a_perfect_denoiser_knows():
    generator = torch.Generator().manual_seed(3)

    def draw() -> Tensor:
        return torch.randn(2, 4, 4, 16, 16, generator=generator)

    ancestral = ancestral_chain(perfect(1.5, 0.5), NoiseSchedule.of(250), draw(), draw)
    solved = solver_chain(perfect(1.5, 0.5), draw(), 25)
    for latents in (ancestral, solved):
        assert latents.mean().item() == pytest.approx(1.5, abs=0.03)
        assert latents.std().item() == pytest.approx(0.5, abs=0.03)


def test_few_steps_of_the_solver_end_where_many_do():
    """The flow from noise to latents is one map; 25 steps follow it to a hundredth."""
    start = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(4))
    exact = solver_chain(perfect(0.5, 0.7), start, 500)
    assert relmax(solver_chain(perfect(0.5, 0.7), start, 25), exact) < 0.01


def test_frames_that_are_kept_come_back_as_they_were_but_for_the_last_step():
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(1, 4, 4, 4, 4, generator=generator)
    seen = []
    ancestral_chain(
        perfect(0.0, 1.0),
        NoiseSchedule.of(10),
        given,
        lambda: torch.randn(1, 4, 4, 4, 4, generator=generator),
        frame_mask=torch.tensor([[0.0, 1.0, 1.0, 0.0]]),
        on_step=lambda number, x, x0: seen.append(x),
    )
    for x in seen[:-1]:
        assert torch.equal(x[:, :, [0, 3]], given[:, :, [0, 3]])
        assert not torch.equal(x[:, :, [1, 2]], given[:, :, [1, 2]])
    torch.testing.assert_close(seen[-1][:, :, [0, 3]], given[:, :, [0, 3]], rtol=0, atol=0.1)
