"""What a run's evaluation must reach. Judged whenever its report is read, and part of no stage's cache key."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from bricks_core.errors import nearest
from bricks_core.spec.strict import How, Strict

LOSSES = ("held_out.loss.raw", "held_out.loss.ema", "held_out.loss.best")
"""Held-out loss after the last step: of the weights, of their EMA, or of whichever ends lower. Its base is the base
model's, before the first step. With a bucket's name behind it (held_out.loss.ema.16f-360p), of that one alone."""
COUNTS = (
    "dataset.num_clips",
    "dataset.num_images",
    "dataset.num_kept",
    "dataset.num_held_out_clips",
    "dataset.clip_seconds",
    "dataset.mean_caption_words",
)
"""As report.json calls them. They have no base."""
KEPT_FACTS = ("adherence", "ability")
"""Shares of the facts that samples keep, of the run's own prompts and of plain ones. Their base is the base model's."""
OF_SAMPLES = ("style.position", "copies.share")
"""Where samples stand on the way from the base model's to held-out clips, and which share repeats training clips."""
METRICS = LOSSES + KEPT_FACTS + OF_SAMPLES + COUNTS

Number = Annotated[float, Field(allow_inf_nan=False)]


class Gate(Strict):
    """A number of the report, and what it must be."""

    metric: How[str]
    """held_out.loss.raw, .ema or .best, with or without a training bucket's name behind it; adherence, ability,
    style.position or copies.share of the samples; or a number of the dataset, such as dataset.num_kept."""
    at_most: How[Number | None] = None
    at_least: How[Number | None] = None
    at_most_of_base: How[Number | None] = Field(None, ge=0)
    """At most this share of the base model's: 0.98 asks for a loss that fell by 2 %."""
    at_least_of_base: How[Number | None] = Field(None, ge=0)

    @property
    def bucket(self) -> str:
        """The training bucket that is meant; empty: all together."""
        return next((self.metric.removeprefix(f"{loss}.") for loss in LOSSES if self.metric.startswith(f"{loss}.")), "")

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if not self.bucket and self.metric not in METRICS:
            known = ", ".join(METRICS)
            raise ValueError(f'there is no metric "{self.metric}"{nearest(self.metric, METRICS)}: {known}.')
        if all(bound is None for bound in (self.at_most, self.at_least, self.at_most_of_base, self.at_least_of_base)):
            raise ValueError(
                f"the gate on {self.metric} asks for nothing: write at_most, at_least, at_most_of_base or "
                "at_least_of_base."
            )
        if self.metric in COUNTS + OF_SAMPLES and (
            self.at_most_of_base is not None or self.at_least_of_base is not None
        ):
            raise ValueError(f"{self.metric} has no base to be compared with: write at_most or at_least.")
        return self
