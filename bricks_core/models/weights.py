"""The network's weights in files: safetensors with the published checkpoint's names, and its config.json beside them.

Numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bricks_core.errors import DataError, SpecError
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.tensor_files import INDEX, Heading, Tensors, open_tensors, write_safetensors

NULL_CAPTION = "y_embedder.y_embedding"
ROTARY = "rope.freqs"
LEGACY = ("pos_embed", "pos_embed_temporal")
"""Stored by earlier versions of the reference, computed since [9]."""

NAMES = ("model.safetensors", "weights.safetensors", "diffusion_pytorch_model.safetensors")
"""How a folder's file of weights is called: by upstream, by us, by diffusers."""

FIELDS = {name: each for name, each in inspect.signature(STDiT2.__init__).parameters.items() if name != "self"}
"""What STDiT2 is built of; the defaults are STDiT2-XL/2's [1]."""


# ------------------------------------------------------------------------------------------------------------- writing


def save_weights(model: nn.Module, file: Path) -> None:
    """Write a network's state, float32, names as in the published checkpoint [8]. The same state, the same bytes."""
    state = model.state_dict()
    headings = {name: Heading(torch.float32, tuple(tensor.shape)) for name, tensor in state.items()}
    write_safetensors(file, headings, state.__getitem__)


def save_config(model: STDiT2, file: Path) -> None:
    """Write the network's shape, with the keys of the published config.json [9]."""
    write_config({name: value for name, value in model.config.items() if not name.startswith("_")}, file)


def write_config(shape: Mapping[str, Any], file: Path) -> None:
    """The same, of what STDiT2 is built of."""
    file.write_text(json.dumps({"architectures": ["STDiT2"], **shape}, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- reading


def load_network(
    weights: Path, config: Path, *, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
) -> STDiT2:
    """The network that two files describe, in evaluation mode.

    It is built without memory of its own and takes each tensor as it is read, cast and moved: in bfloat16 there is
    never more than one tensor in float32. Rotary frequencies stay float32 [21].

    weights     a safetensors file, or the index of several
    dtype       of the weights in memory; None: as they are in the file

    Raises:
        SpecError: the two do not belong together.
        DataError: they are damaged, or no such files.
    """
    return network_from(open_tensors(weights), shape_of(read_config(config)), dtype=dtype, device=device)


def network_from(
    tensors: Tensors,
    shape: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> STDiT2:
    """The same, of tensors already open and what STDiT2 is built of."""
    with torch.device("meta"):
        model = STDiT2(**shape)
    load_weights(model, tensors, dtype=dtype, device=device)
    return model.eval()


def load_weights(
    model: nn.Module, file: Path | Tensors, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> None:
    """Take over all weights of a file, or of tensors already open, one by one.

    The null caption is cut or continued to the network's length [9].

    A network on the meta device gets tensors of `dtype` (None: as they are in the file) on `device`. One that has
    memory keeps it, with its own type and device, and the two are not looked at.

    Raises:
        SpecError: a tensor is missing, unknown, or of another shape.
        DataError: the file is damaged, or none of weights.
    """
    tensors = fitting(file if isinstance(file, Tensors) else open_tensors(file), headings_of(model))

    if next(model.parameters()).is_meta:
        model.load_state_dict(tensors.read_all(dtype, device, exact={ROTARY}), assign=True)
        return
    own = model.state_dict()
    with torch.no_grad():
        for name in tensors.headings:
            own[name].copy_(tensors.read(name))


def fitting(tensors: Tensors, expected: Mapping[str, Heading]) -> Tensors:
    """The tensors that a network takes over: without legacy ones, the null caption of its length.

    Raises SpecError: a tensor is missing, unknown, or of another shape.
    """
    tensors = tensors.without(LEGACY)
    if NULL_CAPTION in expected:
        tensors = with_null_caption_of(tensors, expected[NULL_CAPTION].shape[0])
    wrong = differences(expected, tensors.headings)
    if wrong:
        raise SpecError(
            f"{tensors.place} does not fit this network: {first_few(wrong)}. Make train.model the size of these "
            "weights and latents.text an encoder of the width they were trained with."
        )
    return tensors


def with_null_caption_of(tensors: Tensors, length: int) -> Tensors:
    """The same tensors; the null caption is the first rows, or all and then the last one again and again [9]."""
    heading = tensors.headings.get(NULL_CAPTION)
    if heading is None or len(heading.shape) != 2 or heading.shape[0] in (0, length):
        return tensors

    def resized(rows: Tensor) -> Tensor:
        return torch.cat([rows[:length], rows[-1:].expand(max(0, length - len(rows)), -1)])

    return tensors.changed(NULL_CAPTION, (length, heading.shape[1]), resized)


def find_weights(place: Path) -> Path:
    """The safetensors file at a place, or the index of several: the file itself, or in a folder the published name,
    ours or diffusers', or the only one; of a pipeline of diffusers its transformer's.

    Raises SpecError: there is none, or it cannot be told which.
    """
    if place.is_file():
        return place
    if (place / "transformer").is_dir():
        place = place / "transformer"
    for name in NAMES:
        for file in (place / name, place / f"{name}{INDEX}"):
            if file.is_file():
                return file
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise SpecError(
            f"{place} holds {len(files)} safetensors files, none of them model.safetensors: name the file itself, or "
            "make a checkpoint of it first with bricks checkpoint import."
        )
    return files[0]


def read_config(file: Path) -> dict[str, Any]:
    """A config.json.

    Raises DataError: it is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no description of a network: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is no description of a network: it holds no object.")
    return found


# --------------------------------------------------------------------------------------------------------------- shape


def shape_of(published: Mapping[str, Any]) -> dict[str, Any]:
    """What STDiT2 is built of, from the `config.json` of a checkpoint; keys we have no use for are passed over [9].

    Raises SpecError: it asks for what the network has not.
    """
    if published.get("drop_path"):
        raise SpecError(
            f"drop_path {published['drop_path']}: stochastic depth is not part of this network; set it to 0."
        )
    return {name: value for name, value in published.items() if name in FIELDS}


@dataclass(frozen=True)
class Inferred:
    """A network's shape, read from its tensors."""

    shape: dict[str, Any]
    assumed: tuple[str, ...]
    """Fields that no tensor shows; STDiT2-XL/2's values stand there [1]."""


def infer_shape(tensors: Tensors) -> Inferred:
    """What STDiT2 must be built of, so that it has these tensors.

    Raises DataError: they are of no STDiT2; names the first tensor that is missing.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = tensors.headings.get(name)
        if found is None:
            raise DataError(f"{tensors.place} holds no STDiT2: {name} is missing.")
        if len(found.shape) != dimensions:
            raise DataError(f"{tensors.place} holds no STDiT2: {name} is {found.shape}.")
        return found.shape

    width, in_channels, *patch_size = shape("x_embedder.proj.weight", 5)
    num_tokens, caption_channels = shape(NULL_CAPTION, 2)
    out_channels = shape("final_layer.linear.weight", 2)[0] // math.prod(patch_size)
    blocks = [int(found[1]) for name in tensors.headings if (found := re.match(r"blocks\.(\d+)\.", name))]
    depth = max(blocks, default=-1) + 1
    if depth > len(tensors.headings):
        raise DataError(f"{tensors.place} holds no STDiT2: blocks.{len(set(blocks))} of its {depth} blocks is missing.")
    numbers: dict[str, Any] = {
        "hidden_size": width,
        "depth": depth,
        # A pair of a head's channels has one frequency.
        "num_heads": width // max(1, 2 * shape(ROTARY, 1)[0]),
        "patch_size": tuple(patch_size),
        "in_channels": in_channels,
        "pred_sigma": out_channels == 2 * in_channels,
        "mlp_ratio": _ratio(shape("blocks.0.mlp.fc1.weight", 2)[0], width),
        "caption_channels": caption_channels,
        "model_max_length": num_tokens,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors.headings,
    }
    whole = {name: each.default for name, each in FIELDS.items()} | numbers
    return Inferred(whole, ("input_sq_size", "class_dropout_prob"))


def _ratio(inner: int, width: int) -> float:
    """inner / width, a little more where width times it would be rounded down."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def headings_of(model: nn.Module) -> dict[str, Heading]:
    """Names, types and shapes of a network's state."""
    return {name: Heading(tensor.dtype, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def expected_headings(shape: Mapping[str, Any]) -> dict[str, Heading]:
    """Names and shapes of the state of a network of this shape, float32, in its own order; takes no memory.

    Raises SpecError: such a network cannot be built.
    """
    try:
        with torch.device("meta"):
            return headings_of(STDiT2(**shape))
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise SpecError(f"A network of {dict(shape)} cannot be built: {error}.") from error


def differences(expected: Mapping[str, Heading], found: Mapping[str, Heading]) -> list[str]:
    """What is missing or of another shape, in the network's order, then what is unknown."""
    wrong = []
    for name, heading in expected.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif found[name].shape != heading.shape:
            wrong.append(f"{name} is {found[name].shape} instead of {heading.shape}")
        elif not found[name].dtype.is_floating_point:
            wrong.append(f"{name} is {str(found[name].dtype).removeprefix('torch.')}, no numbers of a network")
    return wrong + [f"{name} is unknown" for name in found if name not in expected]


def first_few(wrong: list[str]) -> str:
    """The first three of several sentences."""
    return "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
