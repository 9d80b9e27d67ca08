"""The reference's way back from noise as a scheduler of diffusers: every step draws noise, as much as the network says.

The chain of arXiv:2006.11239 algorithm 2 with the variance of arXiv:2102.09672 eq. 15, over some of the 1000 steps.
Numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from bricks_core.diffusion.noise_schedule import NUM_TIMESTEPS, NoiseSchedule
from bricks_core.errors import SpecError

REFERENCE_PROCESS: dict[str, Any] = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}
"""The process that the network is trained on, in the words of diffusers' schedulers [12]."""


class IDDPMScheduler(SchedulerMixin, ConfigMixin):
    """The reference's sampler [12, 19]: 100 steps, learned variance, its tables in float32.

    The arguments are what `from_config` of other schedulers reads, and say what this one is; there is no other. Where
    frames are given, `sampling.Chain` treats them as the reference does when it has this scheduler.
    """

    order = 1
    _compatibles = [each.name for each in KarrasDiffusionSchedulers]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = NUM_TIMESTEPS,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
    ):
        own = self.config
        other = [f"{name} {own[name]}" for name, value in REFERENCE_PROCESS.items() if own[name] != value]
        if other:
            raise SpecError(
                f"IDDPMScheduler is the reference's process, with {REFERENCE_PROCESS}, and cannot have "
                f"{', '.join(other)}: leave that out, or take diffusers' DDPMScheduler."
            )
        self.init_noise_sigma = 1.0
        self.alphas_cumprod = NoiseSchedule.of().alphas_cumprod
        self.set_timesteps(NUM_TIMESTEPS)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose `num_inference_steps` of the 1000: evenly spread, the first and the last among them."""
        self.num_inference_steps = num_inference_steps
        self._tables = NoiseSchedule.of(num_inference_steps).to(device or "cpu")
        self.timesteps = self._tables.timesteps.flip(0)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | int | None = None) -> Tensor:
        """The network sees x as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with the noise of a timestep in them.  (B, C, T, H, W), the same, (B,) or (1,) -> (B, C, T, H, W)"""
        step = self._step_of(timesteps).to(original_samples.device).expand(len(original_samples))
        return self._tables.to(original_samples.device).add_noise(original_samples, noise, step)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step back: noise and ν (B, 2C, T, H, W), x (B, C, T, H, W) -> x a step back, and the clean latents seen.

        variance_noise takes the place of what is drawn from the generators. Noise is drawn in the last step too, where
        it has no effect, so that a chain always draws as much.
        """
        if model_output.shape[1] != 2 * sample.shape[1]:
            raise SpecError(
                f"The network answers {model_output.shape[1]} channels for {sample.shape[1]}: it has learned no "
                "variance, and the reference's sampler needs one. Take another, such as DPMSolverMultistepScheduler."
            )
        tables, x = self._tables, sample.float()
        step = self._step_of(torch.as_tensor(timestep, device=self.timesteps.device)).to(x.device).expand(len(x))
        if variance_noise is None:
            variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=torch.float32)
        noise, nu = model_output.float().chunk(2, dim=1)
        x0 = tables.predicted_x0(x, step, noise)
        deviation = torch.exp(0.5 * tables.log_variance(nu, step)) * (step != 0).reshape(-1, 1, 1, 1, 1)
        back = tables.posterior_mean(x0, x, step) + deviation * variance_noise
        return DDPMSchedulerOutput(prev_sample=back, pred_original_sample=x0) if return_dict else (back, x0)

    def _step_of(self, timesteps: Tensor) -> Tensor:
        """Places of timesteps among those chosen, counted from the cleanest.  () or (M,) -> (M,)"""
        chosen = self._tables.timesteps
        return torch.searchsorted(chosen, timesteps.reshape(-1).to(chosen))

    def __len__(self) -> int:
        return NUM_TIMESTEPS
