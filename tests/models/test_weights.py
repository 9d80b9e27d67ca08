"""The network's weights in files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bricks_core.errors import DataError, SpecError
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.tensor_files import write_safetensors
from bricks_core.models.weights import (
    expected_headings,
    find_weights,
    load_network,
    load_weights,
    save_config,
    save_weights,
    shape_of,
    write_config,
)


def test_a_network_comes_back_from_its_two_files(small_model, tmp_path):
    save_weights(small_model, tmp_path / "weights.safetensors")
    save_config(small_model, tmp_path / "config.json")
    again = load_network(tmp_path / "weights.safetensors", tmp_path / "config.json")
    assert shape_of(again.config) == shape_of(small_model.config)
    assert again.state_dict().keys() == small_model.state_dict().keys()
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_file_has_the_published_names_types_and_metadata(small_model, golden, tmp_path):
    save_weights(small_model.bfloat16(), tmp_path / "weights.safetensors")
    published = golden("small_model")[""]
    written = load_file(tmp_path / "weights.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in published.items()
    }
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    save_config(small_model, tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["STDiT2"]
    assert config["patch_size"] == [1, 2, 2]


def size_of_file(tensors: dict[str, torch.Tensor]) -> tuple[int, int]:
    """(bytes of a safetensors file, of these its header): a length, compact JSON padded to 8, float32 numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = 8 + math.ceil(len(json.dumps(header, separators=(",", ":"))) / 8) * 8
    return head + end, head


def test_a_full_size_file_has_the_bytes_of_the_public_one(small_model, golden_json, tmp_path):
    save_weights(small_model, tmp_path / "weights.safetensors")
    assert size_of_file(small_model.state_dict())[0] == (tmp_path / "weights.safetensors").stat().st_size
    with torch.device("meta"):
        full_size = STDiT2()
    published = golden_json("stdit2_xl2_state_dict")["public_file"]
    assert size_of_file(full_size.state_dict()) == (
        published["size_bytes"],
        published["header_bytes_including_length_word"],
    )


def test_the_same_weights_are_the_same_bytes(small_model, tmp_path):
    for name in ("one", "other"):
        save_weights(small_model, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("num_tokens", [5, 20, 33])
def test_the_null_caption_is_cut_or_its_last_row_repeated(small_model, tmp_path, num_tokens):
    save_weights(small_model, tmp_path / "weights.safetensors")
    other = STDiT2(**shape_of(small_model.config | {"model_max_length": num_tokens}))
    load_weights(other, tmp_path / "weights.safetensors")
    rows, published = other.y_embedder.y_embedding, small_model.y_embedder.y_embedding
    kept = min(num_tokens, len(published))
    assert torch.equal(rows[:kept], published[:kept])
    assert torch.equal(rows[kept:], published[-1:].expand(num_tokens - kept, -1))


def test_weights_of_another_size_are_refused_with_what_differs(small_model, tmp_path):
    save_weights(small_model, tmp_path / "weights.safetensors")
    other = STDiT2(**shape_of(small_model.config | {"caption_channels": 32, "depth": 1}))
    with pytest.raises(SpecError, match=r"does not fit this network: .* and \d+ more\. Make train\.model") as raised:
        load_weights(other, tmp_path / "weights.safetensors")
    assert "blocks.1" in str(raised.value)


def test_a_damaged_file_is_refused(small_model, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(DataError, match="is no safetensors file"):
        load_weights(small_model, tmp_path / "weights.safetensors")


def test_weights_are_found_by_file_by_published_name_or_because_there_is_one(tmp_path):
    def put(name):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
        return tmp_path / name

    with pytest.raises(SpecError, match="holds 0 safetensors files"):
        find_weights(tmp_path)
    other = put("other.safetensors")
    assert find_weights(tmp_path) == find_weights(other) == other
    second = put("second.safetensors")
    with pytest.raises(SpecError, match="holds 2 safetensors files"):
        find_weights(tmp_path)
    assert find_weights(second) == second
    weights = put("weights.safetensors")
    assert find_weights(tmp_path) == weights
    published = put("model.safetensors")
    assert find_weights(tmp_path) == published


# ----------------------------------------------------------------------------------------------------- types and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_weights_are_taken_in_the_type_asked_for_and_rotary_frequencies_stay_exact(small_model, tmp_path, dtype):
    save_weights(small_model, tmp_path / "weights.safetensors")
    save_config(small_model, tmp_path / "config.json")
    model = load_network(tmp_path / "weights.safetensors", tmp_path / "config.json", dtype=dtype)
    for name, tensor in small_model.state_dict().items():
        expected = tensor if name == "rope.freqs" or dtype is None else tensor.to(dtype)
        assert torch.equal(model.state_dict()[name], expected), name
        assert model.state_dict()[name].dtype == expected.dtype, name
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in small_model.named_parameters() if parameter.requires_grad]
    assert not model.training


def test_shards_under_an_index_are_one_network(small_model, tmp_path):
    small_model.save_pretrained(tmp_path, max_shard_size="500KB")
    index = find_weights(tmp_path)
    assert index.name == "diffusion_pytorch_model.safetensors.index.json"
    model = load_network(index, tmp_path / "config.json")
    (tmp_path / "pipeline/transformer").mkdir(parents=True)
    save_weights(model, tmp_path / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert find_weights(tmp_path / "pipeline").parent.name == "transformer"
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in small_model.state_dict().items())


def test_training_begins_in_float32_with_weights_of_any_type(small_model, tmp_path):
    narrow = {name: tensor.bfloat16() for name, tensor in small_model.state_dict().items()}
    legacy = {"pos_embed": torch.zeros(1, 4, 96), "pos_embed_temporal": torch.zeros(1, 4, 96)}
    save_file(narrow | legacy, tmp_path / "weights.safetensors")
    model = STDiT2(**shape_of(small_model.config))
    memory = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    load_weights(model, tmp_path / "weights.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, narrow[name].float()), name
        assert tensor.data_ptr() == memory[name], name


PEAKS = """
import sys, torch
from pathlib import Path
from bricks_core.models.weights import load_network

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

torch.zeros(1).bfloat16()
networks = []
for dtype in (torch.bfloat16, torch.float32):
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak up to here
    networks.append(load_network(Path(sys.argv[1]), Path(sys.argv[2]), dtype=dtype))
    print(status("VmHWM") - before, sum(tensor.nbytes for tensor in networks[-1].state_dict().values()))
"""


def test_weights_are_in_memory_once_in_the_type_asked_for(tmp_path):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux tells a process's peak of memory")
    shape = {"hidden_size": 768, "depth": 6, "num_heads": 12, "caption_channels": 768}  # 75 million numbers
    headings = expected_headings(shape)
    write_safetensors(tmp_path / "weights.safetensors", headings, lambda name: torch.ones(headings[name].shape))
    write_config(shape, tmp_path / "config.json")
    told = subprocess.run(
        [sys.executable, "-c", PEAKS, tmp_path / "weights.safetensors", tmp_path / "config.json"],
        capture_output=True,
        encoding="utf-8",
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    narrow, wide = ([int(number) for number in line.split()] for line in told.stdout.splitlines())
    assert wide[1] == pytest.approx(2 * narrow[1], rel=1e-3)
    assert wide[1] == sum(heading.size_bytes for heading in headings.values()) > 290e6
    for peak_bytes, network_bytes in (narrow, wide):
        # Once, and beside it one tensor as it is in the file (the largest has 9 MB) and the module objects.
        assert 0.8 * network_bytes < peak_bytes < network_bytes + 40e6
