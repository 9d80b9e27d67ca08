"""Classifier-free guidance: away from what the network says without a caption. arXiv:2207.12598 section 3.2.

Numbers in brackets are sections of the specification, docs/stdit2.md. B samples, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""x (M, C, T, H, W), timestep (M,), captions (M, 1, L, _), x_mask (M, T) or None -> noise and ν (M, 2C, T, H, W)"""

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""x (B, C, T, H, W), timestep (B,), x_mask (B, T) or None -> noise and ν (B, 2C, T, H, W)"""


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
    null_caption  (L or more, _), or (B, 1, L or more, _) for one per sample

    What is known of a caption besides its features (its mask) is the network's own affair and must serve both halves:
    the null caption is read at the caption's length [12].
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
