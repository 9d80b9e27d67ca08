"""Caption: kept clips and images get a caption each, and each caption a status."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bricks_core.spec.strict import How, Row, Strict, What


class CaptionSpec(Strict):
    """Who writes captions, from what, by which rules. Server and key come from OPENAI_BASE_URL and OPENAI_API_KEY."""

    provider: What[Literal["measured", "openai", "given"]] = "measured"
    """measured: plain sentences from what can be measured, no network. openai: any OpenAI-compatible server. given: the
    captions of the tables in ingest.sources, unchanged; the rules below are reported, not applied."""
    model: What[str] = ""
    """The vision model's name, for openai."""
    frame_shares: What[list[float]] = Field([0.2, 0.5, 0.8], min_length=1, max_length=16)
    """Which frames are shown, as shares of the clip; the prompt says the same numbers."""
    max_side_px: What[int] = Field(768, ge=64)
    """Frames are made no larger than this before they are sent."""
    max_sentences: What[int] = Field(5, ge=1)
    """A longer caption is rejected."""
    forbidden_words: What[list[str]] = ["video", "image", "frame", "lego", "stop motion", "stop-motion", "blocky"]
    """A caption with one of these is rejected, as is one with its plural."""
    style_words: What[list[str]] = ["lego", "stop motion", "blocky"]
    """The prompt forbids naming these, so that the model makes them its normal."""
    max_retries: How[int] = Field(5, ge=0)
    """Of a call that fails for a passing reason, with growing pauses (the client's own)."""
    concurrency: How[int] = Field(8, ge=1, le=256)
    """Calls in flight."""
    max_output_tokens: What[int] = Field(300, ge=16)
    max_calls: How[int | None] = Field(None, ge=2)
    """Stop with exit code 75 after this many calls in one go: a cap on the bill. The next run continues.

    A clip takes two: one for itself and one for its image."""

    @model_validator(mode="after")
    def _named_model(self) -> Self:
        if self.provider == "openai" and not self.model:
            raise ValueError("provider openai needs a model: set caption.model to the name your server knows.")
        if any(not 0 <= share <= 1 for share in self.frame_shares) or sorted(self.frame_shares) != self.frame_shares:
            raise ValueError("frame_shares are shares of the clip, from 0 to 1, in order.")
        return self


CaptionStatus = Literal[
    "ok", "not_enough_information", "single_image", "no_movement", "rejected", "failed", "not_given"
]


class Caption(Row):
    """The caption of the clip or image of the same id. Only status ok goes on."""

    clip_id: str
    """As in the image's row; of a clip, its own id."""
    kind: Literal["video", "image"]
    status: CaptionStatus
    text: str = ""
    reason: str = ""
    """Why the status is not ok; of a given caption, which is ok in any case, the rule that it breaks."""
    num_words: int = 0
    by: str
    """Who wrote it: measured, the model's name as the server gave it, or what the table says (given if nothing)."""
    prompt_tokens: int = 0
    output_tokens: int = 0
