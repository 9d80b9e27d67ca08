"""From noise and captions to the latents of videos.

Two ways back from noise. `ancestral_chain` is the reference's: every step draws noise, 100 steps, and frames can be
given. `solver_chain` is the default: DPM-Solver++ (arXiv:2211.01095, diffusers' implementation) takes the same process
as a differential equation and needs about a quarter of the steps.

Numbers in brackets are sections of the specification, docs/stdit2.md. B samples, T frames, H, W size of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from bricks_core.diffusion.guidance import Denoiser, guided_denoiser
from bricks_core.diffusion.noise_schedule import NUM_TIMESTEPS, NoiseSchedule, base_betas
from bricks_core.errors import SpecError
from bricks_core.models.stdit2 import STDiT2
from bricks_core.spec.train import IMAGE_FPS

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its number (0 first), x (B, C, T, H, W), and the clean latents predicted in it."""


@torch.inference_mode()
def sample_latents(
    model: STDiT2,
    captions: Tensor,
    caption_mask: Tensor,
    *,
    num_frames: int,
    latent_size: tuple[int, int],
    pixel_size: tuple[int, int],
    fps: float,
    generators: Sequence[torch.Generator],
    null_caption: Tensor | None = None,
    method: Literal["dpm-solver++", "iddpm"] = "dpm-solver++",
    num_steps: int = 25,
    guidance_scale: float = 7.0,
    guided_channels: int = 4,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample a video's latents for each caption.  -> (B, 4, T, H, W) float32, on the model's device

    captions        (B, 1, L, caption_channels) features
    caption_mask    (B, L) 0 or 1
    num_frames      T; for one frame `fps` is not used [19]
    latent_size     H, W
    pixel_size      height and width in pixels, as in training: the bucket's
    fps             effective frames per second of the latents' frames, as in training
    generators      one per sample, on the CPU: all of a sample's noise comes from its own, so a sample is the same in
                    any batch and on any device, but for rounding
    null_caption    (L or more, caption_channels); by default the model's own
    method          iddpm is the reference's chain; with it 100 steps and 3 guided channels are the reference's samples
    guided_channels of the 4 latent channels, the first to be guided

    For bfloat16, call within torch.autocast; what is done between the network's calls is float32 either way.
    """
    device = next(model.parameters()).device
    batch = len(captions)
    if len(generators) != batch:
        raise SpecError(f"{batch} captions need as many generators of noise; there are {len(generators)}.")

    def draw() -> Tensor:
        shape = (model.config.in_channels, num_frames, *latent_size)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)

    height, width = pixel_size
    conditions = {
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "ar": height / width,
        "fps": IMAGE_FPS if num_frames == 1 else fps,
    }
    sizes = {name: torch.full((batch,), float(value)) for name, value in conditions.items()}

    def network(x: Tensor, timestep: Tensor, y: Tensor, x_mask: Tensor | None) -> Tensor:
        answer: Tensor = model(x, timestep, y, caption_mask, x_mask, **sizes)
        return answer

    null = model.y_embedder.y_embedding if null_caption is None else null_caption.to(device)
    denoise = guided_denoiser(network, captions, null, scale=guidance_scale, num_channels=guided_channels)
    if method == "iddpm":
        return ancestral_chain(denoise, NoiseSchedule.of(num_steps).to(device), draw(), draw, on_step=on_step)
    return solver_chain(denoise, draw(), num_steps, on_step=on_step)


def ancestral_chain(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    draw: Callable[[], Tensor],
    *,
    frame_mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The chain of arXiv:2006.11239 algorithm 2, with the variance the network predicts.  [12, 19]

    x           (B, C, T, H, W)   noise, and clean latents in frames that are given
    draw        -> (B, C, T, H, W), fresh noise at every call
    frame_mask  (B, T) in [0, 1]  1: generate this frame; 0: keep it; between: begin at that share of the way, to edit
    """
    starts_at = None if frame_mask is None else (frame_mask * schedule.num_steps).long()
    for number, index in enumerate(reversed(range(schedule.num_steps))):
        step = torch.full((len(x),), index, device=x.device)
        x, x0 = _step_back(denoise, schedule, x, step, draw, starts_at)
        if on_step is not None:
            on_step(number, x, x0)
    return x


def _step_back(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    step: Tensor,
    draw: Callable[[], Tensor],
    starts_at: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of the ancestral chain.  -> x one step back, the clean latents predicted in it"""
    given, x_mask = x, None
    if starts_at is not None:
        noised = schedule.add_noise(given, draw(), step)
        x = torch.where(_per_frame(starts_at == step[:, None]), noised, given)
        x_mask = starts_at > step[:, None]  # a frame that begins in this step still counts as clean
    predicted, nu = denoise(x, schedule.timesteps[step], x_mask).float().chunk(2, dim=1)
    x0 = schedule.predicted_x0(x, step, predicted)
    deviation = torch.exp(0.5 * schedule.log_variance(nu, step))
    noise = draw()  # drawn in the last step too, so that a chain always uses as much
    x = schedule.posterior_mean(x0, x, step) + (step != 0).reshape(-1, 1, 1, 1, 1) * deviation * noise
    if starts_at is not None:
        x = torch.where(_per_frame(starts_at < step[:, None]), given, x)
    return x, x0


def _per_frame(frames: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, 1, 1)"""
    return frames[:, None, :, None, None]


def solver_chain(denoise: Denoiser, x: Tensor, num_steps: int, *, on_step: OnStep | None = None) -> Tensor:
    """The probability flow of the same process by DPM-Solver++ of second order: no noise but the start's.

    x (B, C, T, H, W) noise. The variance that the network predicts is not used.
    """
    solver: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        trained_betas=base_betas(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="linspace",
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    solver.set_timesteps(num_steps)
    schedule = NoiseSchedule.of().to(x.device)
    for number, timestep in enumerate(solver.timesteps):
        step = torch.full((len(x),), int(timestep), device=x.device)
        predicted = denoise(x, step, None).float().chunk(2, dim=1)[0]
        x0 = schedule.predicted_x0(x, step, predicted)
        x = solver.step(predicted, timestep, x, return_dict=False)[0]
        if on_step is not None:
            on_step(number, x, x0)
    return x
