"""What the audit of guidance found: what is predicted without a caption, and samples at several scales of guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bricks_core.report.intervals import Interval


@dataclass(frozen=True)
class GuidanceBin:
    """Predictions without a caption against those with one, in a stretch of timesteps; means over held-out clips."""

    first_timestep: int
    end_timestep: int
    norm_ratio: Interval
    """|without| / |with|. 1 is usual."""
    cosine: Interval
    """Between the two. 1: they say the same."""
    shared: Interval | None
    """The cosine between the directions of guidance of two captions, the clip's own and another one's. 0 and below:
    each leads its own way; towards 1: all lead the same way, off what is said without a caption. None: there is no
    other caption."""
    loss_caption: float
    """Of the noise that is predicted with the clip's caption, as training measures it (mse)."""
    loss_other: float
    """With a caption of another clip."""
    loss_null: float
    """Without a caption."""


@dataclass(frozen=True)
class GuidanceOf:
    """The predictions of one checkpoint."""

    step: int
    weights: Literal["raw", "ema"]
    bins: list[GuidanceBin]
    worth: Interval
    """How much higher the loss is without a caption than with the clip's own, as a share of the latter."""
    excess: Interval
    """How much higher the loss is without a caption than the mean of a right and a wrong one, as a share of the right
    one's: the number that decides. 0 and below is sound."""


@dataclass(frozen=True)
class GuidanceRow:
    """A sample at some scale of guidance."""

    prompt_index: int
    prompt: str
    step: int
    weights: Literal["raw", "ema"]
    guidance: float
    roughness: float
    """Of its latents: 1 is white noise, 0 is flat."""
    video_key: str
    """Relative to the artifact, as the strip's."""
    strip_key: str


@dataclass(frozen=True)
class GuidanceScale:
    """The samples of one checkpoint at one scale of guidance."""

    step: int
    guidance: float
    roughness: Interval


@dataclass(frozen=True)
class GuidanceAudit:
    """All of the audit. What could not be had is empty, and `reason` says why."""

    checkpoints: list[GuidanceOf] = field(default_factory=list)
    """The base model and the last step."""
    num_clips: int = 0
    """Held-out clips that predictions were made for."""
    num_films: int = 0
    rows: list[GuidanceRow] = field(default_factory=list)
    scales: list[GuidanceScale] = field(default_factory=list)
    roughness_real: Interval | None = None
    """Of the held-out clips' latents."""
    finding: str = ""
    """A sentence, when the null branch of the last step is weak; empty: it is sound, or nobody knows."""
    reason: str = ""
