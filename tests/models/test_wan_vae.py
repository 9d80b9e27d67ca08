"""Wan's autoencoder: a codec that shrinks time, told of the frames before and of none after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st

from bricks_core.errors import DataError, SpecError
from bricks_core.models.vae import WanVae, load_codec
from bricks_core.spec.latents import CodecSpec
from bricks_core.video.buckets import usable


@pytest.fixture(scope="module")
def folder(tiny_wan, tmp_path_factory):
    return tiny_wan(tmp_path_factory.mktemp("models") / "tiny-wan")


@pytest.fixture(scope="module")
def codec(folder):
    return load_codec(CodecSpec(kind="wan-vae", model=str(folder)))


def film(num_frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_latents_are_the_posterior_s_mean_at_zero_mean_and_unit_variance_as_in_diffusers_pipelines(codec, folder):
    direct = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    frames = film(9)
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    mean, deviation = (
        torch.tensor(each).view(1, 16, 1, 1, 1) for each in (direct.config.latents_mean, direct.config.latents_std)
    )
    with torch.no_grad():
        expected = (direct.encode(video).latent_dist.mean - mean) * (1 / deviation)
        pixels = direct.decode(expected / (1 / deviation) + mean).sample
    latents = codec.encode(frames)
    assert latents.shape == (3, 16, 4, 6)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected[0].transpose(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents), pixels[0].transpose(0, 1), rtol=0, atol=1e-5)


def test_the_latents_of_a_beginning_are_the_beginning_of_the_latents(codec):
    """What training relies on when it reads the first frames of a longer clip."""
    frames = film(17)
    whole = codec.encode(frames)
    for num_frames in (1, 5, 13):
        torch.testing.assert_close(codec.encode(frames[:num_frames]), whole[: codec.num_latents(num_frames)])


def test_the_latents_of_a_middle_are_not_the_middle_of_the_latents(codec):
    frames = film(17)
    assert (codec.encode(frames[4:13]) - codec.encode(frames)[1:4]).abs().max() > 1e-2


def test_a_later_frame_changes_no_earlier_latent(codec):
    frames = film(9)
    other = frames.copy()
    other[5:] = 255 - other[5:]
    before, after = codec.encode(frames), codec.encode(other)
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2], after[2], atol=1e-3)


@settings(deadline=None, max_examples=6)
@given(num_latents=st.integers(1, 3), height=st.integers(8, 33), width=st.integers(8, 33))
def test_four_frames_are_a_latent_and_the_first_is_one_alone(codec, num_latents, height, width):
    frames = film(4 * num_latents - 3, height, width)
    latents = codec.encode(frames)
    assert latents.shape == (num_latents, 16, height // 8, width // 8)
    assert codec.decode(latents).shape == (len(frames), 3, height // 8 * 8, width // 8 * 8)


@given(st.integers(1, 500))
def test_of_any_clip_as_many_frames_are_taken_as_make_whole_latents(codec, num_frames):
    kept = codec.whole_frames(num_frames)
    assert num_frames - 4 < kept <= num_frames
    assert 4 * codec.num_latents(kept) - 3 == kept


@given(num_frames=st.integers(1, 100), num_latents=st.integers(1, 20))
def test_the_frames_left_out_make_no_clip_too_short_for_a_bucket(codec, num_frames, num_latents):
    """So that what bricks plan counts on clips is what training finds in their latents."""
    bucket_frames = 4 * num_latents - 3
    assert usable(codec.whole_frames(num_frames), bucket_frames, 1) == usable(num_frames, bucket_frames, 1)


@pytest.mark.parametrize("num_frames", [2, 4, 16])
def test_frames_that_make_no_whole_latents_are_refused(codec, num_frames):
    with pytest.raises(SpecError, match=rf"^{num_frames} frames are no whole number of latents.* Take \d+ or \d+"):
        codec.encode(film(num_frames))


def test_latents_of_another_codec_are_refused(codec):
    with pytest.raises(DataError, match=r"Latents are \(T, 16, h, w\)"):
        codec.decode(torch.zeros(1, 4, 2, 3))


def test_it_is_named_by_weights_and_scale_not_by_where_it_lies(codec, tiny_wan, tmp_path):
    same = WanVae(str(tiny_wan(tmp_path / "tiny-wan")))
    bare = WanVae(str(tmp_path / "tiny-wan" / "vae"))
    other = WanVae(str(tiny_wan(tmp_path / "b" / "tiny-wan", seed=1)))
    scaled = WanVae(str(tiny_wan(tmp_path / "c" / "tiny-wan", latents_std=[2.0] * 16)))
    assert same.id == codec.id
    assert len({codec.id, other.id, scaled.id}) == 3
    assert bare.id.split(":")[2:] == codec.id.split(":")[2:]


def test_in_bfloat16_latents_are_near_and_named_otherwise(codec, folder):
    half = load_codec(CodecSpec(kind="wan-vae", model=str(folder), dtype="bfloat16"))
    latents = half.encode(film(5))
    assert latents.dtype == torch.float32
    assert half.id.replace("bfloat16", "float32") == codec.id.replace(codec.id.split(":")[2], half.id.split(":")[2])
    torch.testing.assert_close(latents, codec.encode(film(5)), rtol=0, atol=0.05)
    assert half.decode(latents).shape == (5, 3, 32, 48)


def test_an_autoencoder_of_other_strides_is_refused(tiny_wan, tmp_path):
    folder = tiny_wan(tmp_path / "wide", scale_factor_spatial=16)
    with pytest.raises(SpecError, match=r"by 4 and sides by 16.*Wan2\.1-T2V-1\.3B-Diffusers"):
        WanVae(str(folder))
