"""The network's weights in files: safetensors with the published checkpoint's names, and its config.json beside them.

Numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bricks_core.errors import SpecError
from bricks_core.models.stdit2 import STDiT2

NULL_CAPTION = "y_embedder.y_embedding"


def save_weights(model: nn.Module, file: Path) -> None:
    """Write a network's state, float32, names as in the published checkpoint [8]. The same state, the same bytes."""
    # One entry of metadata only: safetensors writes several in no certain order.
    save_file({name: _plain(tensor) for name, tensor in model.state_dict().items()}, file, metadata={"format": "pt"})


def save_config(model: STDiT2, file: Path) -> None:
    """Write the network's shape, with the keys of the published config.json [9]."""
    shape = {name: value for name, value in model.config.items() if not name.startswith("_")}
    file.write_text(json.dumps({"architectures": ["STDiT2"], **shape}, indent=1) + "\n")


def shape_of(published: Mapping[str, Any]) -> dict[str, Any]:
    """What STDiT2 is built of, from the `config.json` of a checkpoint; keys we have no use for are passed over [9].

    Raises SpecError: it asks for what the network has not.
    """
    if published.get("drop_path"):
        raise SpecError(
            f"drop_path {published['drop_path']}: stochastic depth is not part of this network; set it to 0."
        )
    known = inspect.signature(STDiT2.__init__).parameters.keys() - {"self"}
    return {name: value for name, value in published.items() if name in known}


def load_network(weights: Path, config: Path) -> STDiT2:
    """The network that two files describe, on the CPU, in evaluation mode; its weights are in memory once.

    Raises SpecError: they do not belong together, or are no such files.
    """
    try:
        shape = shape_of(json.loads(config.read_text()))
    except (OSError, ValueError) as error:
        raise SpecError(f"{config} is no description of a network: {error}.") from error
    with torch.device("meta"):
        model = STDiT2(**shape)
    load_weights(model, weights)
    return model.eval()


def load_weights(model: STDiT2, file: Path) -> None:
    """Take over all weights of a safetensors file; the null caption is cut or continued to the model's length [9].

    Raises SpecError: a tensor is missing, unknown, or of another shape.
    """
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{file} is no safetensors file: {error}.") from error
    own = model.state_dict()
    if NULL_CAPTION in state and NULL_CAPTION in own:
        state[NULL_CAPTION] = _of_length(state[NULL_CAPTION], len(own[NULL_CAPTION]))
    wrong = [f"{name} is missing" for name in own.keys() - state.keys()]
    wrong += [f"{name} is unknown" for name in state.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if wrong:
        raise SpecError(
            f"{file} does not fit this network: {'; '.join(sorted(wrong)[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Make train.model the size of these weights "
            "and latents.text an encoder of the width they were trained with."
        )
    model.load_state_dict(state, assign=next(model.parameters()).is_meta)


def find_weights(place: Path) -> Path:
    """The safetensors file at a place: the file itself, or in a folder the published name, ours, or the only one.

    Raises SpecError: there is none, or it cannot be told which.
    """
    if place.is_file():
        return place
    files = sorted(place.glob("*.safetensors"))
    for name in ("model.safetensors", "weights.safetensors"):
        if place / name in files:
            return place / name
    if len(files) != 1:
        raise SpecError(
            f"{place} holds {len(files)} safetensors files, none of them model.safetensors: name the file itself."
        )
    return files[0]


def text_width(file: Path) -> int | None:
    """The width of the caption features that weights were trained with, read from the file's heading."""
    with safe_open(file, "pt") as opened:
        if NULL_CAPTION not in opened.keys():  # noqa: SIM118 (not a dict)
            return None
        return int(opened.get_slice(NULL_CAPTION).get_shape()[1])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _of_length(rows: Tensor, length: int) -> Tensor:
    """The first rows, or all and then the last one again and again."""
    return torch.cat([rows[:length], rows[-1:].expand(max(0, length - len(rows)), -1)])
