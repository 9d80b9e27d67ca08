"""Clip: videos become single-shot clips, and one picture of each."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bricks_core.spec.strict import Row, Strict, What


class ClipSpec(Strict):
    """Where shots end, how long a clip may be, and how it is written."""

    adaptive_threshold: What[float] = Field(3.0, gt=0)
    """PySceneDetect's AdaptiveDetector, which finds jumps on the same set: how far a change stands above its
    neighbours' to be a cut. Lower: more cuts."""
    cut_threshold: What[float] = Field(12.0, gt=0)
    """Change of a picture that its motion does not explain (mean of a pixel, of 255) to be a cut. Lower: more cuts."""
    min_frames: What[int] = Field(15, ge=2)
    """A shorter shot is dropped, with a reason. Clips given in a table are taken at any length."""
    max_frames: What[int] = Field(200, ge=2)
    """A longer shot is split into even pieces."""
    crf: What[int] = Field(18, ge=0, le=51)
    """x264's quality: lower is better and larger."""
    preset: What[Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]] = "veryfast"
    """x264's effort."""

    @model_validator(mode="after")
    def _splittable(self) -> Self:
        if self.max_frames < 2 * self.min_frames - 1:
            raise ValueError(
                f"max_frames {self.max_frames} is too near min_frames {self.min_frames}: a shot one frame longer than "
                f"the longest clip has no even split. Set max_frames to {2 * self.min_frames - 1} or more."
            )
        return self


class Shot(Row):
    """A stretch of a video between two cuts, or an even piece of a long one; kept ones are clips of the same id."""

    video_id: str
    first_frame: int
    end_frame: int
    """One past the last; frames count in the order a decoder delivers them."""
    state: Literal["clip", "dropped"]
    reason: str = ""


class Clip(Row):
    """A kept shot, cut into a file of its own: H.264, upright, the source's size, no sound. Or a clip that was given in
    a table: then the file as it was, and it is the video's only shot."""

    video_id: str
    first_frame: int
    end_frame: int
    num_frames: int
    width_px: int
    height_px: int
    fps: float
    key: str
    """The file, from the store's root."""
    size_bytes: int
    sha256: str
    source_sha256: str
    """Of the file it was cut from: with the frames, it says which pictures these are, whoever encoded them."""
    item: str
    """`kind/key` of the item whose file it is: what later items are made of."""


class Image(Row):
    """The middle frame of a clip, so that the model learns how things look; or an image that was given in a table."""

    clip_id: str
    """The clip it belongs to: if the filter drops that, it drops the image. Its own id when it stands for itself."""
    video_id: str
    frame: int
    """Counted in the video; 0 for a given image."""
    width_px: int
    height_px: int
    key: str
    size_bytes: int
    sha256: str
    source_sha256: str
    item: str
    """As in the clip's row; an image that was cut has its clip's."""
