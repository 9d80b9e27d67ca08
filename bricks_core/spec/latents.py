"""Latents: clips and captions are encoded once, into packs that training reads by memory map."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bricks_core.spec.strict import Row, Strict


class CodecSpec(Strict):
    """What turns pixels (3, num_frames, height_px, width_px) into latents (num_frames, 4, height_px/8, width_px/8)."""

    kind: Literal["patch-dct", "sd-vae"] = "patch-dct"
    """patch-dct is built in and needs no weights; sd-vae is diffusers' AutoencoderKL."""
    model: str = ""
    """For sd-vae: a hub id or a folder."""
    revision: str = ""
    """For a hub id: the commit, so that the same name stays the same weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chunk_frames: int = Field(16, ge=1)
    """Frames encoded at once."""

    @model_validator(mode="after")
    def _named_model(self) -> Self:
        if self.kind == "sd-vae" and not self.model:
            raise ValueError("codec sd-vae needs a model: a hub id such as stabilityai/sd-vae-ft-ema, or a folder.")
        return self


class TextSpec(Strict):
    """What turns a caption into features (num_tokens, width)."""

    kind: Literal["hashed-words", "t5"] = "hashed-words"
    """hashed-words is built in and needs no weights; t5 is transformers' T5 encoder."""
    model: str = ""
    """For t5: a hub id or a folder."""
    revision: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _named_model(self) -> Self:
        if self.kind == "t5" and not self.model:
            raise ValueError("text t5 needs a model: a hub id such as DeepFloyd/t5-v1_1-xxl, or a folder.")
        return self


class LatentsSpec(Strict):
    """What is encoded, by what, at which size."""

    resolutions: list[str] = Field(["360p"], min_length=1)
    """Classes such as 144p, 240p, 360p (each clip at the nearest aspect ratio of the class), or one size: 96x160 is
    height x width in pixels. A clip is encoded for every resolution that it is large enough for."""
    min_scale: float = Field(0.8, gt=0, le=1)
    """A clip is large enough for a resolution when it has this share of its pixels."""
    codec: CodecSpec = CodecSpec()
    text: TextSpec = TextSpec()
    images: bool = True
    """Also encode the middle frames."""
    pack_bytes: int = Field(512 << 20, ge=1 << 16)
    """A pack is closed when it is this large: also the work a kill can lose."""


class Latent(Row):
    """Where a clip's latents and its caption's features lie in a pack."""

    clip_id: str
    video_id: str
    kind: Literal["video", "image"]
    split: Literal["train", "held_out"]
    resolution: str
    """As the run file names it."""
    aspect: str
    """The ratio's key within its class (height / width), or the size itself."""
    height_px: int
    width_px: int
    num_frames: int
    latent_height: int
    latent_width: int
    fps: float
    pack: str
    """Key of the pack, relative to the artifact."""
    latents_offset_bytes: int
    """float16 (num_frames, 4, latent_height, latent_width), frame after frame."""
    text_offset_bytes: int
    """float16 (num_tokens, text_width)."""
    num_tokens: int
    text_width: int
    caption: str
    caption_by: str
    codec: str
    """What encoded the pixels: kind, weights and scale. Training refuses a mixture."""
    text_encoder: str
