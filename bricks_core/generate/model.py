"""The model that is asked for: where its weights are, what reads its prompts, and what it was trained on.

A model is a run's training in the store, a folder (ours, upstream's, or one that diffusers saved), or a hub id. Facts
come first and cheap; networks are loaded one after the other, when each is needed.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from bricks_core.errors import DataError, SpecError, UsageError
from bricks_core.models.pretrained import explained
from bricks_core.models.weights import find_weights, load_network
from bricks_core.pipeline.screen import find_artifact
from bricks_core.spec.latents import CodecSpec, Latent, LatentsSpec, TextSpec
from bricks_core.spec.train import CheckpointRow, TrainSpec
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.os_errors import told
from bricks_core.storage.store import Store

Weights = Literal["raw", "ema"]

PUBLISHED_VAE, PUBLISHED_TEXT_ENCODER = "stabilityai/sd-vae-ft-ema", "DeepFloyd/t5-v1_1-xxl"
"""What Open-Sora 1.1 was published with; taken where a checkpoint does not say."""
BUILT_IN_CODEC, BUILT_IN_TEXT_ENCODER = "patch-dct", "hashed-words"


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
    shape: dict[str, Any]
    """Its config.json."""
    codec: CodecSpec
    text: TextSpec
    trained: tuple[Trained, ...]
    """Empty when it is not known."""
    codec_id: str
    text_id: str
    """What made the latents and features it was trained on; empty when that is not known."""
    _load: Callable[[], nn.Module]

    def load(self) -> nn.Module:
        """The network, on the CPU, in evaluation mode."""
        return self._load()


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
    if Path(name).exists() or name.startswith((".", "/", "~")):
        return _in_folder(Path(name).expanduser(), choice, name)
    store = open_store()
    if (artifact := _in_store(name, store)) is not None:
        return _of_run(artifact, name, choice)
    if name.count("/") == 1:
        return _in_folder(_from_hub(name, choice.revision), choice, name)
    raise UsageError(
        f"There is no model {name}: no file or folder of that name is here, {store.uri} has no run {name} with a "
        "finished training (bricks status lists the runs), and a hub id has the form owner/name."
    )


# ------------------------------------------------------------------------------------------------ a run's training


def _in_store(name: str, store: Store) -> Artifact | None:
    """The training that RUN, RUN/train or train/DIGEST means; None when the store has none."""
    wanted = name.removeprefix("artifacts/").rstrip("/")
    first, _, second = wanted.partition("/")
    is_digest = first == "train" and second
    if second and second != "train" and not is_digest:
        return None
    if not is_digest and store.head(f"runs/{first}/train.json") is None:
        return None
    stage, digest = find_artifact(store, wanted if second else f"{first}/train")
    return open_artifact(store, stage, digest)


def _of_run(artifact: Artifact, name: str, choice: Choice) -> Model:
    if choice.vae or choice.text_encoder:
        raise UsageError(
            f"{name} is a run's training, which knows its autoencoder and text encoder: leave --vae and "
            "--text-encoder out."
        )
    row = _checkpoint(list(artifact.rows("checkpoints", CheckpointRow)), choice.step, name)
    weights = choice.weights or "ema"
    key = row.ema_key if weights == "ema" else row.weights_key
    config_key = f"{key.rpartition('/')[0]}/config.json"
    latents = open_artifact(artifact.store, "latents", artifact.manifest.inputs["latents"])
    spec = LatentsSpec.model_validate(latents.manifest.spec)
    trained, codec_id, text_id = _trained(TrainSpec.model_validate(artifact.manifest.spec), latents)
    sha256 = next(stored.sha256 for stored in artifact.manifest.objects if stored.key == key)
    with artifact.local(config_key) as file:
        shape = _read_config(file)

    def load() -> nn.Module:
        with artifact.local(key) as file, artifact.local(config_key) as config:
            return load_network(file, config)

    return Model(
        f"{name}, {weights} weights after step {row.step}",
        {"digest": sha256[:16], "from": f"train/{artifact.manifest.digest[:12]}", "step": row.step, "weights": weights},
        shape,
        spec.codec,
        spec.text,
        trained,
        codec_id,
        text_id,
        load,
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
    for row in latents.rows("latents", Latent):
        sizes.setdefault(row.resolution, Counter())[row.height_px, row.width_px] += 1
        codec_id, text_id = row.codec, row.text_encoder
        if row.kind == "video":
            rates.append(row.fps)
    found = set()
    for bucket in (bucket for phase in train.phases for bucket in phase.buckets):
        if bucket.resolution in sizes:
            (height_px, width_px), _ = sizes[bucket.resolution].most_common(1)[0]
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
    file = _weights_in(place, choice.weights, name)
    config = file.with_name("config.json")
    if not config.is_file():
        raise SpecError(
            f"{name} has no config.json beside {file.name}, so the network's shape is not known: put the published "
            "one there, or bring the checkpoint in with bricks checkpoint import."
        )
    with told(file, "read"):
        sha256 = sha256_of_file(file)
    kind = {"weights": choice.weights} if choice.weights else {}
    return Model(
        f"{name} ({file.name})",
        {"digest": sha256[:16], "from": Path(name).name} | kind,
        _read_config(config),
        codec_named(choice.vae or PUBLISHED_VAE),
        text_encoder_named(choice.text_encoder or PUBLISHED_TEXT_ENCODER),
        (),
        "",
        "",
        lambda: load_network(file, config),
    )


def _weights_in(place: Path, weights: Weights | None, name: str) -> Path:
    """The weights' file of a folder: the kind asked for, or else the EMA where there is one."""
    if place.is_file():
        return place
    if weights is None:
        ema = place / "ema.safetensors"
        return ema if ema.is_file() else find_weights(place)
    file = place / {"raw": "weights.safetensors", "ema": "ema.safetensors"}[weights]
    if not file.is_file():
        raise UsageError(f"{name} has no {file.name}: leave --weights out to take the weights it has.")
    return file


def codec_named(name: str) -> CodecSpec:
    """patch-dct, or an autoencoder by hub id or folder."""
    return CodecSpec() if name == BUILT_IN_CODEC else CodecSpec(kind="sd-vae", model=name, chunk_frames=4)


def text_encoder_named(name: str) -> TextSpec:
    """hashed-words, or a T5 by hub id or folder."""
    return TextSpec() if name == BUILT_IN_TEXT_ENCODER else TextSpec(kind="t5", model=name)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"{file} is no description of a network: {error}.") from error
    if not isinstance(found, dict):
        raise SpecError(f"{file} is no description of a network: it holds no object.")
    return found
