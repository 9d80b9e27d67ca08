"""Evaluate: the same prompts, seeds and noise at chosen checkpoints, and the report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bricks_core.spec.strict import HowRounded, Row, Strict, What

SAMPLERS = {"stdit2": ("unipc", "dpm-solver++", "iddpm"), "wan": ("unipc", "flow-euler")}
"""The ways from noise to latents that each family has; the first is the usual one."""


class EvaluateSpec(Strict):
    """What is asked of the model, and of which checkpoints."""

    prompts: What[list[str]] = Field(min_length=1)
    seed: What[int] = Field(42, ge=0)
    """The noise of prompt i comes from (seed, i): the same for every checkpoint."""
    num_frames: What[int] = Field(16, ge=1)
    resolution: What[str] = "360p"
    """One of latents.resolutions."""
    aspect: What[str] = "0.56"
    """Height / width, as the resolution's table names it; not used where the resolution is one size."""
    fps: What[float] = Field(8.0, gt=0)
    """The rate the model is told, and the videos' own."""
    sampler: What[Literal["dpm-solver++", "iddpm", "unipc", "flow-euler"]] = "unipc"
    """For stdit2: iddpm is the reference's 100-step chain; unipc and dpm-solver++ need a quarter of the steps. For wan:
    unipc, or flow-euler, which is simpler and needs more steps."""
    num_sampling_steps: What[int] = Field(25, ge=1, le=1000)
    guidance_scale: What[float] = Field(7.0, ge=0)
    guided_channels: What[Literal[3, 4]] = 4
    """Of stdit2: 3 leaves the fourth latent channel unguided, as the reference does. Wan guides all it has."""
    num_checkpoints: What[int] = Field(5, ge=2)
    """Checkpoints sampled, at most: the base model, the last one, and evenly spaced ones between."""
    weights: What[list[Literal["raw", "ema"]]] = Field(["raw", "ema"], min_length=1)
    batch_size: HowRounded[int] = Field(4, ge=1)
    """Prompts sampled together; samples depend on it in their last digits at most."""
    code: What[str] = Field("", pattern=r"^$|^[0-9a-f]{7,64}$")
    """The commit whose answer is asked for; empty: any code's of this stage's version. It is a part of the cache key
    and nothing more: `bricks eval render` sets it, so that what another commit sampled is not found for this one."""

    def check_family(self, family: str) -> None:
        """Raise ValueError: what is asked for is not how this family is sampled."""
        if self.sampler not in SAMPLERS[family]:
            raise ValueError(
                f"evaluate.sampler is {self.sampler}, and {family} is sampled by {' or '.join(SAMPLERS[family])}: "
                "write one of these."
            )
        if self.guided_channels == 3 and family != "stdit2":
            raise ValueError(f"evaluate.guided_channels is for stdit2; {family} guides all channels: leave it out.")


class Sample(Row):
    """One generated video."""

    prompt_index: int
    prompt: str
    step: int
    weights: Literal["raw", "ema"]
    seed: int
    video_key: str
    strip_key: str
    """Its frames side by side, as a JPEG."""
