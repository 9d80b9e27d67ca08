"""What differs between one kind of network and another, and nothing else: its family.

Training, sampling, checkpoints and `bricks generate` know a network by its family alone, so that another kind of
network is one more file here, one kind of codec and one of text encoder (docs/decisions/0008-families.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from bricks_core.diffusion.batch import MicroBatch
from bricks_core.diffusion.conditions import Condition, Reference
from bricks_core.diffusion.loss import Losses
from bricks_core.models.tensor_files import Tensors
from bricks_core.spec.latents import CodecSpec, TextSpec
from bricks_core.spec.train import ModelSpec

if TYPE_CHECKING:  # all of diffusers' pipelines are a second of work
    from diffusers import DiffusionPipeline

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after each step with its number (0 first), x (B, C, T, H, W), and the clean latents predicted in it."""


@dataclass(frozen=True)
class Prompts:
    """What a batch of B videos is to show, as features of the text encoder that the network was trained with."""

    features: Tensor
    """(B, 1, L, width) float32"""
    mask: Tensor
    """(B, L), 1 where there is a token."""
    empty: Tensor
    """(tokens, width), the features of the empty caption."""


@dataclass(frozen=True)
class Frame:
    """The size and rate of videos, in pixels and in latents."""

    num_frames: int
    height_px: int
    width_px: int
    fps: float
    """Of the frames; what an image has is not looked at."""
    latents: tuple[int, int, int]
    """T, H, W: what the codec makes of such a video."""


@dataclass(frozen=True)
class Sampling:
    """How noise becomes latents."""

    sampler: str
    """One of the family's `samplers`."""
    num_steps: int
    guidance_scale: float
    guided_channels: int | None = None
    """The first so many; None: all."""
    shift: float | None = None
    """Of a flow, see train.model.shift; None: the family's."""


@dataclass(frozen=True)
class Given:
    """Frames that are given: see conditions.py, for each video of a batch its own."""

    references: Sequence[Sequence[Reference]]
    conditions: Sequence[Sequence[Condition]]
    loop: int = 0


@dataclass(frozen=True)
class Predictions:
    """What a network says of noised latents, and what it should say; (B, C, T, H, W) float32 each."""

    captioned: list[Tensor]
    """With each of the captions that were asked for."""
    without: Tensor
    """Without a caption, as sampling asks it."""
    target: Tensor


@dataclass(frozen=True)
class Published:
    """What a family's published weights go with: taken where a checkpoint does not say."""

    codec: CodecSpec
    text: TextSpec
    num_frames: int
    """As the size and the rate, of its makers' own samples."""
    height_px: int
    width_px: int
    fps: float
    guidance_scale: float


class Family(ABC):
    """One kind of network: how it is made, taught, asked, and written down."""

    name: ClassVar[str]
    samplers: ClassVar[tuple[str, ...]]
    """Ways from noise to latents, the usual one first."""
    published: ClassVar[Published]
    side_px: ClassVar[int]
    """Sides of its videos are multiples of this: the codec's squares, or where nothing is padded, patches of them."""
    takes_given_frames: ClassVar[bool]
    """Whether frames can be given to it, to begin from, to connect, to go on with."""
    guides_some_channels: ClassVar[bool]
    """Whether guidance may lead some of the latent channels only."""
    lora_targets: ClassVar[tuple[str, ...]]
    """How the names of the modules end that low-rank adapters go to: peft's `target_modules`."""

    @abstractmethod
    def build(self, spec: ModelSpec, *, text_width: int, max_tokens: int, caption_dropout: float) -> ModelMixin:
        """A network of the size that a run file asks for, with weights drawn from torch's global generator.

        text_width, max_tokens  of the caption features it will be given
        Raises SpecError: it cannot be given such features.
        """

    @abstractmethod
    def load(
        self,
        weights: Path | Tensors,
        config: Path | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
    ) -> ModelMixin:
        """The network of two files, or of what is in them, in evaluation mode, its weights in memory once.

        weights  a safetensors file, or the index of several
        dtype    None: as they are in the file

        Raises SpecError: they do not belong together; DataError: they are damaged, or no such files.
        """

    @abstractmethod
    def save_config(self, network: ModelMixin, file: Path) -> None:
        """Write the network's shape, as `load` reads it."""

    @abstractmethod
    def check(self, network: ModelMixin, channels: int, latents: tuple[int, int, int]) -> None:
        """Raise SpecError, with what it can do, if the network cannot do such latents (T, H, W)."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: MicroBatch, precision: Literal["float32", "bfloat16"]) -> Losses:
        """Put a batch's noise into its latents, ask the network, and say how far off it is.

        The network (which may be wrapped, for several processes) runs in `precision`, noise and loss in float32.
        """

    @abstractmethod
    def null_caption(self, network: ModelMixin, empty: Tensor) -> Tensor:
        """What a dropped caption is in training, and the guided sampling leads away from.  -> (tokens, width)

        empty  (tokens, width), the features of the empty caption
        """

    @abstractmethod
    def sample(
        self,
        network: ModelMixin,
        prompts: Prompts,
        frame: Frame,
        generators: Sequence[torch.Generator],
        sampling: Sampling,
        given: Given | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents for each prompt.  -> (B, C, T, H, W) float32, on the network's device

        generators  one per prompt, on the CPU: all of a sample's noise comes from its own

        For bfloat16, call within torch.autocast. Raises SpecError: this network cannot do that.
        """

    @abstractmethod
    def predict(
        self,
        network: ModelMixin,
        latents: Tensor,
        noise: Tensor,
        timestep: Tensor,
        captions: Sequence[Prompts],
        frame: Frame,
        sampler: str,
    ) -> Predictions:
        """What the network says of latents with noise in them, under several captions and under none.

        latents, noise  (B, C, T, H, W), on the network's device
        timestep        (B,) int64, 0 to 999, as in training
        captions        each one caption for every latents
        sampler         one of `samplers`: no caption is asked for as this one does it

        For bfloat16, call within torch.autocast.
        """

    @abstractmethod
    def pipeline(self, network: ModelMixin, *, vae: str = "", text_encoder: str = "") -> DiffusionPipeline:
        """The network as diffusers' pipeline, to be used or saved there.

        vae, text_encoder  a folder or hub id of each, or of a pipeline that has them; left out where none is given

        Raises SpecError or ServiceUnavailable: one of these cannot be had.
        """
