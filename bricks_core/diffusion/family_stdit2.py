"""STDiT2 behind the seam: the noise of 1000 steps, a variance, frames that are given.

Numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.family import Family, Frame, Given, OnStep, Predictions, Prompts, Published, Sampling
from bricks_core.diffusion.guidance import null_captions
from bricks_core.diffusion.loss import Losses, denoising_loss
from bricks_core.diffusion.noise_schedule import NoiseSchedule
from bricks_core.diffusion.sampling import captioned_denoiser, sample_latents, scheduler_named, usual_null_length
from bricks_core.errors import SpecError
from bricks_core.models.pretrained import pipeline_parts
from bricks_core.models.stdit2 import STDiT2
from bricks_core.models.tensor_files import Tensors, open_tensors
from bricks_core.models.weights import network_from, read_config, save_config, shape_of
from bricks_core.spec.evaluate import SAMPLERS
from bricks_core.spec.latents import CodecSpec, TextSpec
from bricks_core.spec.train import STDiT2Spec

if TYPE_CHECKING:  # all of diffusers' pipelines are a second of work
    from diffusers import DiffusionPipeline


class STDiT2Family(Family):
    """Open-Sora 1.1's network."""

    name = "stdit2"
    samplers = SAMPLERS["stdit2"]
    # Sections 10, 11 and 19; at 24 frames a second its makers take every third frame, which is 8 effective ones.
    published = Published(
        CodecSpec(kind="sd-vae", model="stabilityai/sd-vae-ft-ema", chunk_frames=4),
        TextSpec(kind="t5", model="DeepFloyd/t5-v1_1-xxl"),
        num_frames=16,
        height_px=240,
        width_px=426,
        fps=8.0,
        guidance_scale=7.0,
    )
    side_px = 8
    takes_given_frames = True
    guides_some_channels = True
    lora_targets = (
        "attn.qkv",
        "attn.proj",
        "attn_temp.qkv",
        "attn_temp.proj",
        "cross_attn.q_linear",
        "cross_attn.kv_linear",
        "cross_attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    )

    def build(self, spec: Any, *, text_width: int, max_tokens: int, caption_dropout: float) -> STDiT2:
        assert isinstance(spec, STDiT2Spec)
        return STDiT2(
            **spec.model_dump(exclude={"family", "input_sq_size_px"}),
            input_sq_size=spec.input_sq_size_px,
            caption_channels=text_width,
            model_max_length=max_tokens,
            class_dropout_prob=caption_dropout,
        )

    def load(
        self,
        weights: Path | Tensors,
        config: Path | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
    ) -> STDiT2:
        tensors = open_tensors(weights) if isinstance(weights, Path) else weights
        shape = shape_of(read_config(config) if isinstance(config, Path) else config)
        return network_from(tensors, shape, dtype=dtype, device=device)

    def save_config(self, network: Any, file: Path) -> None:
        save_config(network, file)

    def check(self, network: Any, channels: int, latents: tuple[int, int, int]) -> None:
        # Patches are padded and positions are computed, so any size and number of frames will do.
        if channels != network.config.in_channels:
            raise SpecError(
                f"STDiT2 takes latents of {network.config.in_channels} channels, these have {channels}: set "
                "latents.codec.kind to sd-vae or patch-dct."
            )

    def loss(self, network: nn.Module, batch: MicroBatch, precision: Literal["float32", "bfloat16"]) -> Losses:
        """See Family.  [12, 13]"""
        return noised_loss(network, _schedule(batch.noise.device), batch, precision)

    def null_caption(self, network: Any, empty: Tensor) -> Tensor:
        null: Tensor = network.y_embedder.y_embedding
        return null

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
        num_frames, height, width = frame.latents
        return sample_latents(
            network,
            prompts.features,
            prompts.mask,
            num_frames=num_frames,
            latent_size=(height, width),
            pixel_size=(frame.height_px, frame.width_px),
            fps=frame.fps,
            generators=generators,
            method=sampling.sampler,
            num_steps=sampling.num_steps,
            guidance_scale=sampling.guidance_scale,
            guided_channels=sampling.guided_channels or network.config.in_channels,
            references=None if given is None else given.references,
            conditions=None if given is None else given.conditions,
            loop=0 if given is None else given.loop,
            on_step=on_step,
        )

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
        x_t = _schedule(latents.device).add_noise(latents, noise, timestep)
        null = self.null_caption(network, captions[0].empty)
        length = usual_null_length(scheduler_named(sampler))

        def answer(text: Tensor, mask: Tensor) -> Tensor:
            ask = captioned_denoiser(
                network,
                text,
                mask,
                text,
                mask,
                num_frames=frame.latents[0],
                pixel_size=(frame.height_px, frame.width_px),
                fps=frame.fps,
                scale=1.0,
                num_channels=latents.shape[1],
            )
            return ask(x_t, timestep, None).float()[:, : latents.shape[1]]

        captioned = [answer(each.features.to(null), each.mask) for each in captions]
        return Predictions(captioned, answer(*null_captions(null, captions[0].mask, length)), noise.float())

    def pipeline(self, network: Any, *, vae: str = "", text_encoder: str = "") -> DiffusionPipeline:
        from diffusers import AutoencoderKL
        from transformers import T5EncoderModel

        from bricks_core.diffusion.text_to_video import STDiT2Pipeline

        parts = pipeline_parts(vae, AutoencoderKL, text_encoder, T5EncoderModel)
        return STDiT2Pipeline(transformer=network, scheduler=scheduler_named(self.samplers[0]), **parts)


def noised_loss(
    network: nn.Module,
    schedule: NoiseSchedule,
    batch: MicroBatch,
    precision: Literal["float32", "bfloat16"],
) -> Losses:
    """Put a batch's noise into its latents, ask the network for it, and say how far off it is.  [12, 13]"""
    x0 = batch.latents.float().transpose(1, 2)  # (B, C, T, H, W)
    x_t = schedule.add_noise(x0, batch.noise, batch.timestep, batch.frame_mask)
    with torch.autocast(x_t.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        output = network(
            x_t,
            batch.timestep,
            batch.text.float()[:, None],
            batch.text_mask,
            batch.frame_mask,
            drop=batch.drop,
            **batch.sizes,
        )
    return denoising_loss(schedule, output, x0, x_t, batch.noise, batch.timestep, batch.frame_mask)


@functools.lru_cache(maxsize=8)
def _schedule(device: torch.device) -> NoiseSchedule:
    return NoiseSchedule.of().to(device)
