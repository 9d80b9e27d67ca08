"""Ingest: your films become `Video` rows; so do the clips and images that a table names, with what it says of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bricks_core.spec.strict import HOLDS_SECRET, How, Row, Strict, What


class Source(Strict):
    """Where films come from, and what you may do with them."""

    path: What[str]
    """A file, a folder (searched through) or s3://bucket/prefix; a relative path starts where bricks is run. Or a table
    (.csv or .parquet, docs/dataset.md) of clips and images that are used as they are."""
    licence: What[str] = "unknown"
    """The films' licence, in SPDX's words where it has one (CC-BY-4.0). Never guessed: unknown unless you say so, here
    or in a table."""
    credit: What[str] = ""
    """Whom to name, as the licence asks."""
    consent: What[str] = "unknown"
    """What those who made the films, or are seen in them, have agreed to, in your words. Never guessed: unknown unless
    you say so, here or in a table."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("path")
    @classmethod
    def _holds_no_key(cls, path: str) -> str:
        # A run file is copied into manifests, ConfigMaps and logs.
        _, separator, rest = path.partition("://")
        if separator and "@" in rest.partition("/")[0]:
            raise PydanticCustomError(
                HOLDS_SECRET,
                "an address must not hold keys (there is an @ before its path): give them in the environment, such as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            )
        return path


class IngestSpec(Strict):
    """Which films, and how patiently each is read."""

    sources: What[list[Source]] = Field(min_length=1)
    """Each one a path, or a mapping of path, licence, credit and consent."""
    min_side_px: What[int] = Field(64, ge=16)
    """A video or image whose shorter side is below this is left out, with a reason."""
    decode_timeout_s: How[float] = Field(120, gt=0)
    """A video whose decoder gives no frame for so long is left out, with a reason, and tried again when this is another
    one. Long films may take long."""
    decode_memory_bytes: How[int] = Field(4 << 30, ge=256 << 20)
    """A decoder that wants more is stopped, and its video left out, with a reason, and tried again when this is another
    one."""


VideoState = Literal["ok", "damaged", "unreadable", "unusable", "refused", "beside"]


class Video(Row):
    """One file as found. ok and damaged ones go on to the clip stage; damaged ones as far as they can be read.

    refused: it was taken down (bricks takedown), and no run uses it.
    beside: no film by its name, such as the facts and subtitles that downloaders leave beside films.
    """

    kind: Literal["film", "clip", "image"] = "film"
    """A film is cut into clips. What a table names is a clip or an image already: it is used whole, as it is."""
    name: str
    """Path within its source; of a file that a table names, relative to the table, or else absolute."""
    source: str
    """The source's path as the run file gives it."""
    row: int = 0
    """Its row in the table, from 1; 0 for what no table names."""
    licence: str
    credit: str
    consent: str = "unknown"
    sha256: str
    size_bytes: int
    state: VideoState
    reason: str = ""
    """Why it is not ok: one sentence."""
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    stream_index: int = -1
    """The video stream used: the one with most pixels."""
    width_px: int = 0
    """Upright, that is, after rotation."""
    height_px: int = 0
    rotation_deg: int = 0
    num_frames: int = 0
    """Frames a decoder really delivers, the corrupt ones included."""
    num_corrupt_frames: int = 0
    fps: float = 0.0
    """Mean rate, from timestamps."""
    variable_frame_rate: bool = False
    duration_s: float = 0.0
    colour_primaries: str = ""
    colour_transfer: str = ""
    colour_range: str = ""
    hdr: bool = False


class Given(Row):
    """What a table says of the clip or image of the same id. Empty, or -1, where it says nothing."""

    kind: Literal["clip", "image"]
    text: str
    """Its caption."""
    caption_by: str
    """Who wrote the caption."""
    split: Literal["", "train", "held_out"]
    clip_id: str
    """Of an image: the clip that it is a frame of."""
    video_id: str
    """What it was cut from: clips with the same are kept on one side of the split."""
    video_name: str
    first_frame: int
    """Counted in what it was cut from."""
    end_frame: int
    num_frames: int
    """As the table has it; the video's row has what a decoder delivers."""
