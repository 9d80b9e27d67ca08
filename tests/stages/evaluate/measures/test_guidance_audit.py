"""A null branch is sound or weak: exact predictors of mixtures, and a tiny network that was trained."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Frame, Prompts
from bricks_core.diffusion.noise_schedule import base_betas
from bricks_core.errors import DataError
from bricks_core.report.intervals import Interval
from bricks_core.spec.train import STDiT2Spec
from bricks_core.stages.evaluate.measures.guidance_audit import (
    LEAST,
    NUMBERS,
    Predicted,
    audited,
    compared,
    finding,
    noise_at_0,
    roughness,
    scales_of,
)

TIMESTEPS = (100, 300, 500, 700, 900)
KEPT = np.cumprod(1 - base_betas())
SPREAD = 0.5  # of what one caption describes
NUM_NUMBERS = 48


def of_mixture(worth, null, *, num_clips=16, num_captions=8, seed=0, bias=1.0):
    """What the exact predictor of a mixture is found to be: a caption names one of its Gaussians, which lie `worth`
    apart. Its `null` branch: exact, the mean of what captions say, noisy (by `bias` of how far captions lie apart), or
    as if it were a caption of its own that nobody knows."""
    rng = np.random.default_rng(seed)
    centres = worth * rng.normal(size=(num_captions, NUM_NUMBERS))
    caption = rng.integers(0, num_captions, num_clips)
    other = (caption + rng.integers(1, num_captions, num_clips)) % num_captions
    clean = centres[caption] + SPREAD * rng.normal(size=(num_clips, NUM_NUMBERS))
    stranger = bias * rng.normal(size=NUM_NUMBERS)
    cells = []
    for timestep in TIMESTEPS:
        signal, level = math.sqrt(KEPT[timestep]), math.sqrt(1 - KEPT[timestep])
        noise = rng.normal(size=clean.shape)
        noised, variance = signal * clean + level * noise, (signal * SPREAD) ** 2 + level**2
        said = np.stack([level * (noised - signal * centre) / variance for centre in centres])
        likely = np.stack([-((noised - signal * centre) ** 2).sum(1) / (2 * variance) for centre in centres])
        share = np.exp(likely - likely.max(0))
        without = {
            "exact": lambda said=said, share=share: ((share / share.sum(0))[..., None] * said).sum(0),
            "mean": lambda said=said: said.mean(0),
            "noisy": lambda said=said: said.mean(0) + bias * said.std(0).mean() * rng.normal(size=clean.shape),
            "stranger": lambda noised=noised, signal=signal, level=level, variance=variance: (
                level * (noised - signal * stranger) / variance
            ),
        }[null]()
        everyone = np.arange(num_clips)
        cells.append(compared(Predicted(said[caption, everyone], said[other, everyone], without, noise)))
    return audited(np.stack(cells, axis=1), TIMESTEPS, [each // 4 for each in range(num_clips)])


@settings(max_examples=40, deadline=None, derandomize=True)  # one in forty intervals leaves the truth below it
@given(
    st.floats(0, 4), st.sampled_from(["exact", "mean"]), st.integers(2, 12), st.integers(4, 24), st.integers(0, 10_000)
)
def test_an_ideal_null_branch_is_sound_whatever_captions_are_worth(worth, null, num_captions, num_clips, seed):
    assert finding(of_mixture(worth, null, num_captions=num_captions, num_clips=num_clips, seed=seed)) == ""


@pytest.mark.parametrize("worth", [0, 0.05, 0.2, 1, 3])
def test_with_many_clips_an_ideal_null_branch_has_no_excess(worth):
    found = of_mixture(worth, "exact", num_clips=400)
    assert found.excess.value < LEAST / 10
    assert found.excess.value <= found.worth.value + 1e-9


@pytest.mark.parametrize("worth", [0.2, 1, 3])
def test_noise_in_the_null_branch_is_found(worth):
    assert all(finding(of_mixture(worth, "noisy", bias=2, seed=seed)) for seed in range(10))


@pytest.mark.parametrize("worth", [0, 0.05, 0.2, 1])
def test_a_null_branch_that_says_something_of_its_own_is_found_whatever_captions_are_worth(worth):
    for seed in range(10):
        found = of_mixture(worth, "stranger", bias=3, seed=seed)
        assert found.excess.low > 0
        assert f"{100 * found.excess.value:.1f} %" in finding(found)


def test_the_worse_the_null_branch_the_larger_the_excess_and_the_more_directions_are_alike():
    found = [of_mixture(1, "noisy", bias=bias) for bias in (0, 0.5, 1, 2, 4)]
    shared = [np.mean([each.shared.value for each in one.bins]) for one in found]
    assert [one.excess.value for one in found] == sorted(one.excess.value for one in found)
    assert shared == sorted(shared)
    assert shared[0] < 0 < 0.7 < shared[-1]


def test_bins_tell_losses_norms_and_cosines_of_their_timesteps():
    found = of_mixture(1, "exact")
    assert [(each.first_timestep, each.end_timestep) for each in found.bins] == [
        (0, 200), (200, 400), (400, 600), (600, 800), (800, 1000)
    ]  # fmt: skip
    for each in found.bins:
        assert each.loss_caption < each.loss_null * 1.001 < each.loss_other
        assert 0.5 < each.norm_ratio.value < 1.5
        assert 0.5 < each.cosine.value <= 1
        assert each.norm_ratio.num == 4  # films
    assert [each.loss_caption for each in found.bins] == sorted(
        (each.loss_caption for each in found.bins), reverse=True
    )


def test_a_single_caption_is_held_against_itself():
    rng = np.random.default_rng(0)
    own, target = rng.normal(size=(2, 6, 5, 30))
    same, off = (
        np.stack([compared(Predicted(own[:, t], None, without[:, t], target[:, t])) for t in range(5)], axis=1)
        for without in (own, own + 1)
    )
    found = audited(same, TIMESTEPS, range(6))
    assert (found.excess.value, found.worth.value, found.bins[0].shared, finding(found)) == (0, 0, None, "")
    assert found.bins[0].loss_other == found.bins[0].loss_caption
    assert finding(audited(off, TIMESTEPS, range(6)))


def test_a_network_that_says_nothing_yet_says_the_same_with_and_without_a_caption():
    nothing = np.zeros((3, 5))
    told = dict(zip(NUMBERS, compared(Predicted(nothing, nothing, nothing, nothing + 1)).T, strict=True))
    assert {name: values.tolist() for name, values in told.items()} == dict.fromkeys(NUMBERS, [1] * 3) | {
        "shared": [0] * 3
    }


def test_clips_of_a_single_film_prove_nothing():
    cells = np.ones((8, 5, len(NUMBERS)))
    cells[..., -1] = 9
    assert finding(audited(cells, TIMESTEPS, ["film"] * 8)) == ""
    assert finding(audited(cells, TIMESTEPS, ["a", "b"] * 4))


def test_numbers_of_another_shape_are_refused():
    for shape in ((0, 5, 6), (3, 4, 6), (3, 5, 5), (3, 5)):
        with pytest.raises(DataError, match=r"\(N, 5, 6\)"):
            audited(np.ones(shape), TIMESTEPS, range(shape[0]))


# ----------------------------------------------------------------------------------------------------- what is sampled


def smooth(num_frames=4, size=16):
    rng = np.random.default_rng(0)
    way = np.linspace(-1, 1, size)
    return (
        rng.normal(size=(4, num_frames, 1, 1)) * way[:, None] + rng.normal(size=(4, num_frames, 1, 1)) * way
    ).astype(np.float32)


def test_noise_is_rough_and_pictures_are_not_and_what_is_between_lies_between():
    noise = np.random.default_rng(1).normal(size=(4, 4, 16, 16))
    assert roughness(noise) == pytest.approx(1, abs=0.1)
    assert roughness(smooth()) < 0.1
    way = [roughness(smooth() + strength * noise) for strength in (0, 0.2, 0.5, 1, 3)]
    assert way == sorted(way)
    assert roughness(5 * smooth() + 3) == pytest.approx(roughness(smooth()), rel=1e-3)


@given(st.tuples(*[st.integers(1, 5)] * 4), st.integers(0, 9))
def test_any_latents_have_a_roughness_between_0_and_1(shape, seed):
    assert 0 <= roughness(np.random.default_rng(seed).normal(size=shape)) <= 1
    assert roughness(np.full(shape, 7.0)) == 0


def test_what_are_no_latents_is_told():
    with pytest.raises(DataError, match=r"\(C, T, H, W\)"):
        roughness(np.zeros((4, 16, 16)))


SCALES, PROMPTS = [0.0, 1.0, 4.0] * 4, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_samples_at_guidance_0_that_are_noise_are_found_and_those_that_are_as_at_1_are_not():
    noise = [0.9, 0.2, 0.1, 0.95, 0.3, 0.1, 0.85, 0.2, 0.2, 0.9, 0.25, 0.1]
    rougher = noise_at_0(SCALES, noise, PROMPTS)
    assert "samples at guidance 0 are noise" in finding(None, rougher)
    assert f"{rougher.value:.2f}" in finding(None, rougher)
    alike = [0.21, 0.2, 0.1, 0.29, 0.3, 0.1, 0.22, 0.2, 0.2, 0.24, 0.25, 0.1]
    assert finding(None, noise_at_0(SCALES, alike, PROMPTS)) == ""
    # All of it is noise: then it is not the null branch that is weak.
    assert finding(None, noise_at_0(SCALES, [0.9 + 0.01 * (i % 3) for i in range(12)], PROMPTS)) == ""
    assert noise_at_0([4.0, 7.0], [0.1, 0.1], [0, 0]) is None
    assert finding(None, Interval(0.5, -math.inf, math.inf, 1)) == ""
    assert finding(None) == ""


def test_every_scale_has_its_roughness():
    found = scales_of(40, SCALES, np.linspace(0, 1, 12), PROMPTS)
    assert [(each.step, each.guidance, each.roughness.num) for each in found] == [(40, 0, 4), (40, 1, 4), (40, 4, 4)]
    assert found[0].roughness.value < found[2].roughness.value


# ----------------------------------------------------------------------------------------------- a network that learns

WIDTH, TOKENS, NUM_CAPTIONS, SIDE = 16, 3, 4, 4


def clips(num, generator):
    """Latents (N, C, 1, H, W) that are nearly all that their caption says, and the captions' numbers."""
    said = torch.randn(NUM_CAPTIONS, 4, 1, 1, 1, generator=torch.Generator().manual_seed(5))
    caption = torch.randint(0, NUM_CAPTIONS, (num,), generator=generator)
    return 2 * said[caption] + 0.2 * torch.randn(num, 4, 1, SIDE, SIDE, generator=generator), caption


def texts(captions):
    return torch.randn(NUM_CAPTIONS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(9))[captions]


@pytest.fixture(scope="module")
def trained():
    """A tiny network that has learnt four captions, a fifth of them dropped."""
    torch.manual_seed(0)
    spec = STDiT2Spec(hidden_size=24, depth=1, num_heads=2, input_sq_size_px=32)
    family = family_of(spec)
    network = family.build(spec, text_width=WIDTH, max_tokens=TOKENS, caption_dropout=0.2)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(1)
    sizes = {"num_frames": 1.0, "height": 8.0 * SIDE, "width": 8.0 * SIDE, "ar": 1.0, "fps": 120.0}
    for _ in range(300):
        latents, caption = clips(48, generator)
        batch = MicroBatch(
            bucket=0,
            latents=latents.transpose(1, 2),
            noise=torch.randn(latents.shape, generator=generator),
            text=texts(caption),
            text_mask=torch.ones(48, TOKENS, dtype=torch.bool),
            timestep=torch.randint(0, 1000, (48,), generator=generator),
            drop=torch.rand(48, generator=generator) < 0.2,
            frame_mask=None,
            sizes={name: torch.full((48,), value) for name, value in sizes.items()},
        )
        optimizer.zero_grad()
        family.loss(network, batch, "float32").loss.mean().backward()
        optimizer.step()
    return family, network.eval()


def audit(family, network):
    generator = torch.Generator().manual_seed(7)
    latents, caption = clips(32, generator)
    other = (caption + 1 + torch.randint(0, NUM_CAPTIONS - 1, (32,), generator=generator)) % NUM_CAPTIONS
    prompts = [
        Prompts(texts(each)[:, None], torch.ones(32, TOKENS), torch.zeros(1, WIDTH)) for each in (caption, other)
    ]
    frame, cells = Frame(1, 8 * SIDE, 8 * SIDE, 24.0, (1, SIDE, SIDE)), []
    for timestep in TIMESTEPS:
        noise, at = torch.randn(latents.shape, generator=generator), torch.full((32,), timestep)
        found = family.predict(network, latents, noise, at, prompts, frame, "unipc")
        arrays = [each.numpy() for each in (*found.captioned, found.without, found.target)]
        cells.append(compared(Predicted(*arrays)))
    return audited(np.stack(cells, axis=1), TIMESTEPS, [each // 4 for each in range(32)])


def test_a_null_branch_that_was_trained_is_sound_and_noise_for_its_features_is_found(trained):
    family, network = trained
    sound = audit(family, network)
    assert sound.worth.low > 0
    assert finding(sound) == ""
    kept = network.y_embedder.y_embedding.clone()
    with torch.no_grad():
        network.y_embedder.y_embedding.copy_(3 * torch.randn(kept.shape, generator=torch.Generator().manual_seed(3)))
    weak = audit(family, network)
    with torch.no_grad():
        network.y_embedder.y_embedding.copy_(kept)
    assert "is weak" in finding(weak)
    assert weak.excess.low > sound.excess.high
