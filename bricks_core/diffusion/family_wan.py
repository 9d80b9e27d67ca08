"""Wan behind the seam: a straight path from latents to noise, whose direction the network predicts.

Noise levels σ are those of diffusers' FlowMatchEulerDiscreteScheduler: 1/1000 to 1, moved by `shift` towards 1
(arXiv:2403.03206 section 5.3.2). The network is told 1000 σ. Letters: B samples, C channels, T, H, W size of latents.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.family import Family, Frame, Given, OnStep, Predictions, Prompts, Published, Sampling
from bricks_core.diffusion.guidance import Denoiser, guided_denoiser
from bricks_core.diffusion.loss import Losses, flow_loss
from bricks_core.diffusion.noise_schedule import NUM_TIMESTEPS
from bricks_core.errors import SpecError
from bricks_core.models.pretrained import pipeline_parts
from bricks_core.models.tensor_files import Tensors
from bricks_core.models.wan import load_wan, new_wan, save_wan_config
from bricks_core.spec.evaluate import SAMPLERS
from bricks_core.spec.latents import CodecSpec, TextSpec
from bricks_core.spec.train import WAN_TOKENS, WanSpec

if TYPE_CHECKING:  # all of diffusers' pipelines are a second of work
    from diffusers import WanPipeline


class WanFamily(Family):
    """Wan 2.1's network, for text to video."""

    name = "wan"
    samplers = SAMPLERS["wan"]
    published = Published(  # the model card of Wan 2.1
        CodecSpec(kind="wan-vae", model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        TextSpec(kind="umt5", model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", max_tokens=WAN_TOKENS),
        num_frames=81,
        height_px=480,
        width_px=832,
        fps=16.0,
        guidance_scale=5.0,
    )
    side_px = 16
    takes_given_frames = False
    guides_some_channels = False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, shift: float = 3.0):
        self.shift = shift

    def build(self, spec: Any, *, text_width: int, max_tokens: int, caption_dropout: float) -> WanTransformer3DModel:
        assert isinstance(spec, WanSpec)
        if spec.text_dim != text_width:
            raise SpecError(
                f"train.model.text_dim is {spec.text_dim}, and the captions' features are {text_width} wide: set it to "
                f"{text_width}, or latents.text to the encoder that the network was trained with."
            )
        return new_wan(spec)

    def load(
        self,
        weights: Path | Tensors,
        config: Path | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
    ) -> WanTransformer3DModel:
        return load_wan(weights, config, dtype=dtype, device=device)

    def save_config(self, network: Any, file: Path) -> None:
        save_wan_config(network, file)

    def check(self, network: Any, channels: int, latents: tuple[int, int, int]) -> None:
        config = network.config
        if channels != config.in_channels:
            raise SpecError(
                f"This Wan network takes latents of {config.in_channels} channels, these have {channels}: set "
                "latents.codec to the autoencoder that it was trained with."
            )
        for number, patch, what in zip(latents, config.patch_size, ("frames", "height", "width"), strict=True):
            if number % patch or number // patch > config.rope_max_seq_len:
                raise SpecError(
                    f"Latents of {latents[0]}x{latents[1]}x{latents[2]} (frames, height, width) do not split into "
                    f"Wan's patches of {'x'.join(map(str, config.patch_size))}: their {what} must divide by {patch} "
                    f"and be at most {patch * config.rope_max_seq_len}. Sizes such as 480x832 pixels do."
                )

    def loss(self, network: nn.Module, batch: MicroBatch, precision: Literal["float32", "bfloat16"]) -> Losses:
        """See Family. arXiv:2210.02747 section 4.1; a sample's timestep is the number of its noise level."""
        x0 = batch.latents.float().transpose(1, 2)  # (B, C, T, H, W)
        sigma = _levels(self.shift).to(x0.device)[batch.timestep]
        at = sigma[:, None, None, None, None]
        x_t = (1 - at) * x0 + at * batch.noise
        text = padded(batch.text.float())
        if batch.empty_text is not None:
            text = torch.where(batch.drop[:, None, None], padded(batch.empty_text.float()), text)
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = network(x_t, NUM_TIMESTEPS * sigma, text, return_dict=False)[0]
        return flow_loss(output, x0, batch.noise)

    def null_caption(self, network: Any, empty: Tensor) -> Tensor:
        return empty

    @torch.inference_mode()
    def sample(
        self,
        network: Any,
        prompts: Prompts,
        frame: Frame,
        generators: Sequence[torch.Generator],
        sampling: Sampling,
        given: Given | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if given is not None:
            raise SpecError("Wan makes videos of text alone: leave the given frames out, or take an STDiT2 checkpoint.")
        channels = network.config.in_channels
        self.check(network, channels, frame.latents)
        device = next(network.parameters()).device
        shape = (channels, *frame.latents)
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)

        def way(x: Tensor, timestep: Tensor, captions: Tensor, _: Tensor | None) -> Tensor:
            return _way(network, x, timestep, captions)

        captions = _read(prompts, device)
        null = padded(self.null_caption(network, prompts.empty.to(device)))
        denoise = guided_denoiser(way, captions, null, scale=sampling.guidance_scale, num_channels=channels)
        solver = _solver(sampling.sampler, sampling.shift or self.shift)
        return flow_chain(denoise, x, solver, sampling.num_steps, on_step)

    @torch.inference_mode()
    def predict(
        self,
        network: Any,
        latents: Tensor,
        noise: Tensor,
        timestep: Tensor,
        captions: Sequence[Prompts],
        frame: Frame,
        sampler: str,
    ) -> Predictions:
        sigma = _levels(self.shift).to(latents.device)[timestep]
        at = sigma[:, None, None, None, None]
        x_t, target = (1 - at) * latents + at * noise, noise - latents

        def answer(text: Tensor) -> Tensor:
            return _way(network, x_t, NUM_TIMESTEPS * sigma, text)

        null = padded(self.null_caption(network, captions[0].empty.to(latents.device)))
        captioned = [answer(_read(each, latents.device)) for each in captions]
        return Predictions(captioned, answer(null.expand(len(x_t), 1, -1, -1)), target.float())

    def pipeline(self, network: Any, *, vae: str = "", text_encoder: str = "") -> WanPipeline:
        from diffusers import WanPipeline
        from transformers import UMT5EncoderModel

        parts = pipeline_parts(vae, AutoencoderKLWan, text_encoder, UMT5EncoderModel)
        return WanPipeline(transformer=network, scheduler=_solver(self.samplers[0], self.shift), **parts)


def flow_chain(denoise: Denoiser, x: Tensor, solver: Any, num_steps: int, on_step: OnStep | None = None) -> Tensor:
    """From noise x (B, C, T, H, W) back along the way that is predicted, by one of diffusers' solvers."""
    solver.set_timesteps(num_steps)
    for number, timestep in enumerate(solver.timesteps):
        predicted = denoise(x, timestep.to(x.device).expand(len(x)), None)
        x0 = x - solver.sigmas[number] * predicted
        x = solver.step(predicted, timestep, x, return_dict=False)[0]
        if on_step is not None:
            on_step(number, x, x0)
    return x


def _way(network: Any, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """The network's answer.  x (B, C, T, H, W), timestep (B,), text (B, 1, 512, width) -> as x, float32"""
    answer: Tensor = network(x, timestep, text[:, 0], return_dict=False)[0]
    return answer.float()


def _read(prompts: Prompts, device: torch.device) -> Tensor:
    """Captions as Wan reads them.  -> (B, 1, 512, width)"""
    return padded((prompts.features * prompts.mask[:, None, :, None]).to(device))


def _solver(sampler: str, shift: float) -> Any:
    if sampler == "flow-euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TIMESTEPS, shift=shift)
    return UniPCMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )


def padded(text: Tensor) -> Tensor:
    """Features as Wan reads them: 512 rows, zeros behind the caption's end.  (..., L, width) -> (..., 512, width)

    Rows behind a caption's end must be zeros already.
    """
    return nn.functional.pad(text, (0, 0, 0, WAN_TOKENS - text.shape[-2]))


@functools.lru_cache(maxsize=8)
def _levels(shift: float) -> Tensor:
    """All noise levels, the least first.  -> (1000,)"""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TIMESTEPS, shift=shift)
    levels: Tensor = scheduler.sigmas.flip(0)
    return levels
