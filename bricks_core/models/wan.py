"""Wan, the video transformer of Wan 2.1 (arXiv:2503.20314), as diffusers has it: making one, and its two files.

It attends to all of a video at once, in time, height and width, with rotary positions in all three, and predicts the
way that leads from clean latents to noise. Latents of 16 channels come from a codec that shrinks time by 4.

Wan 2.2 uses the same network twice, one for much noise and one for little; here there is one network for all levels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from bricks_core.errors import SpecError
from bricks_core.models.tensor_files import Tensors, open_tensors
from bricks_core.models.weights import fitting, headings_of, read_config
from bricks_core.spec.train import WanSpec


def new_wan(spec: WanSpec) -> WanTransformer3DModel:
    """A network with weights drawn from torch's global generator."""
    shape = spec.model_dump(exclude={"family", "shift"})
    return WanTransformer3DModel(**shape, out_channels=spec.in_channels)


def load_wan(
    weights: Path | Tensors,
    config: Path | Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> WanTransformer3DModel:
    """The network that two files describe, in evaluation mode; its weights are in memory once.

    weights  a safetensors file, or the index of several, or what is in them
    config   config.json, or what is in it
    dtype    of most weights (None: as they are in the file); those that diffusers keeps in float32 (norms, tables, the
             timestep's) are so here too

    Raises SpecError: they do not belong together; DataError: they are damaged, or no such files.
    """
    shape = _shape_of(read_config(config) if isinstance(config, Path) else config)
    with torch.device("meta"):
        network: Any = WanTransformer3DModel(**shape)
    tensors = fitting(open_tensors(weights) if isinstance(weights, Path) else weights, headings_of(network))

    exact = {name for name in tensors.headings if set(name.split(".")) & set(network._keep_in_fp32_modules)}
    network.load_state_dict(tensors.read_all(dtype, device, exact=exact), assign=True)
    # Its tables of rotary angles are in no file.
    is_now = network.config
    rope = WanRotaryPosEmbed(is_now.attention_head_dim, is_now.patch_size, is_now.rope_max_seq_len)
    network.rope = rope.to(device)
    loaded: WanTransformer3DModel = network.eval()
    return loaded


def save_wan_config(network: WanTransformer3DModel, file: Path) -> None:
    """Write the network's shape as diffusers does, so that the file beside the weights is one that diffusers reads."""
    file.write_text(network.to_json_string(), encoding="utf-8")


def _shape_of(published: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' class is built of, from a config.json."""
    if published.get("image_dim") or published.get("added_kv_proj_dim"):
        raise SpecError(
            "The checkpoint's config.json is that of a Wan network which is given an image; only text to video is "
            "known here: take a T2V checkpoint."
        )
    known = inspect.signature(WanTransformer3DModel.__init__).parameters.keys() - {"self"}
    return {name: value for name, value in published.items() if name in known}
