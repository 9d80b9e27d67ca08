"""Score: clips get numbers; the run's filter keeps or drops by them; the held-out split is drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bricks_core.spec.strict import Row, Strict, What


class Filter(Strict):
    """What is kept. Every clip keeps its scores; a dropped one carries each reason."""

    min_motion: What[float] = Field(8.0, ge=0)
    """Below it a clip is too still. A mouth and an arm that move give 10, what only flickers and shakes 5 to 7."""
    min_motion_percentile: What[float] = Field(0.0, ge=0, le=100)
    """Also drop the stillest clips of this data set, up to this percentile."""
    min_sharpness_percentile: What[float] = Field(0.0, ge=0, le=100)
    """Drop the most blurred clips of this data set, up to this percentile."""
    min_brightness: What[float] = Field(8.0, ge=0, le=255)
    """Mean luma; below it a clip is called black."""
    max_brightness: What[float] = Field(247.0, ge=0, le=255)
    """Above it a clip is called white."""
    max_plain_share: What[float] = Field(0.8, ge=0, le=1)
    """Share of pixels near the median luma: title cards and empty pictures are above it."""
    max_duplicate_frame_share: What[float] = Field(0.9, ge=0, le=1)
    """Share of frames that repeat the one before: held pictures of stop motion are fine, a still is not."""
    max_near_duplicate_distance: What[float | None] = Field(10.0, ge=0, le=64)
    """Bits between the perceptual hashes of two clips: at or below it, only the longer or sharper one is kept.

    null keeps all."""


class ScoreSpec(Strict):
    """How clips are judged."""

    filter: What[Filter] = Filter()
    held_out_share: What[float] = Field(0.1, ge=0, lt=1)
    """Share of source videos kept from training, to measure the loss on: whole videos, so no scene is on both sides.

    At least one of each side as soon as two videos have clips that are kept. A side given in a table stays."""
    split_seed: What[int] = 0


class Score(Row):
    """The scores of the clip (or of the image that stands for itself) of the same id, and what the filter made of them.

    An image has no motion, and is not asked for any.
    """

    kind: Literal["video", "image"] = "video"
    video_id: str
    num_frames: int
    motion: float
    """90th percentile over neighbouring frames of the largest mean change of a 16x16 block at about 320x180, of 255;
    exposure and a shaking camera are taken out before."""
    motion_x: float
    """Mean displacement of what moves by itself, in frame widths per second; positive is to the right."""
    motion_y: float
    """In frame heights per second; positive is down."""
    camera_x: float
    """The camera's way over what it sees, in frame widths per second; positive is to the right."""
    camera_y: float
    """In frame heights per second; positive is down."""
    sharpness: float
    """Variance of the Laplacian of luma at 320 pixels of width."""
    brightness: float
    """Mean luma, 0 to 255, of the middle one of all frames' means."""
    contrast: float
    """Standard deviation of luma."""
    plain_share: float
    """Share of pixels within 6 levels of the median luma."""
    duplicate_frame_share: float
    """Share of frames that show what the one before showed."""
    picture_fps: float
    """Rate of new pictures: stop motion held for two frames has half its file's fps."""
    perceptual_hash: list[str]
    """64 bits in hexadecimal, for the frames at 20, 50 and 80 %."""
    duplicate_of: str = ""
    """The clip that this one repeats."""
    state: Literal["kept", "dropped"]
    reasons: list[str]
    """Why it is dropped: every reason that holds, in plain words."""
    split: Literal["train", "held_out"]
