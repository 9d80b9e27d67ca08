"""Pixels to latents and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import DataError, SpecError
from bricks_core.models.vae import PatchDct, SdVae, load_codec
from bricks_core.spec.latents import CodecSpec


@pytest.fixture(scope="module")
def vae_folder(tiny_vae: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vae(tmp_path_factory.mktemp("models") / "tiny-vae")


def picture(height: int, width: int) -> np.ndarray:
    """A scene of flat colours with soft light: sky, ground, a red box, a yellow ball. uint8 (1, height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, x / width
    light = (1 - 0.4 * y + 0.2 * np.sin(3 * x))[..., None]
    scene = np.where(y[..., None] < 0.63, (110.0, 150, 210), (60, 120, 50)) * light
    scene = np.where(((abs(x - 0.31) < 0.09) & (abs(y - 0.57) < 0.21))[..., None], (190.0, 30, 30) * light, scene)
    scene = np.where(
        (((x - 0.67) * width) ** 2 + ((y - 0.6) * height) ** 2 < (0.19 * height) ** 2)[..., None],
        (220.0, 180, 40) * light,
        scene,
    )
    return np.clip(scene, 0, 255).astype(np.uint8)[None]


def as_floats(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a.clamp(-1, 1) - b).square().mean()))


# patch-dct


@settings(deadline=None, max_examples=40)
@given(
    num_frames=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    scale=st.floats(0.01, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_patch_dct_decodes_has_the_latents_it_was_decoded_from(num_frames, height, width, scale, seed):
    latents = scale * torch.randn(num_frames, 4, height, width, generator=torch.Generator().manual_seed(seed))
    codec = PatchDct()
    again = codec.encode(codec.decode(latents))
    assert torch.allclose(again, latents, atol=2e-5 * max(1.0, scale) * 5)


@settings(deadline=None, max_examples=25)
@given(height=st.integers(8, 70), width=st.integers(8, 70), seed=st.integers(0, 2**32 - 1))
def test_a_second_round_through_patch_dct_changes_nothing(height, width, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    codec = PatchDct()
    once = codec.decode(codec.encode(frames))
    assert once.shape == (2, 3, height // 8 * 8, width // 8 * 8)
    assert torch.allclose(codec.decode(codec.encode(once)), once, atol=1e-4)


def test_patch_dct_is_an_orthonormal_transform_up_to_its_fixed_scales():
    # The energy of one latent, put back as pixels by the transpose, is the square of its fixed scale.
    codec = PatchDct()
    pixels = torch.eye(3 * 8 * 8).reshape(-1, 3, 8, 8)
    coefficients = codec.encode(pixels) - codec.encode(torch.zeros(1, 3, 8, 8))
    gram = torch.einsum("pc,pd->cd", coefficients.flatten(1), coefficients.flatten(1))
    expected = torch.diag(torch.tensor([5.5, 2.8, 1.3, 1.0]) ** -2)
    assert torch.allclose(gram, expected, atol=1e-6)


def test_a_flat_picture_comes_back_exactly():
    codec = PatchDct()
    for colour in [(0, 0, 0), (255, 255, 255), (200, 30, 30), (13, 77, 240)]:
        frames = np.full((1, 64, 96, 3), colour, np.uint8)
        decoded = codec.decode(codec.encode(frames))
        assert torch.allclose(decoded, as_floats(frames), atol=1e-3)


def test_the_decoded_scene_is_recognisable_and_nearer_than_its_blocks():
    frames = picture(96, 160)
    original = as_floats(frames)
    decoded = PatchDct().decode(PatchDct().encode(frames))
    blocks = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(original, 8), scale_factor=8)
    assert psnr(decoded, original) > 23
    assert psnr(decoded, original) > psnr(blocks, original) + 1.5


def test_latents_of_a_scene_are_of_the_size_the_diffusion_expects():
    latents = PatchDct().encode(picture(96, 160))
    assert latents.abs().max() < 6
    assert 0.3 < float(latents.std()) < 2


def test_the_last_channel_holds_the_slope_of_brightness_and_the_first_three_ignore_it():
    frames = torch.full((1, 3, 8, 8), 0.1)
    ramp = torch.linspace(-0.05, 0.05, 8)
    flat, sloped = PatchDct().encode(frames), PatchDct().encode(frames - ramp)
    assert torch.allclose(flat[:, :3], sloped[:, :3], atol=1e-6)
    assert float(sloped[0, 3, 0, 0] - flat[0, 3, 0, 0]) > 0.1  # brighter on the left: positive
    assert torch.allclose(PatchDct().encode(frames - ramp[:, None]), flat, atol=1e-6)  # downwards: not kept


# sd-vae


def test_sd_vae_is_the_mean_of_diffusers_posterior_times_the_scaling_factor(vae_folder):
    frames = as_floats(np.random.default_rng(1).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8))
    direct = AutoencoderKL.from_pretrained(vae_folder).eval()
    codec = SdVae(str(vae_folder))
    with torch.no_grad():
        expected = direct.encode(frames).latent_dist.mean * 0.18215
        pixels = direct.decode(expected / 0.18215).sample
    assert torch.allclose(codec.encode(frames), expected, atol=1e-5)
    assert torch.allclose(codec.decode(expected), pixels, atol=1e-5)


def test_another_scaling_factor_in_the_models_config_is_used_and_named(tiny_vae, tmp_path):
    tiny_vae(tmp_path / "vae", scaling_factor=0.5)
    tiny_vae(tmp_path / "usual")
    frames = picture(16, 16)
    half, usual = SdVae(str(tmp_path / "vae")), SdVae(str(tmp_path / "usual"))
    assert torch.allclose(half.encode(frames) / 0.5, usual.encode(frames) / 0.18215, atol=1e-4)
    assert "scale=0.5" in half.id
    assert "scale=0.18215" in usual.id


def test_sd_vae_is_named_by_its_weights_not_by_where_they_lie(vae_folder, tiny_vae, tmp_path):
    tiny_vae(tmp_path / "tiny-vae", max_shard_size="20KB")
    tiny_vae(tmp_path / "other" / "tiny-vae", seed=1)
    here, moved, other = (
        SdVae(str(path)).id for path in (vae_folder, tmp_path / "tiny-vae", tmp_path / "other" / "tiny-vae")
    )
    assert here == moved
    assert here != other
    assert str(tmp_path) not in moved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_is_what_the_run_file_says_and_latents_are_float32(vae_folder, dtype):
    codec = load_codec(CodecSpec(kind="sd-vae", model=str(vae_folder), dtype=dtype))
    assert codec.encode(picture(16, 24)).dtype == torch.float32
    assert next(codec.vae.parameters()).dtype == getattr(torch, dtype)
    assert f":{dtype}:" in codec.id


def test_an_autoencoder_of_another_shape_is_refused_with_a_sentence(tiny_vae, tmp_path):
    tiny_vae(tmp_path / "wide", latent_channels=16)
    with pytest.raises(SpecError, match=r"16 channels at 1/8.*sd-vae-ft-ema"):
        SdVae(str(tmp_path / "wide"))


def test_a_missing_or_empty_model_folder_is_named(tmp_path):
    with pytest.raises(SpecError, match="nowhere is no folder"):
        SdVae(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"empty cannot be loaded \(.*\): check its model"):
        SdVae(str(tmp_path / "empty"))


# both


@pytest.fixture(scope="module", params=["patch-dct", "sd-vae"])
def codec(request, vae_folder):
    model = str(vae_folder) if request.param == "sd-vae" else ""
    return load_codec(CodecSpec(kind=request.param, model=model, chunk_frames=2))


@settings(deadline=None, max_examples=10)
@given(num_frames=st.integers(1, 5), height=st.integers(8, 41), width=st.integers(8, 41))
def test_sides_are_floored_to_whole_latents(codec, num_frames, height, width):
    latents = codec.encode(np.zeros((num_frames, height, width, 3), np.uint8))
    assert latents.shape == (num_frames, 4, height // 8, width // 8)
    assert codec.decode(latents).shape == (num_frames, 3, height // 8 * 8, width // 8 * 8)


def test_bytes_and_floats_of_the_same_frames_have_the_same_latents(codec):
    frames = picture(24, 40)
    assert torch.allclose(codec.encode(frames), codec.encode(as_floats(frames)), atol=1e-5)
    assert torch.equal(codec.encode(torch.from_numpy(frames)), codec.encode(frames))


def test_frames_are_encoded_each_by_itself_whatever_the_chunks(codec):
    frames = np.random.default_rng(2).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    together = codec.encode(frames)
    alone = torch.cat([codec.encode(frames[at : at + 1]) for at in range(5)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(codec.decode(together), torch.cat([codec.decode(one[None]) for one in together]), atol=1e-4)


def test_no_frames_have_no_latents(codec):
    assert codec.encode(np.zeros((0, 16, 24, 3), np.uint8)).shape == (0, 4, 2, 3)
    assert codec.decode(torch.zeros(0, 4, 2, 3)).shape == (0, 3, 16, 24)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((16, 24, 3), np.uint8),
        np.zeros((1, 16, 24, 4), np.uint8),
        torch.zeros(1, 16, 24, 3),
        torch.zeros(1, 3, 16, 24, dtype=torch.int64),
    ],
)
def test_frames_of_another_shape_or_type_are_refused(codec, frames):
    with pytest.raises(DataError, match=r"Frames are uint8 \(T, H, W, 3\) or float"):
        codec.encode(frames)


def test_frames_smaller_than_a_latent_are_refused(codec):
    with pytest.raises(DataError, match="7x24 pixels are smaller than one latent"):
        codec.encode(np.zeros((1, 7, 24, 3), np.uint8))


def test_latents_of_another_shape_are_refused(codec):
    with pytest.raises(DataError, match=r"Latents are \(T, 4, h, w\)"):
        codec.decode(torch.zeros(1, 8, 2, 3))
