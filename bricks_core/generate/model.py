"""The model that is asked for: a run's training in the store, a folder, or a hub id (diffusion/model.py).

Facts come first and cheap; networks are loaded one after the other, when each is needed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.model import PIPELINE, Bucket, Choice, Model, from_hub, in_folder
from bricks_core.errors import UsageError, nearest
from bricks_core.models.weights import read_config
from bricks_core.pipeline.points import run_names
from bricks_core.pipeline.trained import Trained, find_trained, is_run_with_training
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.train import DEFAULT_WEIGHTS, TrainSpec, WanSpec
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns


def find_model(name: str, choice: Choice, open_store: Callable[[], Store]) -> Model:
    """The model of that name: a folder or file here, a run or artifact in the store, or a hub id, in that order.

    Raises:
        UsageError: there is none, or a flag does not go with it.
        DataError, SpecError, ServiceUnavailable: it is there, but broken, not finished, or the hub is away.
    """
    place = Path(name).expanduser()
    described = any((place / file).is_file() for file in (PIPELINE, "config.json"))
    if place.is_file() or described or name.startswith((".", "/", "~")):
        return in_folder(place, choice, name)
    store = open_store()
    if _is_in_store(name, store):
        return _of_run(find_trained(store, name), choice)
    if place.is_dir():
        return in_folder(place, choice, name)
    if name.count("/") == 1:
        return in_folder(from_hub(name, choice.revision), choice, name)
    raise UsageError(
        f"There is no model {name}: no file or folder of that name is here, {store.uri} has no run {name} with a "
        f"training{nearest(name, run_names(store))}, and a hub id has the form owner/name."
    )


# ------------------------------------------------------------------------------------------------ a run's training


def _is_in_store(name: str, store: Store) -> bool:
    """Whether it means the training of RUN, RUN/train or train/DIGEST."""
    first, _, second = name.removeprefix("artifacts/").rstrip("/").partition("/")
    is_digest = first == "train" and second not in ("", "train")
    return is_digest or (second in ("", "train") and is_run_with_training(store, first))


def _of_run(training: Trained, choice: Choice) -> Model:
    name = training.name
    if choice.vae or choice.text_encoder or choice.revision:
        raise UsageError(
            f"{name} is a run's training, which knows its autoencoder and text encoder: leave --vae, --text-encoder "
            "and --revision out."
        )
    state = training.state(choice.step)
    weights = choice.weights or DEFAULT_WEIGHTS
    stored, train = state.files[weights], training.spec
    latents = open_artifact(training.store, "latents", training.latents, earlier=True)
    made = LatentsSpec.model_validate(latents.manifest.spec)
    trained, codec_id, text_id = _trained(train, latents)
    with training.local(state.config) as file:
        config = read_config(file)
    family = family_of(train.model)

    def load(dtype: torch.dtype, device: torch.device) -> Any:
        with training.local(stored) as file, training.local(state.config) as beside:
            return family.load(file, beside, dtype=dtype, device=device)

    before = f"{training.earlier} is the one that the run had finished before." if training.earlier else ""
    return Model(
        f"{name}, {weights} weights after step {state.step}",
        {"digest": stored.sha256[:16], "from": state.origin, "step": state.step, "weights": weights},
        config,
        family,
        made.codec,
        made.text,
        trained,
        load,
        codec_id,
        text_id,
        train.model.shift if isinstance(train.model, WanSpec) else None,
        training.unfinished,
        (before,) if before else (),
    )


def _trained(train: TrainSpec, latents: Artifact) -> tuple[tuple[Bucket, ...], str, str]:
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
            found.add(Bucket(bucket.num_frames, height_px, width_px, fps))
    ordered = sorted(found, key=lambda each: (each.num_frames, each.height_px * each.width_px, each.fps), reverse=True)
    return tuple(ordered), codec_id, text_id
