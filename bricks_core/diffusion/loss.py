"""What training minimises: the error of the predicted noise, and the bits lost by the predicted variance.

Improved DDPM, arXiv:2102.09672 section 3.1 (the sum of both, here with weight 1 each), after DDPM, arXiv:2006.11239
sections 3.3 and 3.4. Numbers in brackets are sections of the specification, docs/stdit2.md. B samples, T frames.

Networks that predict the way from latents to noise have `flow_loss` instead: arXiv:2210.02747 with straight paths.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.errors import SpecError

REFERENCE_MASK_RATIOS = {
    "mask_no": 0.75,
    "mask_quarter_random": 0.025,
    "mask_quarter_head": 0.025,
    "mask_quarter_tail": 0.025,
    "mask_quarter_head_tail": 0.05,
    "mask_image_random": 0.025,
    "mask_image_head": 0.025,
    "mask_image_tail": 0.025,
    "mask_image_head_tail": 0.05,
}
"""How often which frames are given as a condition, in every recipe of the reference [13]."""


@dataclass(frozen=True)
class Losses:
    """Per sample, (B,) float32 each; `loss` is what training minimises, the sum of the other two."""

    loss: Tensor
    mse: Tensor
    vb: Tensor
    """Bits per number; only the predicted variance learns from it. 0 where no variance is predicted."""


def denoising_loss(
    schedule: NoiseSchedule,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    step: Tensor,
    frame_mask: Tensor | None = None,
) -> Losses:
    """How far the network's answer is from the noise that was added.  [12, 13]

    output      (B, 2C, T, H, W)  the network's answer to x_t: noise, then ν of the variance
    x0, noise   (B, C, T, H, W)   clean latents and the noise
    x_t         (B, C, T, H, W)   schedule.add_noise(x0, noise, step, frame_mask)
    step        (B,) int64        step of the schedule, which here has all 1000
    frame_mask  (B, T) bool       frames the network generates (True): only they count; at least one per sample
    """
    x0, x_t, noise = x0.float(), x_t.float(), noise.float()
    predicted, nu = output.float().chunk(2, dim=1)
    mse = _mean_over_frames((noise - predicted).square(), frame_mask)
    vb = _mean_over_frames(_variational_bound(schedule, predicted.detach(), nu, x0, x_t, step), frame_mask)
    return Losses(loss=mse + vb, mse=mse, vb=vb)


def flow_loss(output: Tensor, x0: Tensor, noise: Tensor) -> Losses:
    """How far the network's answer is from the way that leads from clean latents to noise.  (B, C, T, H, W) each

    At noise level σ the network is given (1 - σ) x0 + σ noise, which moves by noise - x0 as σ grows, whatever σ is.
    arXiv:2210.02747 eq. 23 with σ_min = 0; arXiv:2209.03003 eq. 1.
    """
    mse = _mean_over_frames((noise.float() - x0.float() - output.float()).square(), None)
    return Losses(loss=mse, mse=mse, vb=torch.zeros_like(mse))


def _variational_bound(
    schedule: NoiseSchedule, predicted: Tensor, nu: Tensor, x0: Tensor, x_t: Tensor, step: Tensor
) -> Tensor:
    """Bits by which the predicted step back misses the true one, per number.  -> (B, C, T, H, W)

    arXiv:2006.11239 eq. 5: a divergence of Gaussians at all steps but the first, a likelihood at that.
    """
    mean = schedule.posterior_mean(schedule.predicted_x0(x_t, step, predicted), x_t, step)
    log_variance = schedule.log_variance(nu, step)
    true_mean = schedule.posterior_mean(x0, x_t, step)
    true_log_variance = schedule.posterior_log_variance_clipped[step].reshape(-1, 1, 1, 1, 1)
    divergence = gaussian_divergence(true_mean, true_log_variance, mean, log_variance)
    surprise = -discretised_log_likelihood(x0, mean, log_variance)
    first = (step == 0).reshape(-1, 1, 1, 1, 1)
    return torch.where(first, surprise, divergence) / math.log(2.0)


def gaussian_divergence(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q ‖ p) of two Gaussians, in nats per number."""
    return 0.5 * (
        -1.0
        + log_variance_p
        - log_variance_q
        + torch.exp(log_variance_q - log_variance_p)
        + (mean_q - mean_p).square() * torch.exp(-log_variance_p)
    )


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the probability of the 1/255-wide bin about x, as if x were a pixel in [-1, 1]; the outer bins are open.

    Latents are no pixels; the published weights were trained so all the same [12, 20]. arXiv:2006.11239 eq. 13.
    """
    inverse_deviation = torch.exp(-0.5 * log_variance)
    below_upper = _normal_cdf((x - mean + 1.0 / 255.0) * inverse_deviation)
    below_lower = _normal_cdf((x - mean - 1.0 / 255.0) * inverse_deviation)

    def log(probability: Tensor) -> Tensor:
        return torch.log(probability.clamp(min=1e-12))

    inner = log(below_upper - below_lower)
    return torch.where(x < -0.999, log(below_upper), torch.where(x > 0.999, log(1.0 - below_lower), inner))


def _normal_cdf(z: Tensor) -> Tensor:
    """The normal distribution's integral, in the approximation the reference trained with (arXiv:1606.08415 sec. 2)."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def _mean_over_frames(values: Tensor, frame_mask: Tensor | None) -> Tensor:
    """The mean of a sample's numbers, in the frames whose mask is True.  (B, C, T, H, W), (B, T) -> (B,)"""
    per_frame = values.mean(dim=(1, 3, 4))
    if frame_mask is None:
        return per_frame.mean(dim=1)
    weight = frame_mask.to(per_frame.dtype)
    return (per_frame * weight).sum(dim=1) / weight.sum(dim=1)


# -------------------------------------------------------------------------------------------------------- frame masks


def draw_frame_mask(ratios: Mapping[str, float], num_frames: int, rng: random.Random) -> list[bool]:
    """Which frames of one sample are generated (True) and which are given clean (False).  -> (T,)  [13]

    ratios: how often each strategy of REFERENCE_MASK_RATIOS is drawn, adding up to 1. A strategy that a video is too
    short for (a quarter of three frames; first and last of two) leaves all its frames to be generated.
    """
    check_mask_ratios(ratios)
    u, reached, strategy = rng.random(), 0.0, "mask_no"
    for name, ratio in ratios.items():
        reached += ratio
        if reached > u:
            strategy = name
            break
    return frame_mask(strategy, num_frames, rng)


def check_mask_ratios(ratios: Mapping[str, float]) -> None:
    """Raise SpecError unless every strategy is known and the ratios add up to 1."""
    if unknown := sorted(set(ratios) - set(REFERENCE_MASK_RATIOS)):
        raise SpecError(f"There is no mask {unknown[0]}; choose from {', '.join(REFERENCE_MASK_RATIOS)}.")
    if min(ratios.values(), default=0.0) < 0 or not math.isclose(sum(ratios.values()), 1.0, abs_tol=1e-6):
        raise SpecError(
            f"Mask ratios must be shares that add up to 1, not to {sum(ratios.values()):g}: {dict(ratios)}."
        )


def frame_mask(strategy: str, num_frames: int, rng: random.Random) -> list[bool]:
    """The mask of one strategy: which share of the frames, then at which end, is clean."""
    if strategy == "mask_no" or num_frames == 1:
        return [True] * num_frames
    _, share, place = strategy.split("_", 2)
    longest = num_frames // 4 if share == "quarter" else 1
    if longest == 0 or (place == "head_tail" and num_frames <= 2):
        return [True] * num_frames
    count = rng.randint(1, longest) if share == "quarter" else 1
    clean: set[int] = set()
    if place == "random":
        start = rng.randint(0, num_frames - count)
        clean.update(range(start, start + count))
    if place in ("head", "head_tail"):
        clean.update(range(count))
    if place in ("tail", "head_tail"):
        clean.update(range(num_frames - count, num_frames))
    return [frame not in clean for frame in range(num_frames)]
