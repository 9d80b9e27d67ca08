"""Samples that go through a network together in training, with all that is random about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """B samples of T latents in time, of one shape. Sizes stay on the CPU, where the network reads one of them."""

    bucket: int
    """Its number in the phase."""
    latents: Tensor
    """(B, T, C, H, W) float16, as stored"""
    noise: Tensor
    """(B, C, T, H, W) float32"""
    text: Tensor
    """(B, L, width) float16, L tokens of the longest caption"""
    text_mask: Tensor
    """(B, L) bool"""
    timestep: Tensor
    """(B,) int64, 0 to 999"""
    drop: Tensor
    """(B,) bool"""
    frame_mask: Tensor | None
    """(B, T) bool; None when all frames are generated"""
    sizes: dict[str, Tensor]
    """num_frames, height, width (pixels), ar, fps: (B,) float32 each"""
    empty_text: Tensor | None = None
    """(tokens, width) float16, the features of the empty caption"""

    def __len__(self) -> int:
        return len(self.timestep)

    @property
    def num_tokens(self) -> int:
        """Patches of 2 x 2 latents in all frames of all samples."""
        num_samples, num_frames, _, height, width = self.latents.shape
        return num_samples * num_frames * -(-height // 2) * -(-width // 2)

    def alone(self, frame: int, told: Mapping[str, float]) -> MicroBatch:
        """One frame of every sample, with the noise that it has in its clip, as samples of one frame.

        told  what the network is told otherwise than of the clip: num_frames, fps
        """
        sizes = self.sizes | {name: torch.full_like(self.sizes[name], value) for name, value in told.items()}
        place = slice(frame, frame + 1)
        return replace(
            self, latents=self.latents[:, place], noise=self.noise[:, :, place], frame_mask=None, sizes=sizes
        )

    def to(self, device: torch.device) -> MicroBatch:
        """The same on the network's device, without waiting for the copy."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)
