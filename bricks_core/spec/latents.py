"""Latents: clips and captions are encoded once, into packs that training reads by memory map."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bricks_core.spec.strict import How, HowRounded, Row, Strict, What

_FLOAT_BYTES = 2


class CodecSpec(Strict):
    """What turns pixels (3, num_frames, height_px, width_px) into latents.

    patch-dct and sd-vae   (num_frames, 4, height_px / 8, width_px / 8)
    wan-vae                (1 + (num_frames - 1) / 4, 16, height_px / 8, width_px / 8)
    """

    kind: What[Literal["patch-dct", "sd-vae", "wan-vae"]] = "patch-dct"
    """patch-dct is built in and needs no weights; sd-vae is diffusers' AutoencoderKL; wan-vae is its
    AutoencoderKLWan, which shrinks time too: clips are then read from their first frame on, 4k + 1 frames of them."""
    model: What[str] = ""
    """For sd-vae and wan-vae: a hub id or a folder; for wan-vae also one of a whole pipeline, which has it in vae/."""
    revision: What[str] = ""
    """For a hub id: the commit, so that the same name stays the same weights."""
    dtype: What[Literal["float32", "bfloat16", "float16"]] = "float32"
    chunk_frames: HowRounded[int] = Field(16, ge=1)
    """Frames encoded at once; wan-vae takes the whole clip, four frames after the other."""

    @property
    def time_stride(self) -> int:
        """Frames to one latent, all but the first frame, which has a latent of its own."""
        return 4 if self.kind == "wan-vae" else 1

    @model_validator(mode="after")
    def _named_model(self) -> Self:
        usual = {"sd-vae": "stabilityai/sd-vae-ft-ema", "wan-vae": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}
        if self.kind in usual and not self.model:
            raise ValueError(f"codec {self.kind} needs a model: a hub id such as {usual[self.kind]}, or a folder.")
        return self


class TextSpec(Strict):
    """What turns a caption into features (num_tokens, width)."""

    kind: What[Literal["hashed-words", "t5", "umt5"]] = "hashed-words"
    """hashed-words is built in and needs no weights; t5 is transformers' T5 encoder; umt5 its multilingual sister."""
    model: What[str] = ""
    """For t5 and umt5: a hub id or a folder; for umt5 also one of a whole pipeline, with text_encoder/ and
    tokenizer/."""
    revision: What[str] = ""
    dtype: What[Literal["float32", "bfloat16", "float16"]] = "float32"
    max_tokens: What[int] = Field(200, ge=1)

    @model_validator(mode="after")
    def _named_model(self) -> Self:
        usual = {"t5": "DeepFloyd/t5-v1_1-xxl", "umt5": "google/umt5-xxl"}
        if self.kind in usual and not self.model:
            raise ValueError(f"text {self.kind} needs a model: a hub id such as {usual[self.kind]}, or a folder.")
        return self


class Encoders(Strict):
    """What a network goes with: what made the latents and caption features that it was trained on."""

    codec: CodecSpec
    text: TextSpec
    codec_id: str = ""
    """Kind, weights and scale, as rows of latents tell it. Empty: not known."""
    text_id: str = ""


class LatentsSpec(Strict):
    """What is encoded, by what, at which size."""

    resolutions: What[list[str]] = Field(["360p"], min_length=1)
    """Classes such as 144p, 240p, 360p (each clip at the nearest aspect ratio of the class), or one size: 96x160 is
    height x width in pixels. A clip is encoded for every resolution that it is large enough for."""
    min_scale: What[float] = Field(0.8, gt=0, le=1)
    """A clip is large enough for a resolution when it has this share of its pixels."""
    codec: What[CodecSpec] = CodecSpec()
    text: What[TextSpec] = TextSpec()
    images: What[bool] = True
    """Also encode the middle frames."""
    pack_bytes: How[int] = Field(512 << 20, ge=1 << 16)
    """A pack is closed when it is this large: also the work a kill can lose."""


def num_latents(num_frames: int, time_stride: int) -> int:
    """Latents in time: one for the first frame, then one for every `time_stride`."""
    return 1 + (num_frames - 1) // time_stride


class LatentAnswer(Strict):
    """Where a clip's latents lie in their pack, and what they are: the answer of an item of kind latent."""

    offset_bytes: int
    num_frames: int
    time_stride: int
    channels: int
    height: int
    width: int
    codec: str
    """What encoded it: kind, weights and scale."""

    @property
    def num_bytes(self) -> int:
        """How long its latents are."""
        return num_latents(self.num_frames, self.time_stride) * self.channels * self.height * self.width * _FLOAT_BYTES


class TextAnswer(Strict):
    """Where a text's features lie in their pack, and what they are: the answer of an item of kind text."""

    offset_bytes: int
    num_tokens: int
    width: int
    encoder: str
    """What encoded it: kind, weights and type."""

    @property
    def num_bytes(self) -> int:
        """How long its features are."""
        return self.num_tokens * self.width * _FLOAT_BYTES


class Latent(Row):
    """Where a clip's latents and its caption's features lie in packs."""

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
    """Of the clip that the latents tell of, from its first on."""
    time_stride: int
    """Frames to one latent, as the codec has it. Above 1 a latent means something after those before it only, so
    that what is read of a clip begins at its first."""
    latent_channels: int
    latent_height: int
    latent_width: int
    fps: float
    item: str
    """Key of the item of kind latent."""
    text_item: str
    """Key of the item of kind text."""
    pack: str
    """Key of the pack of its latents, from the store's root."""
    latents_offset_bytes: int
    """float16 (num_latents, latent_channels, latent_height, latent_width), one after the other."""
    text_pack: str
    """Key of the pack of its caption's features."""
    text_offset_bytes: int
    """float16 (num_tokens, text_width)."""
    num_tokens: int
    empty_text_pack: str
    empty_text_offset_bytes: int
    """The features of the empty caption, which some networks learn of a dropped caption from."""
    num_empty_tokens: int
    text_width: int
    caption: str
    caption_by: str
    codec: str
    """What encoded the pixels: kind, weights and scale. Training refuses a mixture."""
    text_encoder: str

    @property
    def num_latents(self) -> int:
        """Latents in time: one for the first frame, then one for every `time_stride`."""
        return num_latents(self.num_frames, self.time_stride)
