"""Classifier-free guidance: away from what the network says without a caption. arXiv:2207.12598 section 3.2.

Numbers in brackets are sections of the specification, docs/stdit2.md. B samples, C latent channels, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""x (M, C, T, H, W), timestep (M,), captions (M, 1, L, _), x_mask (M, T) or None -> noise and ν (M, 2C, T, H, W)"""

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x (B, C, T, H, W), timestep (B,), x_mask (B, T) or None -> noise and ν (B, 2C, T, H, W)"""

NullLength = Literal["caption", "whole"]
"""How many rows of the null caption stand for no caption: as many as the caption has, or all, whatever the caption."""


def guided(with_caption: Tensor, without: Tensor, scale: float, num_channels: int) -> Tensor:
    """Noise without caption + scale x (with - without), in the first channels; the rest, and ν, as with caption.

    The reference guides 3 of the 4 latent channels [12, 20].  (B, 2C, T, H, W) twice -> the same
    """
    k = num_channels
    towards = without[:, :k] + scale * (with_caption[:, :k] - without[:, :k])
    return torch.cat([towards, with_caption[:, k:]], dim=1)


def guided_denoiser(
    network: Network, captions: Tensor, null_caption: Tensor, *, scale: float, num_channels: int
) -> Denoiser:
    """A network that is asked with and without its captions at every step, in one batch of 2B.

    captions      (B, 1, L, _)
    null_caption  (L or more, _), or (B, 1, L or more, _) for one per sample; read at the captions' length L

    Which of a caption's tokens are there is the network's own affair: M is 2B, captions first, or B without guidance.
    """
    captions = captions.to(null_caption)
    both = torch.cat([captions, null_caption[..., : captions.shape[2], :].expand_as(captions)])

    def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
        if scale == 1.0:
            return network(x, timestep, captions, x_mask)
        twice_mask = None if x_mask is None else x_mask.repeat(2, 1)
        with_caption, without = network(x.repeat(2, 1, 1, 1, 1), timestep.repeat(2), both, twice_mask).chunk(2)
        return guided(with_caption, without, scale, num_channels)

    return denoise


def null_captions(null_caption: Tensor, caption_mask: Tensor, length: NullLength) -> tuple[Tensor, Tensor]:
    """The null caption of each sample, and its mask.  (rows, _), (B, L) -> (B, 1, L or rows, _), (B, L or rows)

    `caption` is what the reference does, in training (a dropped caption keeps its mask) and in sampling [12]: what is
    said without a caption then depends on how long the caption is. `whole` is the same for every caption.
    """
    if length == "caption":
        null_caption, mask = null_caption[: caption_mask.shape[1]], caption_mask
    else:
        mask = torch.ones(len(caption_mask), len(null_caption), dtype=caption_mask.dtype, device=caption_mask.device)
    return null_caption.expand(len(caption_mask), 1, -1, -1), mask


def side_by_side(
    captions: Tensor, mask: Tensor, others: Tensor, other_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Captions (B, 1, L, _) and masks (B, L) of two lengths, the shorter ones continued with rows masked out."""
    length = max(captions.shape[2], others.shape[2])

    def continued(rows: Tensor, dim: int) -> Tensor:
        missing = list(rows.shape)
        missing[dim] = length - rows.shape[dim]
        return torch.cat([rows, rows.new_zeros(missing)], dim=dim) if missing[dim] else rows

    return continued(captions, 2), continued(mask, 1), continued(others, 2), continued(other_mask, 1)
