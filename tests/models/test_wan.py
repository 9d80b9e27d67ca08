"""Wan's network: made, written down, and read again."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import WanTransformer3DModel

from bricks_core.errors import SpecError
from bricks_core.models.wan import load_wan, new_wan, save_wan_config
from bricks_core.models.weights import save_weights
from bricks_core.spec.train import WanSpec

TINY = WanSpec(
    family="wan", num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=32, freq_dim=16, text_dim=16
)


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    network = new_wan(TINY).eval()
    save_weights(network, tmp_path / "weights.safetensors")
    save_wan_config(network, tmp_path / "config.json")
    return network, tmp_path / "weights.safetensors", tmp_path / "config.json"


def asked(network, seed=0):
    torch.manual_seed(seed)
    x, text = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 512, 16)
    with torch.no_grad():
        return network(x, torch.tensor([3.0, 900.0]), text, return_dict=False)[0]


def test_the_defaults_are_the_published_smaller_network():
    with torch.device("meta"):
        network = new_wan(WanSpec(family="wan"))
    # Wan2.1-T2V-1.3B: 30 layers of width 1536, MLPs of 8960.
    assert sum(each.numel() for each in network.parameters()) == 1_418_996_800
    assert network.config.num_attention_heads * network.config.attention_head_dim == 1536


def test_a_network_read_again_answers_the_same(files):
    network, weights, config = files
    assert torch.equal(asked(load_wan(weights, config)), asked(network))


def test_diffusers_reads_a_checkpoint_s_two_files_as_they_are(files, tmp_path):
    network, weights, config = files
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights.read_bytes())
    (folder / "config.json").write_bytes(config.read_bytes())
    assert torch.equal(asked(WanTransformer3DModel.from_pretrained(folder)), asked(network))


def test_in_bfloat16_the_weights_are_those_that_diffusers_keeps_too(files, tmp_path):
    network, weights, config = files
    network.save_pretrained(tmp_path / "saved")
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16).state_dict()
    ours = load_wan(weights, config, dtype=torch.bfloat16).state_dict()
    assert {name: each.dtype for name, each in ours.items()} == {name: each.dtype for name, each in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {each.dtype for each in ours.values()} == {torch.float32, torch.bfloat16}


def test_weights_of_another_size_are_refused_with_the_first_that_differs(files):
    _, weights, config = files
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"ffn_dim": 64}), encoding="utf-8")
    with pytest.raises(SpecError, match=r"blocks\.0\.ffn\.net\.0\.proj\.weight is \(32, 24\) instead of \(64, 24\)"):
        load_wan(weights, config)


def test_a_network_that_is_given_an_image_is_refused(files):
    _, weights, config = files
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"image_dim": 1280}), encoding="utf-8"
    )
    with pytest.raises(SpecError, match="only text to video is known here"):
        load_wan(weights, config)
