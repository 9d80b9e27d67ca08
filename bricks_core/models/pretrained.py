"""Frozen pretrained networks: loading them by hub id or folder, and naming their weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bricks_core.errors import ServiceUnavailable, SpecError
from bricks_core.models.tensor_files import align

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def weights_digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that name the weights of `module` in the type they are held in.

    Taken from names, shapes, types and bytes, not from files: the same weights have the same digest whether they came
    from the hub or a folder, in one file or in shards.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # NumPy has no bfloat16, bytes have no type: look at the memory itself.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def frozen(network: Any, device: torch.device) -> Any:
    """A loaded network as it is used here: on the device, in evaluation, without gradients, its memory aligned."""
    network = network.to(device).eval().requires_grad_(False)
    align(network)
    return network


def name_of(model: str) -> str:
    """What of a model's address goes into an id: a hub id whole, of a folder only its last part.

    The same weights in another place of the disk are the same weights.
    """
    return Path(model).resolve().name if Path(model).exists() else model


def part_of(model: str, part: str) -> str:
    """Where in `model` a part of a pipeline lies: in the folder of that name, or "" where `model` is the part itself.

    A hub id whose name ends in -Diffusers is a whole pipeline, by the custom of those who publish them.
    """
    whole = (Path(model) / part).is_dir() if Path(model).is_dir() else model.lower().endswith("-diffusers")
    return part if whole else ""


def pipeline_parts(vae: str, vae_class: Any, text_encoder: str, text_encoder_class: Any) -> dict[str, Any]:
    """What else a pipeline of diffusers has, in the types they are stored in; None where none is named.

    Raises SpecError or ServiceUnavailable: one of them cannot be had.
    """
    parts: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
    if vae:
        with explained("The autoencoder", vae):
            parts["vae"] = vae_class.from_pretrained(vae, subfolder=part_of(vae, "vae"))
    if text_encoder:
        from transformers import AutoTokenizer

        with explained("The text encoder", text_encoder):
            place = part_of(text_encoder, "text_encoder")
            parts["text_encoder"] = text_encoder_class.from_pretrained(text_encoder, subfolder=place, dtype="auto")
            place = part_of(text_encoder, "tokenizer")
            parts["tokenizer"] = AutoTokenizer.from_pretrained(text_encoder, subfolder=place)
    return parts


@contextlib.contextmanager
def explained(what: str, model: str) -> Iterator[None]:
    """Turn the many ways in which loading `model` fails into one sentence.

    Raises SpecError when the model is not there or not of the right kind, ServiceUnavailable when the hub is away.
    """
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_a_path and not Path(model).is_dir():
        raise SpecError(f"{what} {model} is no folder: set its model to a folder that exists, or to a hub id.")
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if Path(model).is_dir() or not _hub_is_away(error):
            raise SpecError(f"{what} {model} cannot be loaded ({reason}): check its model and revision.") from error
        raise ServiceUnavailable(
            f"{what} {model} is not on this disk and the hub does not answer ({reason}): run again with the network "
            "up, or download it once and set its model to that folder."
        ) from error


def _hub_is_away(error: BaseException) -> bool:
    from huggingface_hub import errors

    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError):
            return True
        if isinstance(chain, absent):
            return False
        chain = chain.__cause__ or chain.__context__
    return isinstance(error, OSError)
