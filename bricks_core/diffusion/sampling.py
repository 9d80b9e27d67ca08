"""From noise and captions to the latents of videos, by any scheduler of diffusers.

`Chain` is a way back from noise, a step at a time: with `IDDPMScheduler` it is the reference's, where every step draws
noise, over 100 steps; with a solver such as UniPC (arXiv:2302.04867) the same process is taken as a differential
equation and needs a quarter of the steps or fewer (benchmarks/sampling_steps.py). Frames may be given in either.

Numbers in brackets are sections of the specification, docs/stdit2.md. B samples, C latent channels, T frames, H, W size
of the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from bricks_core.diffusion.conditions import Condition, Reference, apply_conditions
from bricks_core.diffusion.guidance import Denoiser, NullLength, guided_denoiser, null_captions, side_by_side
from bricks_core.diffusion.iddpm import REFERENCE_PROCESS, IDDPMScheduler
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.errors import SpecError, nearest
from bricks_core.models.stdit2 import STDiT2
from bricks_core.spec.train import IMAGE_FPS

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its number (0 first), x (B, C, T, H, W), and the clean latents predicted in it."""

# Timesteps 999, 959, ... to steps of the same length: DDIM of diffusers steps by 1000 / n whatever the spacing.
_SOLVER = REFERENCE_PROCESS | {"timestep_spacing": "trailing"}
_METHODS: dict[str, Callable[[], Any]] = {
    "dpm-solver++": lambda: DPMSolverMultistepScheduler.from_config(
        _SOLVER | {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    ),
    "unipc": lambda: UniPCMultistepScheduler.from_config(_SOLVER | {"solver_order": 2, "final_sigmas_type": "zero"}),
    "iddpm": IDDPMScheduler,
}


def scheduler_named(method: str) -> Any:
    """A new scheduler of diffusers: unipc, dpm-solver++, or iddpm, the reference's.

    Its config makes any other of diffusers': DDIMScheduler.from_config(scheduler_named("unipc").config).
    """
    if method not in _METHODS:
        raise SpecError(f'"{method}" is no way to sample{nearest(method, _METHODS)}: there are {", ".join(_METHODS)}.')
    return _METHODS[method]()


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
    null_length: NullLength | None = None,
    method: str = "unipc",
    num_steps: int = 25,
    guidance_scale: float = 7.0,
    guided_channels: int = 4,
    references: Sequence[Sequence[Reference]] | None = None,
    conditions: Sequence[Sequence[Condition]] | None = None,
    loop: int = 0,
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
    null_length     see `NullLength`; by default as `usual_null_length` says
    method          iddpm is the reference's chain; with it 100 steps and 3 guided channels are the reference's samples
    guided_channels of the 4 latent channels, the first to be guided
    references, conditions, loop    given frames: see `conditions.apply_conditions`

    For bfloat16, call within torch.autocast; what is done between the network's calls is float32 either way.
    """
    device = next(model.parameters()).device
    if len(generators) != len(captions):
        raise SpecError(f"{len(captions)} captions need as many generators of noise; there are {len(generators)}.")
    shape = (len(captions), model.config.in_channels, num_frames, *latent_size)

    def draw() -> Tensor:
        return randn_tensor(shape, generator=list(generators), device=device, dtype=torch.float32)

    scheduler = scheduler_named(method)
    null = model.y_embedder.y_embedding if null_caption is None else null_caption.to(device)
    denoise = captioned_denoiser(
        model,
        captions,
        caption_mask,
        *null_captions(null, caption_mask, null_length or usual_null_length(scheduler)),
        num_frames=num_frames,
        pixel_size=pixel_size,
        fps=fps,
        scale=guidance_scale,
        num_channels=guided_channels,
    )
    noise = draw()
    given, frame_mask = None, None
    if conditions is not None:
        given, frame_mask = apply_conditions(noise, references or [()] * len(captions), conditions, loop)
    chain = Chain(scheduler, num_steps, draw, device=device, generator=list(generators), frame_mask=frame_mask)
    return chain.run(denoise, noise, given, on_step=on_step)


def usual_null_length(scheduler: Any) -> NullLength:
    """How the null caption is read where nothing else is asked for: whole, but with the reference's scheduler.

    What is said without a caption should not depend on one; docs/decisions/0009-sampling.md has what it costs.
    """
    return "caption" if isinstance(scheduler, IDDPMScheduler) else "whole"


def captioned_denoiser(
    model: STDiT2,
    captions: Tensor,
    caption_mask: Tensor,
    without: Tensor,
    without_mask: Tensor,
    *,
    num_frames: int,
    pixel_size: tuple[int, int],
    fps: float,
    scale: float,
    num_channels: int,
) -> Denoiser:
    """The network, told what the video is, and guided from one caption to another.

    captions, without             (B, 1, L, _) each; lengths may differ
    caption_mask, without_mask    (B, L) each, 0 or 1
    """
    height, width = pixel_size
    conditions = {
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "ar": height / width,
        "fps": IMAGE_FPS if num_frames == 1 else fps,
    }
    sizes = {name: torch.full((len(captions),), float(value)) for name, value in conditions.items()}
    captions, caption_mask, without, without_mask = side_by_side(captions, caption_mask, without, without_mask)
    both_masks = torch.cat([caption_mask, without_mask])

    def network(x: Tensor, timestep: Tensor, y: Tensor, x_mask: Tensor | None) -> Tensor:
        answer: Tensor = model(x, timestep, y, both_masks[: len(x)], x_mask, **sizes)
        return answer

    return guided_denoiser(network, captions, without, scale=scale, num_channels=num_channels)


class Chain:
    """A way back from noise by a scheduler of diffusers; `run` is all of it, `begin` and then `step` a step at a time.

    frame_mask (B, T) in [0, 1] says of every frame how much of it is to be made: 1 all of it; 0 nothing, it is given
    and kept; between, it is given and changed: it waits until that share of the steps is left, and joins them with the
    noise of that place in it. Frames that wait or are kept are shown to the network clean.

    With `IDDPMScheduler` the chain is the reference's [19], with what is odd in it: a frame that joins is still called
    clean in its first step, noise for joining is drawn in every step, and kept frames take part in the last one, which
    changes them a little. With any other scheduler they come back exactly as they were given.
    """

    def __init__(
        self,
        scheduler: Any,
        num_steps: int,
        draw: Callable[[], Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | list[torch.Generator] | None = None,
        frame_mask: Tensor | None = None,
        eta: float = 0.0,
    ):
        """draw -> (B, C, T, H, W) fresh noise, used by IDDPMScheduler; generator: where other schedulers draw theirs.

        Raises SpecError: the scheduler is not one of the network's process.
        """
        check_scheduler(scheduler)
        scheduler.set_timesteps(num_steps, device=device)
        if (scheduler.timesteps < 0).any():
            # diffusers' "trailing" steps are one too many for some numbers (61, 103, ...), and the last is below 0.
            scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="linspace")
            scheduler.set_timesteps(num_steps, device=device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or some count steps by their timesteps, of which there may be two alike
        self.scheduler = scheduler
        self.timesteps: Tensor = scheduler.timesteps
        if _learns_variance(scheduler) and self.timesteps[-1] != 0:
            raise SpecError(
                f"{type(scheduler).__name__} with a learned variance would leave noise in the last step, which is not "
                'at timestep 0: set its timestep_spacing to "linspace".'
            )
        self._as_reference = isinstance(scheduler, IDDPMScheduler)
        self._draw = draw
        self._noise = torch.empty(0)  # what x begins with: see `begin`
        self._frame_mask = frame_mask
        self._joins_at: Tensor | None = None
        if frame_mask is not None:
            steps_of_it = (frame_mask * len(self.timesteps)).long()
            # Steps are counted back to 0, the last one: what has none of them never joins, but in the reference.
            self._joins_at = steps_of_it if self._as_reference else torch.where(steps_of_it == 0, -1, steps_of_it)
        known = inspect.signature(scheduler.step).parameters
        self._extra: dict[str, Any] = {
            name: value for name, value in {"eta": eta, "generator": generator}.items() if name in known
        }

    def run(
        self, denoise: Denoiser, noise: Tensor, given: Tensor | None = None, *, on_step: OnStep | None = None
    ) -> Tensor:
        """All steps.  noise, given (B, C, T, H, W) -> clean latents"""
        x = self.begin(noise, given)
        for number in range(len(self.timesteps)):
            x, x0 = self.step(number, x, denoise)
            if on_step is not None:
                on_step(number, x, x0)
        return x

    def begin(self, noise: Tensor, given: Tensor | None = None) -> Tensor:
        """x to begin with: noise, and clean latents in frames that are given.  (B, C, T, H, W) twice -> the same"""
        self._noise = noise.float()
        x = self._noise * self.scheduler.init_noise_sigma
        if given is None or self._frame_mask is None:
            return x
        # The reference takes what is given to be made wholly anew for the noise to begin with.
        return given.float() if self._as_reference else torch.where(_per_frame(self._frame_mask < 1), given.float(), x)

    def step(self, number: int, x: Tensor, denoise: Denoiser) -> tuple[Tensor, Tensor]:
        """Step `number`, 0 first.  -> x one step back, the clean latents predicted in it"""
        timestep, left = self.timesteps[number], len(self.timesteps) - 1 - number
        sample, noise, x_mask, waits = x, self._noise, None, None
        if self._joins_at is not None:
            noise = self._draw() if self._as_reference else self._noise
            noised = self.scheduler.add_noise(x, noise, timestep[None])
            waits = _per_frame(self._joins_at < left)
            if self._as_reference:
                sample = torch.where(_per_frame(self._joins_at == left), noised, x)
                x_mask = self._joins_at > left
            else:
                sample = torch.where(_per_frame(self._joins_at <= left), noised, x)
                x_mask = self._joins_at >= left
        signal, spread = self._level(timestep, x)
        seen = self.scheduler.scale_model_input(sample, timestep)
        if waits is not None:
            seen = torch.where(waits, x, seen)
        answer = denoise(seen, timestep.expand(len(x)), x_mask).float()
        if waits is not None and not self._as_reference:
            # Solvers remember earlier steps. For a frame that waits they are told the noise that is in it, so that
            # when it joins they remember a way that led from its own clean latents.
            channels = x.shape[1]
            answer = torch.cat([torch.where(waits, noise, answer[:, :channels]), answer[:, channels:]], dim=1)
        predicted = answer[:, : x.shape[1]]
        x0 = (sample - spread * predicted) / signal
        back = self._step_back(answer, timestep, sample)
        return (back if waits is None else torch.where(waits, x, back)), x0

    def _step_back(self, answer: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
        """By the scheduler.  Noise and ν (B, 2C, T, H, W), timestep, x (B, C, T, H, W) -> x one step back"""
        extra = self._extra
        if self._as_reference:
            extra = {"variance_noise": self._draw()}
        elif not _learns_variance(self.scheduler):
            answer = answer[:, : sample.shape[1]]
        with torch.autocast(sample.device.type, enabled=False):  # UniPC adds up by a product of matrices
            back: Tensor = self.scheduler.step(answer, timestep, sample, **extra, return_dict=False)[0]
        return back

    def _level(self, timestep: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What of x is clean latents and what noise at this step, in the scheduler's own scale: two factors."""
        one, nothing = x.new_ones(1, 1, 1, 1, 1), x.new_zeros(1, 1, 1, 1, 1)
        return (
            self.scheduler.add_noise(one, nothing, timestep[None]),
            self.scheduler.add_noise(nothing, one, timestep[None]),
        )


def check_scheduler(scheduler: Any) -> None:
    """Raises SpecError: the scheduler of diffusers is for another process than the network was trained on, and why."""
    name, config = type(scheduler).__name__, scheduler.config
    kind = config.get("prediction_type", "epsilon")
    remedy = f'make it with {name}.from_config(scheduler_named("unipc").config), or choose another'
    bar = getattr(scheduler, "alphas_cumprod", None)
    if bar is None or kind == "flow_prediction" or config.get("use_flow_sigmas"):
        raise SpecError(
            f"{name} is for networks of another kind (flow matching, say); this one predicts the noise of a process "
            "of 1000 steps. DPMSolverMultistepScheduler, UniPCMultistepScheduler and DDIMScheduler are for it."
        )
    if kind != "epsilon":
        raise SpecError(f'{name} expects predictions of kind "{kind}", this network predicts noise: {remedy}.')
    ours = NoiseSchedule.of().alphas_cumprod
    if len(bar) != len(ours) or not torch.allclose(bar.cpu().float(), ours, rtol=1e-3, atol=0):
        raise SpecError(
            f"{name} adds noise on another schedule than the one this network was trained on (beta from 1e-4 to 0.02 "
            f"in a straight line, 1000 steps): {remedy}."
        )
    if config.get("clip_sample") or config.get("thresholding"):
        raise SpecError(f"{name} clips to [-1, 1], and latents go far beyond: {remedy}.")
    if str(config.get("variance_type")).startswith("learned") and not isinstance(scheduler, DDPMScheduler):
        raise SpecError(f"{name} has no use for a learned variance: set its variance_type to None.")
    needed = [
        each.name
        for each in inspect.signature(scheduler.step).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    if needed[:3] != ["model_output", "timestep", "sample"] or len(needed) > 3 or not hasattr(scheduler, "add_noise"):
        raise SpecError(f"{name} steps in a way of its own, which is not known here: choose another scheduler.")


def _learns_variance(scheduler: Any) -> bool:
    return str(scheduler.config.get("variance_type")).startswith("learned")


def _per_frame(frames: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, 1, 1)"""
    return frames[:, None, :, None, None]
