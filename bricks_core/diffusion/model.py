"""A model that is not loaded yet: where its weights are, what reads its prompts and what makes pixels of its latents.

Of a folder (ours, upstream's, or one that diffusers saved) or a hub id everything is said here; what a run has trained
is described by whoever knows runs. Facts come first and cheap; networks are loaded when they are needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Family, Published
from bricks_core.errors import SpecError, UsageError
from bricks_core.models.beside import Told, told_by
from bricks_core.models.pretrained import explained
from bricks_core.models.tensor_files import open_tensors
from bricks_core.models.weights import find_weights, read_config
from bricks_core.spec.latents import CodecSpec, Encoders, TextSpec
from bricks_core.spec.train import DEFAULT_WEIGHTS, Weights
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.os_errors import told

BUILT_IN_CODEC, BUILT_IN_TEXT_ENCODER = "patch-dct", "hashed-words"
PIPELINE = "model_index.json"
_PARTS = ("vae", "text_encoder")
_KINDS: dict[str, Weights] = {"weights.safetensors": "raw", "ema.safetensors": "ema"}
"""The files of our checkpoint folders."""


@dataclass(frozen=True)
class Bucket:
    """A bucket that the model was trained on."""

    num_frames: int
    height_px: int
    width_px: int
    fps: float
    """Effective: as the model was told. 0 for images."""

    def __str__(self) -> str:
        what = "images" if self.num_frames == 1 else f"{self.num_frames} frames at {self.fps:g} fps"
        return f"{what} of {self.height_px}x{self.width_px}"


@dataclass(frozen=True)
class Model:
    """A model, not yet loaded."""

    name: str
    """As a person is told."""
    identity: dict[str, Any]
    """As a film's settings tell it: the weights' digest, and where they come from."""
    config: dict[str, Any]
    """Its config.json."""
    family: Family
    codec: CodecSpec
    text: TextSpec
    trained: tuple[Bucket, ...]
    """Empty when it is not known."""
    load: Callable[[torch.dtype, torch.device], Any]
    """The network, in evaluation mode, its weights in memory once."""
    codec_id: str = ""
    text_id: str = ""
    """What made the latents and features it was trained on; empty when that is not known."""
    shift: float | None = None
    """Of a flow's noise levels; None: the family's."""
    training: str = ""
    """That its training is not finished, in words."""
    remarks: tuple[str, ...] = ()
    """What a person should know of how it was understood."""

    @property
    def usual(self) -> Bucket:
        """What to make where nothing is known of the training."""
        makers = self.family.published
        return Bucket(makers.num_frames, makers.height_px, makers.width_px, makers.fps)

    @property
    def text_width(self) -> int | None:
        """Of the caption features it was trained with, as far as its config says."""
        return self.config.get("caption_channels") or self.config.get("text_dim")


@dataclass(frozen=True)
class Choice:
    """Which of a model's weights, and what it is used with; None where nothing was said."""

    step: int | None = None
    weights: Weights | None = None
    vae: str | None = None
    text_encoder: str | None = None
    revision: str = ""


def from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    # Weights and what describes them; never code, nor pickles.
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    with explained("The model", name):
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))


def in_folder(place: Path, choice: Choice, name: str) -> Model:
    if choice.step is not None:
        raise UsageError(f"{name} is one checkpoint and has no steps to choose from: leave --step out.")
    if not place.exists():
        raise UsageError(f"There is no model {name}: nothing is there.")
    pipeline = place if (place / PIPELINE).is_file() else None
    file = _weights_in(place / "transformer" if pipeline else place, choice.weights, name)
    config_file = file.with_name("config.json")
    if not config_file.is_file():
        raise SpecError(
            f"{name} has no config.json beside {file.name}, so the network's shape is not known: put the published "
            "one there, or bring the checkpoint in with bricks checkpoint import."
        )
    config = read_config(config_file)
    family = family_of(config)
    told = told_by(place if place.is_dir() else place.parent)
    encoders, remarks = _encoders(pipeline, choice, family.published, told, name)
    text = encoders.text
    if (max_tokens := config.get("model_max_length")) and not encoders.text_id:
        text = text.model_copy(update={"max_tokens": min(max_tokens, text.max_tokens)})
    weights = _KINDS.get(file.name, told.weights)
    return Model(
        f"{name} ({file.name}{f', {weights} weights' if weights else ''})",
        {"digest": _digest(file), "from": Path(name).name} | ({"weights": weights} if weights else {}),
        config,
        family,
        encoders.codec,
        text,
        (),
        lambda dtype, device: family.load(file, config_file, dtype=dtype, device=device),
        encoders.codec_id,
        encoders.text_id,
        training=told.training,
        remarks=remarks,
    )


def _encoders(
    pipeline: Path | None, choice: Choice, usual: Published, told: Told, name: str
) -> tuple[Encoders, tuple[str, ...]]:
    """What makes pixels of latents and reads prompts: what was named, or else a pipeline's own, or else what the folder
    says that it goes with, or else what was published; and which was only guessed."""
    said = told.encoders or Encoders(codec=usual.codec, text=usual.text)
    codec, text, codec_id, text_id = said.codec, said.text, said.codec_id, said.text_id
    own_codec, own_text = (pipeline / part if pipeline and (pipeline / part).is_dir() else None for part in _PARTS)
    if codec.kind == BUILT_IN_CODEC:
        own_codec = None
    if text.kind == BUILT_IN_TEXT_ENCODER:
        own_text = None
    if choice.vae is not None:
        codec, codec_id = _named_codec(choice.vae, codec, usual), ""
    elif own_codec:
        place = own_codec if codec.kind == "sd-vae" else own_codec.parent
        codec, codec_id = codec.model_copy(update={"model": str(place), "revision": ""}), ""
    if choice.text_encoder is not None:
        text, text_id = _named_text(choice.text_encoder, text, usual), ""
    elif own_text:
        text, text_id = text.model_copy(update={"model": str(own_text.parent), "revision": ""}), ""
    guessed = []
    if told.encoders is None and choice.vae is None and not own_codec:
        guessed.append(f"the codec {codec.kind} ({codec.model}; --vae names another)")
    if told.encoders is None and choice.text_encoder is None and not own_text:
        guessed.append(f"the text encoder {text.kind} ({text.model}; --text-encoder names another)")
    remarks = (f"{name} does not say what it goes with. Taken: {' and '.join(guessed)}.",) if guessed else ()
    return Encoders(codec=codec, text=text, codec_id=codec_id, text_id=text_id), remarks


def _named_codec(name: str, said: CodecSpec, usual: Published) -> CodecSpec:
    if name == BUILT_IN_CODEC:
        return CodecSpec()
    base = usual.codec if said.kind == BUILT_IN_CODEC else said
    return base.model_copy(update={"model": name, "revision": ""})


def _named_text(name: str, said: TextSpec, usual: Published) -> TextSpec:
    if name == BUILT_IN_TEXT_ENCODER:
        return TextSpec()
    base = usual.text if said.kind == BUILT_IN_TEXT_ENCODER else said
    return base.model_copy(update={"model": name, "revision": ""})


def _weights_in(place: Path, weights: Weights | None, name: str) -> Path:
    """The weights' file of a folder, or their index: the kind asked for, or else the EMA where there is one."""
    if place.is_file():
        return place
    if weights is None:
        usual = place / next(name for name, kind in _KINDS.items() if kind == DEFAULT_WEIGHTS)
        return usual if usual.is_file() else find_weights(place)
    file = place / next(name for name, kind in _KINDS.items() if kind == weights)
    if not file.is_file():
        raise UsageError(f"{name} has no {file.name}: leave --weights out to take the weights it has.")
    return file


def _digest(weights: Path) -> str:
    """Sixteen hexadecimal digits of a file, or of all that an index names: the same as a run's, for the same file."""
    with told(weights, "read"):
        sha256s = [sha256_of_file(file) for file in sorted(open_tensors(weights).files)]
    return (sha256s[0] if len(sha256s) == 1 else hashlib.sha256(json.dumps(sha256s).encode()).hexdigest())[:16]
