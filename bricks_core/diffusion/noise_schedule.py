"""How much noise at which timestep: the tables of a diffusion process of 1000 steps, or of some of them.

DDPM, arXiv:2006.11239 sections 2 and 3; choosing fewer steps and the learned variance, arXiv:2102.09672 sections 3.1
and 4. Numbers in brackets are sections of the specification, docs/stdit2.md.

Letters as in the papers: β noise added by a step, α = 1 - β, ᾱ what is left of the signal after a step (variance),
σ² variance of a step back. B samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from bricks_core.errors import SpecError

NUM_TIMESTEPS = 1000


def base_betas() -> np.ndarray:
    """β of all 1000 steps, from 1e-4 to 0.02 in a straight line, float64.  -> (1000,)  [12]"""
    return np.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=np.float64)


def spaced_timesteps(num_steps: int) -> list[int]:
    """`num_steps` of the 1000 timesteps, evenly spread, first and last included: 10 -> 0, 111, ..., 999.  [12]"""
    if not 1 <= num_steps <= NUM_TIMESTEPS:
        raise SpecError(f"{num_steps} sampling steps are asked for; choose from 1 to {NUM_TIMESTEPS}.")
    stride = (NUM_TIMESTEPS - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    # Added up and rounded half to even, as the reference does: a product rounds to another step here and there.
    steps, place = [], 0.0
    for _ in range(num_steps):
        steps.append(round(place))
        place += stride
    return steps


@dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a process of n steps, (n,) each; float32 but for the timesteps."""

    timesteps: Tensor
    """Where each step lies among the 1000: what the network is told. int64"""
    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    log_betas: Tensor

    @classmethod
    def of(cls, num_steps: int = NUM_TIMESTEPS) -> NoiseSchedule:
        """The process of `num_steps` of the 1000 steps; training takes all. On the CPU.

        β is rounded to float32 and everything else computed from it in float32, also where float64 would be more
        exact: near timestep 0 the difference is seen in the loss, and published weights were trained with these [12].
        """
        timesteps = spaced_timesteps(num_steps)
        kept = np.cumprod(1.0 - base_betas())[timesteps]
        betas = torch.from_numpy(1.0 - kept / np.append(1.0, kept[:-1])).float()

        alphas = 1.0 - betas
        bar = torch.cumprod(alphas, dim=0)
        bar_prev = torch.cat([torch.ones(1), bar[:-1]])
        variance = betas * (1.0 - bar_prev) / (1.0 - bar)  # arXiv:2006.11239 eq. 7
        # The last step back has no variance, and no logarithm: it takes that of the step before.
        clipped = torch.cat([variance[1:2], variance[1:]]) if num_steps > 1 else betas
        return cls(
            timesteps=torch.tensor(timesteps),
            betas=betas,
            alphas_cumprod=bar,
            alphas_cumprod_prev=bar_prev,
            sqrt_alphas_cumprod=torch.sqrt(bar),
            sqrt_one_minus_alphas_cumprod=torch.sqrt(1.0 - bar),
            sqrt_recip_alphas_cumprod=torch.sqrt(1.0 / bar),
            sqrt_recipm1_alphas_cumprod=torch.sqrt(1.0 / bar - 1.0),
            posterior_variance=variance,
            posterior_log_variance_clipped=torch.log(clipped),
            posterior_mean_coef1=betas * torch.sqrt(bar_prev) / (1.0 - bar),
            posterior_mean_coef2=(1.0 - bar_prev) * torch.sqrt(alphas) / (1.0 - bar),
            log_betas=torch.log(betas),
        )

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same tables on another device: computed on the CPU first, so that they are the same everywhere."""
        return NoiseSchedule(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def add_noise(self, x0: Tensor, noise: Tensor, step: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Latents with the noise of a step in them.  (B, C, T, H, W), the same, (B,), (B, T) bool -> (B, C, T, H, W)

        Frames whose mask is False are clean: they get the noise of step 0, next to none [13]. arXiv:2006.11239 eq. 4.
        """
        if frame_mask is not None:
            step = torch.where(frame_mask, step[:, None], 0)  # (B, T)
        x0, noise = x0.float(), noise.float()
        return at(self.sqrt_alphas_cumprod, step, x0) * x0 + at(self.sqrt_one_minus_alphas_cumprod, step, x0) * noise

    def predicted_x0(self, x: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """The clean latents that x (B, C, T, H, W) were made of, if this is the noise in it; never clamped [12]."""
        return at(self.sqrt_recip_alphas_cumprod, step, x) * x - at(self.sqrt_recipm1_alphas_cumprod, step, x) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, step: Tensor) -> Tensor:
        """Mean of x one step back, given x and the clean latents. arXiv:2006.11239 eq. 7."""
        return at(self.posterior_mean_coef1, step, x) * x0 + at(self.posterior_mean_coef2, step, x) * x

    def log_variance(self, nu: Tensor, step: Tensor) -> Tensor:
        """log σ² of the step back: the network's ν in [-1, 1] lies between the smallest and the largest possible.

        arXiv:2102.09672 eq. 15, with ν not clamped [12].
        """
        fraction = (nu + 1) / 2
        low, high = at(self.posterior_log_variance_clipped, step, nu), at(self.log_betas, step, nu)
        return fraction * high + (1 - fraction) * low


def at(table: Tensor, step: Tensor, like: Tensor) -> Tensor:
    """Entries of a table, shaped to multiply `like` (B, C, T, H, W).  step (B,) or (B, T) -> (B, 1, 1 or T, 1, 1)"""
    return table[step].reshape(len(like), 1, -1, 1, 1)
