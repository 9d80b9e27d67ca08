"""Train: latents become a fine-tuned network, through phases, with checkpoints that hold everything.

Numbers in brackets are sections of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bricks_core.spec.strict import How, HowRounded, Row, Strict, What

IMAGE_FPS = 120.0
"""The frame rate that a model is told of an image, in training as in sampling."""
Weights = Literal["raw", "ema"]
"""As the optimizer leaves them, or their average over the last steps."""
DEFAULT_WEIGHTS: Weights = "ema"
"""Which are meant where nobody says it and there are both: to generate, to export, and in the report."""
WAN_TOKENS = 512
"""Rows of caption features that Wan reads, always: behind the caption's end they are zeros, and no mask hides them."""


class STDiT2Spec(Strict):
    """STDiT2's size. The defaults are Open-Sora 1.1's STDiT2-XL/2, 0.77 billion parameters."""

    family: What[Literal["stdit2"]] = "stdit2"
    hidden_size: What[int] = Field(1152, multiple_of=12)
    depth: What[int] = Field(28, ge=1)
    num_heads: What[int] = Field(16, ge=1)
    mlp_ratio: What[float] = Field(4.0, gt=0)
    input_sq_size_px: What[int] = Field(512, ge=8)
    """Pixel size at which the position embedding has its natural scale."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_heads} heads of even width."
            )
        return self


class WanSpec(Strict):
    """Wan's size, with diffusers' names. The defaults are Wan 2.1's smaller network, 1.4 billion parameters.

    It reads latents of `in_channels`, and as many come out. It has no frame masks, so train.mask_ratios is null.
    """

    family: What[Literal["wan"]]
    num_layers: What[int] = Field(30, ge=1)
    num_attention_heads: What[int] = Field(12, ge=1)
    attention_head_dim: What[int] = Field(128, multiple_of=2, ge=6)
    """Split between time, height and width, for rotary positions in all three."""
    ffn_dim: What[int] = Field(8960, ge=1)
    freq_dim: What[int] = Field(256, multiple_of=2, ge=2)
    text_dim: What[int] = Field(4096, ge=1)
    """Width of the caption features."""
    in_channels: What[int] = Field(16, ge=1)
    patch_size: What[tuple[Literal[1], Literal[1, 2], Literal[1, 2]]] = (1, 2, 2)
    """Latents in one token: in time, down and across."""
    qk_norm: What[Literal["rms_norm_across_heads"] | None] = "rms_norm_across_heads"
    cross_attn_norm: What[bool] = True
    eps: What[float] = Field(1e-6, gt=0)
    shift: What[float] = Field(3.0, gt=0)
    """How far noise levels are moved towards much noise, in training and in sampling. 3 for about 480 rows of pixels
    and 5 for 720, as Wan has it; 1 leaves them evenly spaced."""


ModelSpec = Annotated[STDiT2Spec | WanSpec, Field(discriminator="family")]


class TrainBucket(Strict):
    """Samples of one shape that every step of a phase takes together.

    latents  (batch_size, channels, num_frames, height_px / 8, width_px / 8), with the codec's channels; of one that
             shrinks time, 1 + (num_frames - 1) / 4
    """

    num_frames: What[int] = Field(ge=1)
    """1 takes the images."""
    resolution: What[str]
    """One of latents.resolutions."""
    frame_interval: What[int] = Field(1, ge=1)
    """Every how many frames of a clip one is taken; the model is told the rate that results."""
    batch_size: What[int] = Field(ge=1)
    """Samples per step over all processes, so that the run file does not depend on their number."""
    micro_batch_size: HowRounded[int | None] = Field(None, ge=1)
    """At most this many at once in one process, for memory; the gradients of a step are the same up to rounding."""

    @property
    def name(self) -> str:
        """As tables and charts call it, such as 16f-360p or, of every second frame, 16f-360p-every2."""
        every = f"-every{self.frame_interval}" if self.frame_interval > 1 else ""
        return f"{self.num_frames}f-{self.resolution}{every}"

    @property
    def num_frames_spanned(self) -> int:
        """Frames a clip must have at least."""
        return (self.num_frames - 1) * self.frame_interval + 1


class Constant(Strict):
    """One learning rate from first to last."""

    kind: What[Literal["constant"]] = "constant"
    lr: What[float] = Field(gt=0)

    def rate(self, step: int) -> float:
        """The rate of the step before which `step` steps of the phase were done.  [18]"""
        return self.lr


class CosineConstant(Strict):
    """Cosine from min_lr up to lr, then constant: the reference's 64-frame run, which spares the optimizer a shock."""

    kind: What[Literal["cosine_constant"]] = "cosine_constant"
    lr: What[float] = Field(gt=0)
    min_lr: What[float] = Field(1e-7, ge=0)
    warmup_steps: What[int] = Field(ge=0)

    def rate(self, step: int) -> float:
        """As Constant.rate."""
        # Reaches lr in the last step of the warm-up, where OneCycle reaches max_lr in the first step after it.
        if step >= self.warmup_steps:
            return self.lr
        return _cosine(self.min_lr, self.lr, (step + 1) / self.warmup_steps)


class OneCycle(Strict):
    """Cosine from min_lr up to max_lr, then cosine down to lr: the reference's 32-frame run."""

    kind: What[Literal["one_cycle"]] = "one_cycle"
    min_lr: What[float] = Field(1e-7, ge=0)
    max_lr: What[float] = Field(gt=0)
    lr: What[float] = Field(gt=0)
    warmup_steps: What[int] = Field(ge=0)
    cooldown_steps: What[int] = Field(ge=0)

    def rate(self, step: int) -> float:
        """As Constant.rate."""
        if step < self.warmup_steps:
            return _cosine(self.min_lr, self.max_lr, step / self.warmup_steps)
        since = step - self.warmup_steps
        if since < self.cooldown_steps:
            return _cosine(self.max_lr, self.lr, since / self.cooldown_steps)
        return self.lr


def _cosine(begin: float, end: float, share: float) -> float:
    """From `begin` (share 0) to `end` (share 1) along half a wave."""
    return begin + (end - begin) * 0.5 * (1 - math.cos(math.pi * share))


Schedule = Annotated[Constant | CosineConstant | OneCycle, Field(discriminator="kind")]


class Phase(Strict):
    """A stretch of training with its own data, buckets and learning rate."""

    name: What[str]
    steps: What[int] = Field(ge=1)
    buckets: What[list[TrainBucket]] = Field(min_length=1)
    schedule: What[Schedule]


class MaskRatios(Strict):
    """How often which frames of a sample stay clean, so that the model also learns to continue and to connect.

    The rest of the samples has none. Numbers as in Open-Sora 1.1's recipe.
    """

    quarter_random: What[float] = Field(0.025, ge=0, le=1)
    quarter_head: What[float] = Field(0.025, ge=0, le=1)
    quarter_tail: What[float] = Field(0.025, ge=0, le=1)
    quarter_head_tail: What[float] = Field(0.05, ge=0, le=1)
    image_random: What[float] = Field(0.025, ge=0, le=1)
    image_head: What[float] = Field(0.025, ge=0, le=1)
    image_tail: What[float] = Field(0.025, ge=0, le=1)
    image_head_tail: What[float] = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        total = sum(self.model_dump().values())
        if total > 1 + 1e-9:
            raise ValueError(f"mask_ratios add up to {total:g}; they are shares of the samples, at most 1 together.")
        return self


class HeldOutSpec(Strict):
    """The loss that tells: on videos kept from training, at fixed timesteps, with fixed noise."""

    every_steps: How[int] = Field(250, ge=1)
    """Also before the first step and after the last."""
    num_samples: What[int] = Field(32, ge=1)
    """Per bucket, at most."""
    num_timestep_bins: What[int] = Field(5, ge=1, le=100)
    """The 1,000 timesteps are cut into this many bins."""
    timesteps_per_bin: What[int] = Field(2, ge=1)
    batch_size: HowRounded[int] = Field(8, ge=1)


class TrainSpec(Strict):
    """What is trained, on which buckets, for how long."""

    model: What[ModelSpec] = STDiT2Spec()
    """Its `family` says which network it is: stdit2, or wan."""
    init_from: What[str] = ""
    """Weights to begin with: a safetensors file, a folder with one, or a key in the store. Empty: random."""
    continue_from: What[str] = ""
    """RUN or RUN@STEP: go on from that run's training, with its weights, optimizer and EMA, onto other data, another
    rate or schedule. RUN means its newest state when this training begins. Steps are counted anew."""
    phases: What[list[Phase]] = Field(min_length=1)
    seed: What[int] = Field(42, ge=0)
    precision: What[Literal["float32", "bfloat16"]] = "bfloat16"
    """Of activations; weights, moments, EMA and loss are float32."""
    loss_weight: What[Literal["sample", "frame"]] = "sample"
    """What counts the same in a step: every sample, or every frame, so that a clip of 8 weighs as much as 8 images."""
    caption_dropout: What[float] = Field(0.1, ge=0, le=1)
    """Share of samples whose caption is replaced by the null caption: what guidance needs."""
    mask_ratios: What[MaskRatios | None] = MaskRatios()
    """null trains without masks, and so does wan."""
    beta1: What[float] = Field(0.9, ge=0, lt=1)
    beta2: What[float] = Field(0.999, ge=0, lt=1)
    weight_decay: What[float] = Field(0.0, ge=0)
    gradient_clip: What[float] = Field(1.0, gt=0)
    """Largest global L2 norm of a step's gradients."""
    ema_horizon_share: What[float] = Field(0.1, gt=0, le=1)
    """The EMA looks back over this share of the steps done, so that a short run's EMA is not still the base model."""
    activation_checkpointing: HowRounded[bool] = False
    """Recompute each block in the backward pass: less memory, a third more work."""
    held_out: What[HeldOutSpec] = HeldOutSpec()
    checkpoint_every_steps: How[int] = Field(250, ge=1)
    """Also before the first step and after the last of every phase. Each keeps weights and EMA; the newest, and the end
    of every phase, also the optimizer."""
    log_every_steps: How[int] = Field(10, ge=1)

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def weight(self, num_frames: int) -> int:
        """How much a sample of so many frames counts in its step."""
        return num_frames if self.loss_weight == "frame" else 1

    def up_to(self, num_steps: int) -> TrainSpec:
        """The same training as far as its first `num_steps` go, 1 or more."""
        phases, left = [], num_steps
        for phase in self.phases:
            if left > 0:
                phases.append(phase.model_copy(update={"steps": min(phase.steps, left)}))
            left -= phase.steps
        return self.model_copy(update={"phases": phases})

    @property
    def shown(self) -> dict[str, int]:
        """The intervals that are not the usual ones: they say which steps the tables tell of, and change no number."""
        of_this, of_held_out = type(self).model_fields, type(self.held_out).model_fields
        kept = {
            "log_every_steps": (self.log_every_steps, of_this["log_every_steps"].default),
            "checkpoint_every_steps": (self.checkpoint_every_steps, of_this["checkpoint_every_steps"].default),
            "held_out.every_steps": (self.held_out.every_steps, of_held_out["every_steps"].default),
        }
        return {name: now for name, (now, usual) in kept.items() if now != usual}

    @model_validator(mode="before")
    @classmethod
    def _of_a_family(cls, given: Any) -> Any:
        """A model that names no family is STDiT2; for one without frame masks, not to mention them means none."""
        if not isinstance(given, dict):
            return given
        model = given.get("model", {})
        if isinstance(model, dict):
            model = {"family": "stdit2"} | model
            given = given | {"model": model}
        family = model.get("family") if isinstance(model, dict) else getattr(model, "family", None)
        return {"mask_ratios": None} | given if family == "wan" else given

    @model_validator(mode="after")
    def _no_masks_for_wan(self) -> Self:
        if isinstance(self.model, WanSpec) and self.mask_ratios is not None:
            raise ValueError("wan has no frames that are given, so there is nothing to mask: leave mask_ratios out.")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.continue_from and self.init_from:
            raise ValueError("init_from and continue_from both say what to begin with: leave one of them out.")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"two phases are called the same in {names}.")
        for phase in self.phases:
            shapes = [(b.num_frames, b.resolution, b.frame_interval) for b in phase.buckets]
            if len(set(shapes)) != len(shapes):
                raise ValueError(f"phase {phase.name} has the same bucket twice; give one of them a larger batch_size.")
        return self


class StepRow(Row):
    """A logged training step, with the losses of all steps since the row before."""

    step: int
    """Steps done when it was taken: the first is 0."""
    phase: str
    loss: float
    """Mean over the samples since the row before, as mse and vb."""
    mse: float
    vb: float
    """0 for a family that predicts no variance."""
    learning_rate: float
    """Of this step."""
    gradient_norm: float
    """Of this step, before it was clipped."""
    num_samples: int
    """Samples since the row before."""


class BucketLossRow(Row):
    """The training loss of one bucket in the steps that a StepRow tells of."""

    step: int
    bucket: str
    loss: float


class HeldOutRow(Row):
    """Held-out loss of one bucket in one bin of timesteps."""

    step: int
    weights: Literal["raw", "ema"]
    bucket: str
    first_timestep: int
    end_timestep: int
    loss: float
    mse: float
    vb: float
    num_samples: int
    """Clips or images, each at every one of the bin's timesteps."""
    mse_alone: float = 0.0
    """mse of the same frames with the same noise, each by itself; 0: not measured, as of raw weights and of images."""


class ClipLossRow(Row):
    """The loss of one clip or image, the mean over all bins: what says how sure a held-out loss is.

    Clips of training are measured too, as many, each with the noise of a held-out one: the gap between the two sides is
    what was learnt by heart.
    """

    step: int
    weights: Literal["raw", "ema"]
    bucket: str
    split: Literal["train", "held_out"]
    clip_id: str
    video_id: str
    loss: float
    mse: float


class CheckpointRow(Row):
    """A checkpoint of the run; its id is `step-` and its step. Keys are from the store's root."""

    step: int
    phase: str
    weights_key: str
    ema_key: str
    state_key: str
