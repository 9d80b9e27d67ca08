"""A network written as diffusers lays a pipeline out: transformer/, scheduler/, and what else belongs to it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors import SafetensorError

from bricks_core.diffusion.family import Family
from bricks_core.errors import TryLater
from bricks_core.exchange.checkpoints.checkpoint import Network
from bricks_core.models.tensor_files import Tensors


def write_diffusers_folder(
    family: Family,
    network: Network,
    weights: Tensors,
    dtype: torch.dtype | None,
    vae: str,
    text_encoder: str,
    folder: Path,
) -> None:
    """What the family's pipeline reads with from_pretrained. Parts that are not given stay empty, to be given then.

    vae, text_encoder   a folder or hub id of each, or of a pipeline that has them

    Raises SpecError or ServiceUnavailable: one of these cannot be had; TryLater: there is no room.
    """
    transformer = family.load(weights, network.shape, dtype=dtype)
    pipeline = family.pipeline(transformer, vae=vae, text_encoder=text_encoder)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of every part that is left empty
    try:
        pipeline.save_pretrained(folder)
    except SafetensorError as error:
        raise TryLater(f"{folder} cannot be written ({error}): make room on that disk and start again.") from error
    finally:
        logging.set_verbosity(before)
