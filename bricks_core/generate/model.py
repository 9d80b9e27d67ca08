"""The model that is asked for: where its weights are, what reads its prompts, and what it was trained on.

A model is a run's training in the store, a folder (ours, upstream's, or one that diffusers saved), or a hub id. Facts
come first and cheap; networks are loaded one after the other, when each is needed.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Family, Published
from bricks_core.errors import DataError, SpecError, UsageError, nearest
from bricks_core.models.pretrained import explained
from bricks_core.models.tensor_files import open_tensors
from bricks_core.models.weights import find_weights, read_config
from bricks_core.pipeline.points import read_pointer, run_names
from bricks_core.pipeline.screen import find_artifact
from bricks_core.spec.latents import CodecSpec, LatentsSpec, TextSpec
from bricks_core.spec.train import CheckpointRow, TrainSpec, WanSpec
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns

Weights = Literal["raw", "ema"]

BUILT_IN_CODEC, BUILT_IN_TEXT_ENCODER = "patch-dct", "hashed-words"
_PIPELINE = "model_index.json"
_EMA = "ema.safetensors"
_KINDS: dict[str, Weights] = {"weights.safetensors": "raw", _EMA: "ema"}
"""The files of our checkpoint folders."""


@dataclass(frozen=True)
class Trained:
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
    trained: tuple[Trained, ...]
    """Empty when it is not known."""
    load: Callable[[torch.dtype, torch.device], Any]
    """The network, in evaluation mode, its weights in memory once."""
    codec_id: str = ""
    text_id: str = ""
    """What made the latents and features it was trained on; empty when that is not known."""
    shift: float | None = None
    """Of a flow's noise levels; None: the family's."""

    @property
    def usual(self) -> Trained:
        """What to make where nothing is known of the training."""
        makers = self.family.published
        return Trained(makers.num_frames, makers.height_px, makers.width_px, makers.fps)

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


def find_model(name: str, choice: Choice, open_store: Callable[[], Store]) -> Model:
    """The model of that name: a folder or file here, a run or artifact in the store, or a hub id, in that order.

    Raises:
        UsageError: there is none, or a flag does not go with it.
        DataError, SpecError, ServiceUnavailable: it is there, but broken, not finished, or the hub is away.
    """
    place = Path(name).expanduser()
    described = any((place / file).is_file() for file in (_PIPELINE, "config.json"))
    if place.is_file() or described or name.startswith((".", "/", "~")):
        return _in_folder(place, choice, name)
    store = open_store()
    if (artifact := _in_store(name, store)) is not None:
        return _of_run(artifact, name, choice)
    if place.is_dir():
        return _in_folder(place, choice, name)
    if name.count("/") == 1:
        return _in_folder(_from_hub(name, choice.revision), choice, name)
    raise UsageError(
        f"There is no model {name}: no file or folder of that name is here, {store.uri} has no run {name} with a "
        f"finished training{nearest(name, run_names(store))}, and a hub id has the form owner/name."
    )


# ------------------------------------------------------------------------------------------------ a run's training


def _in_store(name: str, store: Store) -> Artifact | None:
    """The training that RUN, RUN/train or train/DIGEST means; None when the store has none."""
    wanted = name.removeprefix("artifacts/").rstrip("/")
    first, _, second = wanted.partition("/")
    is_digest = first == "train" and second not in ("", "train")
    if not is_digest and (second not in ("", "train") or read_pointer(store, first, "train") is None):
        return None
    return open_artifact(store, *find_artifact(store, wanted if second else f"{first}/train"), earlier=True)


def _of_run(artifact: Artifact, name: str, choice: Choice) -> Model:
    if choice.vae or choice.text_encoder or choice.revision:
        raise UsageError(
            f"{name} is a run's training, which knows its autoencoder and text encoder: leave --vae, --text-encoder "
            "and --revision out."
        )
    row = _checkpoint(list(artifact.rows("checkpoints", CheckpointRow)), choice.step, name)
    weights = choice.weights or "ema"
    key = row.ema_key if weights == "ema" else row.weights_key
    config_key = f"{key.rpartition('/')[0]}/config.json"
    train = TrainSpec.model_validate(artifact.manifest.spec)
    latents = open_artifact(artifact.store, "latents", artifact.manifest.inputs["latents"], earlier=True)
    made = LatentsSpec.model_validate(latents.manifest.spec)
    trained, codec_id, text_id = _trained(train, latents)
    sha256 = next(stored.sha256 for stored in artifact.manifest.objects if stored.key == key)
    with artifact.local(config_key) as file:
        config = read_config(file)
    family = family_of(train.model)

    def load(dtype: torch.dtype, device: torch.device) -> Any:
        with artifact.local(key) as file, artifact.local(config_key) as beside:
            return family.load(file, beside, dtype=dtype, device=device)

    return Model(
        f"{name}, {weights} weights after step {row.step}",
        {"digest": sha256[:16], "from": f"train/{artifact.manifest.digest[:12]}", "step": row.step, "weights": weights},
        config,
        family,
        made.codec,
        made.text,
        trained,
        load,
        codec_id,
        text_id,
        train.model.shift if isinstance(train.model, WanSpec) else None,
    )


def _checkpoint(rows: list[CheckpointRow], step: int | None, name: str) -> CheckpointRow:
    by_step = {row.step: row for row in rows}
    if not by_step:
        raise DataError(f"{name} has left no checkpoint: run its training again.")
    if step is None:
        return by_step[max(by_step)]
    if step not in by_step:
        raise UsageError(f"{name} has no checkpoint of step {step}; it has {', '.join(map(str, sorted(by_step)))}.")
    return by_step[step]


def _trained(train: TrainSpec, latents: Artifact) -> tuple[tuple[Trained, ...], str, str]:
    """The buckets trained on, the largest first, each at its commonest size; and what made the latents and features."""
    sizes: dict[str, Counter[tuple[int, int]]] = {}
    rates: list[float] = []
    codec_id = text_id = ""
    # Only what is needed: tables of earlier versions have it too, and their models are as good.
    columns = ["resolution", "height_px", "width_px", "codec", "text_encoder", "kind", "fps"]
    with latents.local(latents.manifest.tables["latents"].key) as file:
        for row in read_columns(file, columns):
            sizes.setdefault(row["resolution"], Counter())[row["height_px"], row["width_px"]] += 1
            codec_id, text_id = row["codec"], row["text_encoder"]
            if row["kind"] == "video":
                rates.append(row["fps"])
    found = set()
    for bucket in (bucket for phase in train.phases for bucket in phase.buckets):
        if bucket.resolution in sizes:
            ((height_px, width_px), _), *_ = sizes[bucket.resolution].most_common(1)
            is_video = bucket.num_frames > 1 and rates
            fps = statistics.median(rates) / bucket.frame_interval if is_video else 0.0
            found.add(Trained(bucket.num_frames, height_px, width_px, fps))
    ordered = sorted(found, key=lambda each: (each.num_frames, each.height_px * each.width_px, each.fps), reverse=True)
    return tuple(ordered), codec_id, text_id


# ------------------------------------------------------------------------------------------------ folders and the hub


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    # Weights and what describes them; never code, nor pickles.
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    with explained("The model", name):
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))


def _in_folder(place: Path, choice: Choice, name: str) -> Model:
    if choice.step is not None:
        raise UsageError(f"{name} is one checkpoint and has no steps to choose from: leave --step out.")
    if not place.exists():
        raise UsageError(f"There is no model {name}: nothing is there.")
    pipeline = place if (place / _PIPELINE).is_file() else None
    file = _weights_in(place / "transformer" if pipeline else place, choice.weights, name)
    config_file = file.with_name("config.json")
    if not config_file.is_file():
        raise SpecError(
            f"{name} has no config.json beside {file.name}, so the network's shape is not known: put the published "
            "one there, or bring the checkpoint in with bricks checkpoint import."
        )
    config = read_config(config_file)
    family = family_of(config)
    codec, text = _companions(pipeline, choice, family.published)
    if max_tokens := config.get("model_max_length"):
        text = text.model_copy(update={"max_tokens": min(max_tokens, text.max_tokens)})
    kind = {"weights": _KINDS[file.name]} if file.name in _KINDS else {}
    return Model(
        f"{name} ({file.name})",
        {"digest": _digest(file), "from": Path(name).name} | kind,
        config,
        family,
        codec,
        text,
        (),
        lambda dtype, device: family.load(file, config_file, dtype=dtype, device=device),
    )


def _companions(pipeline: Path | None, choice: Choice, usual: Published) -> tuple[CodecSpec, TextSpec]:
    """The codec and text encoder: those that were named, or else a pipeline's own, or else the published ones."""
    codec, text = usual.codec, usual.text
    if pipeline is not None and (pipeline / "vae").is_dir():
        codec = codec.model_copy(update={"model": str(pipeline / "vae" if codec.kind == "sd-vae" else pipeline)})
    if pipeline is not None and (pipeline / "text_encoder").is_dir():
        text = text.model_copy(update={"model": str(pipeline)})
    if choice.vae is not None:
        codec = CodecSpec() if choice.vae == BUILT_IN_CODEC else codec.model_copy(update={"model": choice.vae})
    if choice.text_encoder is not None:
        is_built_in = choice.text_encoder == BUILT_IN_TEXT_ENCODER
        text = TextSpec() if is_built_in else text.model_copy(update={"model": choice.text_encoder})
    return codec, text


def _weights_in(place: Path, weights: Weights | None, name: str) -> Path:
    """The weights' file of a folder, or their index: the kind asked for, or else the EMA where there is one."""
    if place.is_file():
        return place
    if weights is None:
        ema = place / _EMA
        return ema if ema.is_file() else find_weights(place)
    file = place / next(name for name, kind in _KINDS.items() if kind == weights)
    if not file.is_file():
        raise UsageError(f"{name} has no {file.name}: leave --weights out to take the weights it has.")
    return file


def _digest(weights: Path) -> str:
    """Sixteen hexadecimal digits of a file, or of all that an index names: the same as a run's, for the same file."""
    with told(weights, "read"):
        sha256s = [sha256_of_file(file) for file in sorted(open_tensors(weights).files)]
    return (sha256s[0] if len(sha256s) == 1 else hashlib.sha256(json.dumps(sha256s).encode()).hexdigest())[:16]
