"""A network written as diffusers lays a pipeline out: transformer/, scheduler/, and what else belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from bricks_core.diffusion.sampling import scheduler_named
from bricks_core.diffusion.text_to_video import STDiT2Pipeline
from bricks_core.exchange.checkpoint import Network
from bricks_core.models.pretrained import explained, part_of
from bricks_core.models.tensor_files import Tensors
from bricks_core.models.weights import network_from


def write_diffusers_folder(
    network: Network, weights: Tensors, dtype: torch.dtype | None, vae: str, text_encoder: str, folder: Path
) -> None:
    """What STDiT2Pipeline.from_pretrained reads. Parts that are not given stay empty, to be given when it is loaded.

    vae             a folder or hub id of diffusers' AutoencoderKL, or of a pipeline with one
    text_encoder    the same of T5's encoder and its tokenizer

    Raises SpecError or ServiceUnavailable: one of these cannot be had.
    """
    parts: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
    if vae:
        with explained("The autoencoder", vae):
            parts["vae"] = AutoencoderKL.from_pretrained(vae, subfolder=part_of(vae, "vae"))
    if text_encoder:
        parts |= _text_encoder(text_encoder)
    transformer = network_from(weights, network.shape, dtype=dtype)
    STDiT2Pipeline(transformer=transformer, scheduler=scheduler_named("dpm-solver++"), **parts).save_pretrained(folder)


def _text_encoder(model: str) -> dict[str, Any]:
    from transformers import AutoTokenizer, T5EncoderModel

    with explained("The text encoder", model):
        tokenizer = AutoTokenizer.from_pretrained(model, subfolder=part_of(model, "tokenizer"))
        place = part_of(model, "text_encoder")
        return {
            "tokenizer": tokenizer,
            "text_encoder": T5EncoderModel.from_pretrained(model, subfolder=place, dtype="auto"),
        }
