"""A network written as Open-Sora writes it: the published hub folder, and a training checkpoint's folder.

Sections in brackets are of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bricks_core.errors import TryLater
from bricks_core.exchange.checkpoints.checkpoint import CONFIG, RUNNING_STATES, Network, in_dtype
from bricks_core.models.tensor_files import Heading, Tensors, write_safetensors

SHARD_BYTES = 1024 * 10**6
"""Upstream's 1024 MB [9], in the smaller of its two meanings."""

HUB_CONSTANTS = {
    "drop_path": 0.0,
    "enable_flash_attn": False,
    "enable_layernorm_kernel": False,
    "input_size": [32, 60, 106],
    "model_type": "STDiT2",
    "no_temporal_pos_emb": False,
}
"""Fields of the published config.json that this network has no use for, as published [9]."""

Wrote = Callable[[str], None]


def write_hub_folder(
    network: Network, weights: Tensors, dtype: torch.dtype | None, folder: Path, wrote: Wrote = lambda name: None
) -> None:
    """model.safetensors and config.json, as published [9]; the files of code beside them are left out."""
    headings = in_dtype(weights.headings, dtype, network.exact)
    write_safetensors(folder / "model.safetensors", headings, weights.read, wrote)
    stored = str(headings["x_embedder.proj.weight"].dtype).removeprefix("torch.")
    text = json.dumps(hub_config(network.shape, stored), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def hub_config(shape: Mapping[str, Any], torch_dtype: str) -> dict[str, Any]:
    """The published config.json's fields, for a network of this shape [9]."""
    own = {name: value for name, value in shape.items() if name != "conditioning_dtype"}
    return {"architectures": ["STDiT2"], **HUB_CONSTANTS, **own, "torch_dtype": torch_dtype}


def write_training_folder(
    network: Network,
    weights: Tensors,
    ema: Tensors,
    running: Mapping[str, Any],
    dtype: torch.dtype | None,
    folder: Path,
    wrote: Wrote = lambda name: None,
) -> None:
    """model/ in shards, ema.pt in float32, running_states.json [9]; and a config.json, which upstream passes over.

    In `dtype` are all tensors of model/, rotary frequencies too, as in upstream's.
    """
    write_shards(in_dtype(weights.headings, dtype), weights.read, folder / "model", wrote)

    def whole(name: str) -> Tensor:
        wrote(name)
        return ema.read(name).to(torch.float32)

    _save({name: whole(name) for name in network.weights.headings}, folder / "ema.pt")
    states = {"epoch": 0, "step": 0, "global_step": 0, "sample_start_index": None} | dict(running)
    (folder / RUNNING_STATES).write_text(json.dumps(states, indent=4) + "\n", encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(network.config, indent=1) + "\n", encoding="utf-8")


def write_shards(
    headings: Mapping[str, Heading],
    read: Callable[[str], Tensor],
    folder: Path,
    wrote: Wrote = lambda name: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """pytorch_model-00001.bin and so on, none larger than its limit unless by one tensor, and their index [9]."""
    folder.mkdir()
    places = {}
    for number, names in enumerate(_shards(headings, shard_bytes), 1):
        file = folder / f"pytorch_model-{number:05d}.bin"
        shard = {}
        for name in names:
            # A copy of its own: torch.save would write all of what a view looks at.
            shard[name] = read(name).to(headings[name].dtype).clone(memory_format=torch.contiguous_format)
            places[name] = file.name
            wrote(name)
        _save(shard, file)
    total = sum(heading.size_bytes for heading in headings.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(headings: Mapping[str, Heading], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size_bytes = 0
    for name, heading in headings.items():
        if names and size_bytes + heading.size_bytes > shard_bytes:
            yield names
            names, size_bytes = [], 0
        names.append(name)
        size_bytes += heading.size_bytes
    yield names


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        torch.save(tensors, file)
    except RuntimeError as error:  # torch's writer says so little when a disk is full
        raise TryLater(f"{file} cannot be written ({error}): make room on that disk and start again.") from error
