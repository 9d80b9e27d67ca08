"""Networks, and what they are given, count the same wherever a file or NumPy has put them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.tensor_files import Tensors, open_tensors, read_tensors
from bricks_core.models.text_encoder import T5, UMT5
from bricks_core.models.vae import PatchDct, SdVae, WanVae
from bricks_core.models.weights import load_network, network_from, save_config, save_weights, shape_of


def addresses(network: torch.nn.Module) -> set[int]:
    """How many bytes behind a multiple of 64 its weights lie."""
    return {tensor.data_ptr() % 64 for tensor in network.state_dict().values()}


def displaced(tensor: torch.Tensor, off: int) -> torch.Tensor:
    """The same numbers, so many bytes behind a multiple of 64."""
    memory = torch.empty(tensor.nbytes + 128, dtype=torch.uint8)
    begin = -memory.data_ptr() % 64 + off
    moved = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return moved.copy_(tensor)


@torch.no_grad()
def film_of(network: STDiT2) -> torch.Tensor:
    """What a network makes of one clip alone: vectors, and not matrices, meet its weights there."""
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(1, network.config["in_channels"], 2, 4, 6, generator=random)
    text = torch.randn(1, 1, 5, network.config["caption_channels"], generator=random)
    one = torch.ones(1)
    told = {"num_frames": 2 * one, "height": 32 * one, "width": 48 * one, "ar": one * 2 / 3, "fps": 8 * one}
    return network(latents, 500 * one, text, torch.ones(1, 5, dtype=torch.long), **told)


# the network that is trained


@pytest.mark.parametrize("off", range(0, 64, 4))
def test_weights_count_the_same_wherever_a_file_puts_them(small_model, tmp_path, off):
    save_weights(small_model, tmp_path / "weights.safetensors")
    save_config(small_model, tmp_path / "config.json")
    tensors = open_tensors(tmp_path / "weights.safetensors")
    elsewhere = Tensors(tensors.place, tensors.files, tensors.headings, lambda name: displaced(tensors.read(name), off))
    network = network_from(elsewhere, shape_of(small_model.config))
    assert addresses(network) == {0}
    assert torch.equal(film_of(network), film_of(small_model))


@pytest.mark.parametrize("blanks", range(0, 64, 4))
def test_a_heading_of_any_length_leaves_the_weights_where_torch_wants_them(small_model, tmp_path, blanks):
    save_weights(small_model, tmp_path / "weights.safetensors")
    save_config(small_model, tmp_path / "config.json")
    whole = (tmp_path / "weights.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    heading = whole[8 : 8 + length] + b" " * blanks
    longer = len(heading).to_bytes(8, "little") + heading + whole[8 + length :]
    (tmp_path / "longer.safetensors").write_bytes(longer)
    network = load_network(tmp_path / "longer.safetensors", tmp_path / "config.json")
    assert addresses(network) == {0}
    assert torch.equal(film_of(network), film_of(small_model))


def test_an_optimizer_s_moments_lie_where_torch_wants_them(tmp_path):
    moments = {f"exp_avg.{length}": torch.arange(length, dtype=torch.float32) for length in (1, 3, 5, 700, 70_000)}
    save_file(moments | {"num_updates": torch.tensor(3)}, tmp_path / "optimizer.safetensors")
    read = read_tensors(tmp_path / "optimizer.safetensors")
    assert {tensor.data_ptr() % 64 for tensor in read.values()} == {0}
    assert int(read.pop("num_updates")) == 3
    assert all(torch.equal(read[name], moments[name]) for name in moments | read)


# those that are loaded by other libraries


@pytest.fixture(scope="module")
def folders(tiny_vae, tiny_t5, tiny_wan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"vae": tiny_vae(folder / "vae"), "t5": tiny_t5(folder / "t5"), "wan": tiny_wan(folder / "wan")}


@pytest.mark.parametrize(
    "load",
    [
        lambda folders: SdVae(str(folders["vae"])).vae,
        lambda folders: WanVae(str(folders["wan"])).vae,
        lambda folders: T5(str(folders["t5"])).network,
        lambda folders: UMT5(str(folders["wan"])).network,
    ],
    ids=["sd-vae", "wan-vae", "t5", "umt5"],
)
def test_weights_lie_where_torch_would_have_put_them(folders, load):
    assert addresses(load(folders)) == {0}


def test_a_network_s_shared_weights_stay_one(folders):
    network = T5(str(folders["t5"])).network
    assert network.shared.weight is network.encoder.embed_tokens.weight


@pytest.mark.parametrize("off", [4, 8, 16, 60])
@pytest.mark.parametrize("load", [lambda folders: PatchDct(), lambda folders: SdVae(str(folders["vae"]))])
def test_a_codec_makes_the_same_of_frames_and_latents_wherever_they_lie(folders, load, off):
    codec = load(folders)
    frames = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    latents = codec.encode(frames)
    assert torch.equal(codec.encode(displaced(frames, off).numpy()), latents)
    assert torch.equal(codec.decode(displaced(latents, off)), codec.decode(latents))
