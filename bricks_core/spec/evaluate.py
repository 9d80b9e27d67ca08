"""Evaluate: the same prompts, seeds and noise at chosen checkpoints, and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bricks_core.errors import SpecError
from bricks_core.spec.strict import HowRounded, Row, Strict, What

SAMPLERS = {"stdit2": ("unipc", "dpm-solver++", "iddpm"), "wan": ("unipc", "flow-euler")}
"""The ways from noise to latents that each family has; the first is the usual one."""
PLAIN_PROMPTS = (
    "One red thing moves to the right on a green ground in daylight. The camera stands still.",
    "Two blue things move to the left on a yellow ground at sunset. The camera stands still.",
    "One white thing moves up in front of a dark blue background at night. The camera stands still.",
    "Three yellow things move to the left on a grey ground in mist. The camera stands still.",
)
"""What any model of films can show, whatever it was tuned to, and every word of it can be judged (judge/facts.py)."""
PromptSet = Literal["style", "held_out", "plain"]
"""The run's own prompts, captions of held-out clips, and plain ones."""


PromptText = Annotated[str, Field(pattern=r"\S")]


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
    num_seeds: What[int] = Field(4, ge=1, le=64)
    """Samples of each prompt, each from noise of its own: of the base model, the last checkpoint and the one with the
    lowest held-out loss. The others are sampled once for each of `prompts`."""
    held_out_prompts: What[int] = Field(4, ge=0, le=256)
    """Captions of that many held-out clips are sampled too, spread over their films."""
    plain_prompts: What[list[PromptText]] = list(PLAIN_PROMPTS)
    """Sentences that have nothing to do with the films: whether what the base model could do is kept. [] asks none."""
    compare: What[list[Annotated[str, Field(pattern=r"^\S.*$")]]] = []
    """Other checkpoints to sample beside ours, each as RUN or RUN@STEP, a folder, or a hub's id. They must go with this
    run's codec and text encoder."""
    lengths: What[list[Annotated[int, Field(ge=1)]]] = []
    """Further numbers of frames, such as 16, 32, 64, 128: asked of the first two of `prompts`, of the base model and
    the last checkpoint."""
    style_features: What[str] = Field("by-hand", min_length=1)
    """What sees how alike two sets of films look: by-hand, efficientnet-lite0 (its extra must be installed), or the
    folder or hub id of an image model."""
    audit_guidance: What[list[Annotated[float, Field(ge=0)]]] = [0.0, 1.0, 4.0, 7.0]
    """The first four of `prompts` are sampled at these scales too, of the base model and the last checkpoint, and what
    is predicted without a caption is held against what is predicted with one. [] asks for none of it."""
    code: What[str] = Field("", pattern=r"^$|^[0-9a-f]{7,64}$")
    """The commit whose answer is asked for; empty: any code's of this stage's version. It is a part of the cache key
    and nothing more: `bricks ci render` sets it, so that what another commit sampled is not found for this one."""

    def check_family(self, family: str) -> None:
        """Raise ValueError: what is asked for is not how this family is sampled."""
        if self.sampler not in SAMPLERS[family]:
            raise ValueError(
                f"evaluate.sampler is {self.sampler}, and {family} is sampled by {' or '.join(SAMPLERS[family])}: "
                "write one of these."
            )
        if self.guided_channels == 3 and family != "stdit2":
            raise ValueError(f"evaluate.guided_channels is for stdit2; {family} guides all channels: leave it out.")


def check_encoders(name: str, theirs: tuple[str, str], ours: tuple[str, str]) -> None:
    """Raise SpecError: a checkpoint to compare with goes with another codec or text encoder than this run.

    theirs, ours  of both: kind, weights and type, as rows of latents tell it; of theirs maybe the kind alone
    """
    for what, one, other in zip(("latents", "caption features"), theirs, ours, strict=True):
        if one != (other if ":" in one else other.partition(":")[0]):
            raise SpecError(
                f"evaluate.compare names {name}, which was trained on {what} of {one}, and this run's are of {other}: "
                "name a checkpoint that was trained on the same kind."
            )


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
    prompt_set: PromptSet = "style"
    """`prompt_index` counts over the run's own, then the held-out, then the plain ones."""
    seed_index: int = 0
    """Which of the prompt's noises, from 0: the same for every checkpoint."""
    of: str = ""
    """The checkpoint, as evaluate.compare names it; empty: one of this run's."""
    num_frames: int = 0
    """Of those in evaluate.lengths; 0: as long as evaluate.num_frames says."""
    held_out_clip: str = ""
    """The clip whose caption it is."""
