"""A prompt becomes frames: the pipeline of STDiT2, made and used as diffusers' own.

Numbers in brackets are sections of the specification, docs/stdit2.md. B samples, T frames, H, W pixels, h, w size of
the latents, C their channels, L tokens of a caption. How to use it: docs/pipeline.md.
"""
# No `from __future__ import annotations`: diffusers reads the types of a pipeline's components, and not their names.

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from bricks_core.diffusion.conditions import Condition, apply_conditions, end_image, extension, parse_mask_strategy
from bricks_core.diffusion.guidance import Denoiser, NullLength, null_captions
from bricks_core.diffusion.sampling import Chain, captioned_denoiser, usual_null_length
from bricks_core.errors import SpecError, UsageError
from bricks_core.models.caption_cleaning import clean_caption as cleaned
from bricks_core.models.chunks import in_chunks
from bricks_core.models.stdit2 import STDiT2
from bricks_core.video.read import Pixels
from bricks_core.video.resize import fit

logger = logging.get_logger(__name__)

Media = Any
"""An image: PIL, or an array or tensor; a video: a list of images, or an array or tensor with one more axis.

Arrays are (H, W, 3) and (T, H, W, 3), tensors (3, H, W) and (T, 3, H, W): bytes, or floats in [0, 1].
"""

OnStepEnd = Callable[..., dict[str, Tensor]]
"""pipe, step, timestep, callback_kwargs -> tensors that replace those"""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class STDiT2PipelineOutput(BaseOutput):
    """What `STDiT2Pipeline` returns.

    Args:
        frames (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`):
            For "pil" a list of frames for each video; for "np" `(B, T, H, W, 3)` and for "pt" `(B, T, 3, H, W)`, both
            in [0, 1]; for "latent" `(B, C, T, h, w)`.
    """

    frames: Any


class STDiT2Pipeline(DiffusionPipeline):
    r"""
    Text to video, image to video and extension of videos with STDiT2, the transformer of Open-Sora 1.1.

    Saving and loading, moving to a device, offloading and progress bars are those of [`DiffusionPipeline`].

    Args:
        tokenizer ([`T5Tokenizer`]):
            The tokenizer of the text encoder. May be left out, with `text_encoder`, by who brings `prompt_embeds`.
        text_encoder ([`T5EncoderModel`]):
            The encoder of T5; the published weights were trained with
            [DeepFloyd/t5-v1_1-xxl](https://huggingface.co/DeepFloyd/t5-v1_1-xxl).
        vae ([`AutoencoderKL`]):
            Stable Diffusion's autoencoder, which encodes and decodes every frame by itself; the published weights were
            trained with [stabilityai/sd-vae-ft-ema](https://huggingface.co/stabilityai/sd-vae-ft-ema). May be left out
            by who wants latents and gives no frames.
        transformer ([`STDiT2`]):
            The network that predicts the noise in latents.
        scheduler ([`SchedulerMixin`]):
            Any scheduler of diffusers for noise prediction on the network's process (`scheduler_named`), or
            [`IDDPMScheduler`], the reference's.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder", "vae"]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKL,
        transformer: STDiT2,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self._guidance_scale = 7.0
        self._interrupt = False
        self._current_timestep: Tensor | None = None
        self._num_timesteps = 0

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline from a folder or a hub id; takes what [`DiffusionPipeline.from_pretrained`] takes.

        diffusers downloads only pipelines of its own classes, so that what is on the hub is fetched here first.
        """
        place = pretrained_model_name_or_path
        if not Path(place).is_dir():
            known = inspect.signature(snapshot_download).parameters
            wanted = {name: value for name, value in kwargs.items() if name in known}
            place = snapshot_download(str(place), ignore_patterns=["*.bin", "*.ckpt", "*.pt", "*.pth"], **wanted)
        loaded: Self = super().from_pretrained(place, **kwargs)
        return loaded

    @property
    def guidance_scale(self) -> float:
        """The scale of the call under way; a callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is asked twice."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Of the call under way."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """Of the call under way, else None."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt`, in a callback, say, to end the call under way after its step."""
        return self._interrupt

    # ------------------------------------------------------------------------------------------------------- captions

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        clean_caption: bool = True,
        max_sequence_length: int | None = None,
        null_length: NullLength | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Captions, their masks, and the same of what is guided away from; see `__call__` for the arguments.

        -> (B, L, width), (B, L), (B, L', width), (B, L'); B is prompts times `num_videos_per_prompt`. Without guidance
        the latter two are the former.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            assert prompt is not None
            prompt_embeds, prompt_attention_mask = self._encoded(prompt, clean_caption, max_sequence_length, device)
        elif prompt_attention_mask is None:
            prompt_attention_mask = torch.ones(prompt_embeds.shape[:2], dtype=torch.long)
        embeds, mask = prompt_embeds.to(device), prompt_attention_mask.to(device)

        negative, negative_mask = embeds, mask
        if negative_prompt_embeds is not None:
            negative = negative_prompt_embeds.to(device)
            negative_mask = torch.ones(negative.shape[:2], dtype=mask.dtype, device=device)
            if negative_prompt_attention_mask is not None:
                negative_mask = negative_prompt_attention_mask.to(device)
        elif do_classifier_free_guidance and negative_prompt is not None:
            texts = [negative_prompt] * len(embeds) if isinstance(negative_prompt, str) else negative_prompt
            negative, negative_mask = self._encoded(texts, clean_caption, max_sequence_length, device)
        elif do_classifier_free_guidance:
            null = self.transformer.y_embedder.y_embedding.to(device, embeds.dtype)
            rows, negative_mask = null_captions(null, mask, null_length or usual_null_length(self.scheduler))
            negative = rows[:, 0]
        if len(negative) != len(embeds):
            raise UsageError(
                f"{len(embeds)} prompts and {len(negative)} negative ones: give one for each, or one text for all."
            )
        n = num_videos_per_prompt
        repeated = [each.repeat_interleave(n, dim=0) for each in (embeds, mask, negative, negative_mask)]
        return repeated[0], repeated[1], repeated[2], repeated[3]

    def _encoded(
        self, texts: str | list[str], clean: bool, max_length: int | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """-> features (B, L, width), mask (B, L); L is the longest text's"""
        texts = [texts] if isinstance(texts, str) else list(texts)
        texts = [cleaned(text) for text in texts] if clean else texts
        max_length = max_length or self.transformer.config.model_max_length
        tokens = self.tokenizer(
            texts,
            padding="longest",
            max_length=max_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        for text, whole in zip(texts, self.tokenizer(texts).input_ids, strict=True):
            if len(whole) > max_length:
                logger.warning(f"A prompt has {len(whole)} tokens, and only {max_length} are read: {text[:60]}...")
        mask = tokens.attention_mask.to(device)
        features: Tensor = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]
        return features, mask

    # --------------------------------------------------------------------------------------------------- given frames

    @torch.no_grad()
    def encode_frames(self, frames: Pixels, chunk_size: int = 4) -> Tensor:
        """(T, H, W, 3) frames in 0..255 -> (C, T, h, w) latents, float32: the mean of what the VAE says."""
        device = self._execution_device

        def encoded(chunk: Tensor) -> Tensor:
            pixels = chunk.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
            return latents.float() * self.vae.config.scaling_factor

        return in_chunks(encoded, torch.from_numpy(frames), chunk_size).transpose(0, 1)

    def _given(
        self,
        noise: Tensor,
        size: tuple[int, int],
        num_prompts: int,
        references: list[list[Media]],
        conditions: list[Condition],
        chunk_size: int,
    ) -> tuple[Tensor | None, Tensor | None]:
        """References put into the noise.  -> (B, C, T, h, w) and the mask (B, T), or None twice when nothing is given

        references    one list for all prompts, or one for each
        """
        if not conditions:
            return None, None
        each_prompt = [
            [self.encode_frames(fit(as_pixels(one), *size), chunk_size) for one in media] for media in references
        ]
        each_prompt = each_prompt * num_prompts if len(each_prompt) == 1 else each_prompt
        repeats = len(noise) // num_prompts
        per_sample = [latents for latents in each_prompt for _ in range(repeats)]
        return apply_conditions(noise, per_sample, [conditions] * len(noise))

    # ----------------------------------------------------------------------------------------------------------- video

    @torch.no_grad()
    def decode_latents(
        self, latents: Tensor, decode_chunk_size: int = 4, device: torch.device | str | None = None
    ) -> Tensor:
        """(B, C, T, h, w) -> (B, T, 3, H, W) float32 in [0, 1], on `device`, or where the VAE runs.

        Beside the result, memory holds `decode_chunk_size` frames on their way, however many there are.
        """

        def decoded(chunk: Tensor) -> Tensor:
            scaled = (chunk / self.vae.config.scaling_factor).to(self.vae.dtype)
            pixels: Tensor = self.vae.decode(scaled, return_dict=False)[0]
            return pixels.float().div_(2).add_(0.5).clamp_(0, 1)

        frames = latents.transpose(1, 2).flatten(0, 1)
        return in_chunks(decoded, frames, decode_chunk_size, device).unflatten(0, (len(latents), -1))

    def _output(self, latents: Tensor, output_type: str, chunk_size: int) -> Any:
        if output_type == "latent":
            return latents
        if output_type == "pt":
            return self.decode_latents(latents, chunk_size)
        if output_type == "np":
            return self.decode_latents(latents, chunk_size, "cpu").permute(0, 1, 3, 4, 2).numpy()
        videos = []
        for one in latents:  # one at a time: as PIL a video is a quarter of what it is as floats
            frames = self.decode_latents(one[None], chunk_size, "cpu")[0].mul_(255).round_().to(torch.uint8)
            videos.append([Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy()])
        return videos

    # ------------------------------------------------------------------------------------------------------------ call

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        prompt_embeds: Tensor | None,
        num_frames: int,
        height: int,
        width: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
        generator: torch.Generator | list[torch.Generator] | None,
        num_videos: int,
        decode_chunk_size: int,
        frames_are_given: bool,
    ) -> None:
        """Raises UsageError: what is asked for cannot be, and why; SpecError: the components do not fit together."""
        if (prompt is None) == (prompt_embeds is None):
            raise UsageError("Give either `prompt` or `prompt_embeds`.")
        if prompt is not None and self.text_encoder is None:
            raise UsageError("This pipeline has no text encoder: give `prompt_embeds`, or load it with one.")
        if min(height, width) < self.vae_scale_factor:
            raise UsageError(f"{height}x{width} pixels are smaller than one latent: ask for a larger size.")
        if num_frames < 1 or decode_chunk_size < 1:
            raise UsageError(f"num_frames {num_frames} and decode_chunk_size {decode_chunk_size} must be at least 1.")
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f'output_type "{output_type}" is unknown: there are {", ".join(OUTPUT_TYPES)}.')
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise UsageError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} are unknown: there are "
                f"{', '.join(self._callback_tensor_inputs)}."
            )
        if isinstance(generator, list) and len(generator) != num_videos:
            raise UsageError(f"{num_videos} videos need one generator, or one for each; there are {len(generator)}.")
        if self.vae is None:
            if output_type != "latent" or frames_are_given:
                raise UsageError(
                    'This pipeline has no VAE: ask for output_type "latent", and give no images or videos.'
                )
        elif self.vae.config.latent_channels != self.transformer.config.in_channels:
            raise SpecError(
                f"The VAE's latents have {self.vae.config.latent_channels} channels, and the transformer takes "
                f"{self.transformer.config.in_channels}: use one of Stable Diffusion's, such as "
                "stabilityai/sd-vae-ft-ema."
            )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Media | None = None,
        last_image: Media | None = None,
        video: Media | None = None,
        references: Sequence[Media] | None = None,
        conditions: Sequence[Condition] | str | None = None,
        num_condition_frames: int | None = None,
        num_frames: int = 16,
        height: int = 240,
        width: int = 426,
        fps: float = 8.0,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.0,
        guided_channels: int | None = None,
        null_length: NullLength | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' own way; never changed)
        clean_caption: bool = True,
        max_sequence_length: int | None = None,
        decode_chunk_size: int = 4,
    ) -> STDiT2PipelineOutput | tuple[Any]:
        r"""
        Make videos, or with one frame images.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                What is to be seen, in one video or in several. Without it, give `prompt_embeds`.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from: one text for all prompts, or one for each. Without it, the network's own null
                caption, which its training dropped captions for.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, or a list of one for each prompt, *optional*):
                An image that the video begins with. Brought to the video's size as training data is: it is covered,
                and cropped at the centre.
            last_image (as `image`, *optional*):
                An image that the video ends with.
            video (`list[PIL.Image.Image]`, `np.ndarray`, `torch.Tensor`, or a list of one for each prompt, *optional*):
                A video to go on from: its last `num_condition_frames` frames are the first ones of the result. Its
                frames should be as far apart as those of the result, see `fps`.
            references (`list` of images and videos, *optional*):
                What `conditions` speak of; the same for all prompts.
            conditions (`list[Condition]` or `str`, *optional*):
                Which frames of which reference go where, and how much they are to be changed: `Condition`s, or a mask
                strategy of Open-Sora, such as `"0;0,1,0,-1,1"`.
            num_condition_frames (`int`, *optional*):
                How many frames of `video` are kept. By default a quarter of `num_frames`, the most that training shows.
            num_frames (`int`, *optional*, defaults to 16):
                Frames of the result, those that are given among them; 1 makes an image.
            height (`int`, *optional*, defaults to 240):
                Pixels from top to bottom. What there is beyond a multiple of 8 is lost: 426 pixels become 424.
            width (`int`, *optional*, defaults to 426):
                Pixels from left to right.
            fps (`float`, *optional*, defaults to 8.0):
                The frame rate that the network is told: frames per second of the result when it is played at natural
                speed. For a single frame it is not used.
            num_inference_steps (`int`, *optional*, defaults to 25):
                Steps from noise to latents; 100 with `IDDPMScheduler`.
            guidance_scale (`float`, *optional*, defaults to 7.0):
                How far to go from what the network says without a caption to what it says with it, and beyond
                ([Classifier-Free Diffusion Guidance](https://huggingface.co/papers/2207.12598)). With 1 it is asked
                once, with its caption; with 0 its answer is that without one.
            guided_channels (`int`, *optional*):
                How many of the latent channels are guided, the first ones. By default all; the reference guides 3.
            null_length (`"whole"` or `"caption"`, *optional*):
                How many rows of the null caption are read: all, so that what is said without a caption depends on no
                caption, or as many as the caption has, as in training. By default all, but with `IDDPMScheduler`.
            num_videos_per_prompt (`int`, *optional*, defaults to 1):
                So many videos of each prompt, each from noise of its own.
            eta (`float`, *optional*, defaults to 0.0):
                η of DDIM (arXiv:2010.02502 eq. 16): how much noise a step adds. For schedulers that take it.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Where all noise comes from. With one for each video, a video does not depend on its batch.
            latents (`torch.Tensor`, *optional*):
                Noise `(B, C, T, h, w)` of unit variance to begin with, in place of what `generator` would draw.
            prompt_embeds (`torch.Tensor`, *optional*):
                Features `(prompts, L, width)` of the prompts, in place of `prompt`.
            prompt_attention_mask (`torch.Tensor`, *optional*):
                Their mask `(prompts, L)`: 1 where there is a token. By default everywhere.
            negative_prompt_embeds (`torch.Tensor`, *optional*):
                Features `(prompts, L', width)` to guide away from, in place of `negative_prompt`.
            negative_prompt_attention_mask (`torch.Tensor`, *optional*):
                Their mask `(prompts, L')`.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or `"latent"`: what the frames come as, see `STDiT2PipelineOutput`.
            return_dict (`bool`, *optional*, defaults to `True`):
                With `False` the videos come in a tuple of one, without a name.
            callback_on_step_end (`Callable`, `PipelineCallback` or `MultiPipelineCallbacks`, *optional*):
                Called after each step with the pipeline, the step's number, its timestep and `callback_kwargs`; the
                tensors it returns take the place of those. Given frames in `latents` are clean.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*):
                The tensors that `callback_kwargs` holds: any of `pipe._callback_tensor_inputs`.
            clean_caption (`bool`, *optional*, defaults to `True`):
                Whether prompts are cleaned as Open-Sora's inference cleans them, lower case among other things.
            max_sequence_length (`int`, *optional*):
                Tokens after which a prompt is cut. By default, and at most, what the transformer takes: 200.
            decode_chunk_size (`int`, *optional*, defaults to 4):
                How many frames the VAE encodes or decodes at a time. Only memory and speed depend on it.

        Examples:

        ```py
        >>> import torch
        >>> from diffusers.utils import export_to_video
        >>> from bricks_core.diffusion.text_to_video import STDiT2Pipeline

        >>> pipe = STDiT2Pipeline.from_pretrained("my-pipeline", torch_dtype=torch.bfloat16)
        >>> pipe.enable_model_cpu_offload()
        >>> prompt = "A red brick car drives to the left. The camera stands still."
        >>> frames = pipe(prompt, num_frames=16, generator=torch.Generator().manual_seed(0)).frames[0]
        >>> export_to_video(frames, "car.mp4", fps=8)

        >>> onward = pipe(prompt, video=frames, num_frames=16).frames[0]  # its first four are the last ones of `frames`
        ```

        Returns:
            [`STDiT2PipelineOutput`] or `tuple`:
                The videos, by name or as a tuple of one. A call that was interrupted returns them as the network saw
                them last.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        asked = prompt_embeds if prompt is None else [prompt] if isinstance(prompt, str) else prompt
        num_prompts = 0 if asked is None else len(asked)
        self.check_inputs(
            prompt,
            prompt_embeds,
            num_frames,
            height,
            width,
            output_type,
            callback_on_step_end_tensor_inputs,
            generator,
            num_prompts * num_videos_per_prompt,
            decode_chunk_size,
            any(each is not None for each in (image, last_image, video, conditions)),
        )
        given_references, given_conditions = gathered(
            num_prompts, num_frames, image, last_image, video, references, conditions, num_condition_frames
        )
        self._guidance_scale, self._interrupt, device = guidance_scale, False, self._execution_device

        tensors = dict(
            zip(
                self._callback_tensor_inputs[1:],
                self.encode_prompt(
                    prompt,
                    negative_prompt,
                    self.do_classifier_free_guidance,
                    num_videos_per_prompt,
                    prompt_embeds,
                    prompt_attention_mask,
                    negative_prompt_embeds,
                    negative_prompt_attention_mask,
                    clean_caption,
                    max_sequence_length,
                    null_length,
                    device,
                ),
                strict=True,
            )
        )
        channels, factor = self.transformer.config.in_channels, self.vae_scale_factor
        shape = (num_prompts * num_videos_per_prompt, channels, num_frames, height // factor, width // factor)

        def draw() -> Tensor:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

        if latents is not None and latents.shape != shape:
            raise UsageError(f"latents are {tuple(latents.shape)}, and for what is asked for must be {shape}.")
        noise = draw() if latents is None else latents.to(device, torch.float32)
        given, frame_mask = self._given(
            noise, (height, width), num_prompts, given_references, given_conditions, decode_chunk_size
        )
        chain = Chain(
            self.scheduler,
            num_inference_steps,
            draw,
            device=device,
            generator=generator,
            frame_mask=frame_mask,
            eta=eta,
        )
        tensors["latents"] = chain.begin(noise, given)

        def denoiser() -> Denoiser:
            return captioned_denoiser(
                self.transformer,
                tensors["prompt_embeds"][:, None],
                tensors["prompt_attention_mask"],
                tensors["negative_prompt_embeds"][:, None],
                tensors["negative_prompt_attention_mask"],
                num_frames=num_frames,
                pixel_size=(height, width),
                fps=fps,
                scale=self._guidance_scale,
                num_channels=guided_channels or channels,
            )

        self._walk(chain, tensors, denoiser, callback_on_step_end, callback_on_step_end_tensor_inputs)
        videos = self._output(tensors["latents"], output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return STDiT2PipelineOutput(frames=videos) if return_dict else (videos,)

    def _walk(
        self,
        chain: Chain,
        tensors: dict[str, Tensor],
        denoiser: Callable[[], Denoiser],
        callback: OnStepEnd | None,
        wanted: list[str],
    ) -> None:
        """All steps of the chain; `tensors` change as they go and as the callback wants it."""
        self._num_timesteps = len(chain.timesteps)
        with self.progress_bar(total=len(chain.timesteps)) as bar:
            for number, timestep in enumerate(chain.timesteps):
                self._current_timestep = timestep
                tensors["latents"], clean = chain.step(number, tensors["latents"], denoiser())
                if callback is not None:
                    tensors |= callback(self, number, timestep, {name: tensors[name] for name in wanted}) or {}
                bar.update()
                if self.interrupt:
                    tensors["latents"] = clean
                    break
        self._current_timestep = None


# -------------------------------------------------------------------------------------------------------------- media


def gathered(
    num_prompts: int,
    num_frames: int,
    image: Media | None,
    last_image: Media | None,
    video: Media | None,
    references: Sequence[Media] | None,
    conditions: Sequence[Condition] | str | None,
    num_condition_frames: int | None,
) -> tuple[list[list[Media]], list[Condition]]:
    """What is given in any of its forms, as references and what to do with them.

    -> the references, one list for all prompts or one for each, and the conditions, which are the same for all

    Raises UsageError: two of them contradict each other.
    """
    if image is not None and video is not None:
        raise UsageError("A video begins with an `image` or goes on from a `video`, not both.")
    if conditions is not None or references is not None:
        if any(each is not None for each in (image, last_image, video)) or conditions is None or references is None:
            raise UsageError(
                "`references` and `conditions` go together, and say all that is given: put `image`, `last_image` and "
                "`video` among the references."
            )
        wanted = parse_mask_strategy(conditions) if isinstance(conditions, str) else tuple(conditions)
        return [list(references)], list(wanted)
    columns: list[list[Media]] = []
    found: list[Condition] = []
    if image is not None:
        columns.append(_one_or_each(image, 3, num_prompts, "image"))
        found.append(Condition(0))
    if video is not None:
        num_kept = max(1, num_frames // 4) if num_condition_frames is None else num_condition_frames
        columns.append(_one_or_each(video, 4, num_prompts, "video"))
        found.append(extension(num_kept))
    if last_image is not None:
        found.append(end_image(len(columns)))
        columns.append(_one_or_each(last_image, 3, num_prompts, "last_image"))
    if all(len(column) == 1 for column in columns):
        return [[column[0] for column in columns]], found
    return [[column[i % len(column)] for column in columns] for i in range(num_prompts)], found


def _one_or_each(media: Media, num_axes: int, num_prompts: int, what: str) -> list[Media]:
    """One image or video, for all prompts, or those of each."""
    axes = _num_axes(media)
    if axes == num_axes:
        return [media]
    if axes != num_axes + 1 or len(media) != num_prompts:
        raise UsageError(f"`{what}` must be one for all prompts, or a list of {num_prompts}, one for each.")
    return list(media)


def _num_axes(media: Media) -> int:
    """3 for an image, 4 for a video or several images, 5 for several videos."""
    if isinstance(media, list | tuple):
        return 1 + (_num_axes(media[0]) if media else 0)
    return 3 if isinstance(media, Image.Image) else media.ndim


def as_pixels(media: Media) -> Pixels:
    """An image or a video in any of its forms -> (T, H, W, 3), 0 to 255.

    Raises UsageError: it has none of them.
    """
    if isinstance(media, list | tuple):
        return np.concatenate([as_pixels(each) for each in media]) if media else np.zeros((0, 1, 1, 3), np.uint8)
    if isinstance(media, Image.Image):
        return np.array(media.convert("RGB"))[None]
    if isinstance(media, Tensor):
        media = media.detach().cpu()
        media = (media if media.dtype == torch.uint8 else media.float()).movedim(-3, -1).numpy()
    if not isinstance(media, np.ndarray) or media.ndim not in (3, 4) or media.shape[-1] != 3:
        shape = getattr(media, "shape", type(media).__name__)
        raise UsageError(
            f"An image is (height, width, 3) as an array and (3, height, width) as a tensor, a video has one axis more "
            f"in front; this is {shape}."
        )
    if media.dtype != np.uint8:
        if media.size and not (media.min() >= 0 and media.max() <= 1):
            raise UsageError("Images and videos of floats lie in [0, 1], as the pipeline's own do; these do not.")
        media = np.round(media * 255).astype(np.uint8)
    return media if media.ndim == 4 else media[None]
