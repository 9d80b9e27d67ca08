"""The checkpoints that ours are compared with: evaluate.compare.

Of those that runs have trained the pipeline says where they lie, since it knows runs; folders, keys of the store and
hub ids are looked at here. Either way the weights' identity is in the key of every sample, and a checkpoint that goes
with another codec or text encoder than this run is refused before anything is sampled.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Family
from bricks_core.diffusion.model import Choice, from_hub, in_folder
from bricks_core.errors import DataError, SpecError, UsageError
from bricks_core.models.beside import CONFIG, PROVENANCE, told_by
from bricks_core.models.weights import NAMES, read_config
from bricks_core.spec.evaluate import EvaluateSpec, check_encoders
from bricks_core.spec.latents import Encoders, Latent
from bricks_core.spec.manifest import StoredObject, canonical_json
from bricks_core.spec.train import Weights
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.scratch import scratch
from bricks_core.storage.store import Store, is_key
from bricks_core.storage.trainings import ROOT, state_at
from bricks_core.storage.work import Work

log = logging.getLogger("bricks")


@dataclass(frozen=True)
class Compared:
    """A checkpoint to sample beside ours, not yet loaded."""

    weights_of: str
    """Its weights, as items name them: of a run's where they lie, as its own samples do; else by their content."""
    step: int
    """0 where it is no run's."""
    weights: Weights
    family: Family
    load: Callable[[torch.device], torch.nn.Module]
    """The network, in evaluation mode."""
    shift: float | None = None
    """Of a flow's noise levels; None: the family's."""
    goes_with: Mapping[str, str] = field(default_factory=dict)
    """What makes pixels of its latents and reads its prompts, where `weights_of` does not tell it."""


def compared_models(spec: EvaluateSpec, work: Work) -> dict[str, Compared]:
    """Those that evaluate.compare names, in its order, each once.

    Raises:
        SpecError: one goes with another codec or text encoder, or is not sampled by evaluate.sampler.
        UsageError, DataError, ServiceUnavailable: one is not there, or damaged, or the hub is away.
    """
    if not spec.compare:
        return {}
    ours = next(iter(work.rows("latents", "latents", Latent)))
    found = {}
    for name in dict.fromkeys(spec.compare):
        place = work.fingerprints.get(f"compare.{name}", "")
        if place.startswith((ROOT, "artifacts/")):
            shift = work.fingerprints.get(f"compare.{name}.shift")
            found[name] = _of_run(work.store, place, float(shift) if shift else None)
        else:
            found[name] = _of_others(name, work.store, place, ours)
        try:
            spec.check_family(found[name].family.name)
        except ValueError as error:
            raise SpecError(f"evaluate.compare names {name}, a {found[name].family.name}. {error}") from None
    return found


def _of_run(store: Store, key: str, shift: float | None) -> Compared:
    """What a run has trained, by the key of its weights; that it goes with this run the pipeline has seen."""
    folder, _, name = key.rpartition("/")
    if key.startswith(ROOT):
        record = state_at(store, f"{folder}/")
        files = {each.key: each for each in record.files} if record is not None else {}
    else:  # a state of an earlier version, inside its artifact
        artifact = open_artifact(store, "train", key.split("/")[2], earlier=True)
        files = {artifact.full(each.key): each for each in artifact.manifest.objects}
    config = f"{folder}/{CONFIG}"
    if key not in files or config not in files:
        raise DataError(f"{key} is no checkpoint of its training any more: name another in evaluate.compare.")
    step = re.search(r"/step-(\d+)", key)
    weights: Weights = "ema" if name.startswith("ema") else "raw"
    stored = [files[each].model_copy(update={"key": each}) for each in (key, config)]
    return replace(_stored(store, stored[0], stored[1], key, int(step[1]) if step else 0, weights), shift=shift)


def _stored(
    store: Store, file: StoredObject, config: StoredObject, weights_of: str, step: int, weights: Weights
) -> Compared:
    """What lies in the store: keys from its root."""

    def load(device: torch.device) -> torch.nn.Module:
        with store.local(file.key, sha256=file.sha256) as one, store.local(config.key, sha256=config.sha256) as other:
            network: torch.nn.Module = family.load(one, other, device=device)
        return network

    with store.local(config.key, sha256=config.sha256) as beside:
        family = family_of(read_config(beside))
    return Compared(weights_of, step, weights, family, load)


# --------------------------------------------------------------------------------- folders, keys of the store, the hub


@dataclass(frozen=True)
class _Seen:
    """What is in a folder, known by its content."""

    compared: Compared
    config: Mapping[str, Any]
    goes_with: Encoders | None
    """None: nothing there says it."""


def _of_others(name: str, store: Store, fingerprint: str, ours: Latent) -> Compared:
    key = "" if Path(name).expanduser().exists() else _key_in(store, name)
    seen = _in_store(store, name, key) if key else _in_folder(name, fingerprint)
    width = seen.config.get("caption_channels") or seen.config.get("text_dim")
    if width and width != ours.text_width:
        raise SpecError(
            f"evaluate.compare names {name}, which reads caption features of width {width}, and this run's are of "
            f"{ours.text_width}: name a checkpoint that goes with the same text encoder."
        )
    if (told := seen.goes_with) is None:
        log.warning("%s does not say what it goes with: it is taken to be this run's codec and text encoder.", name)
    else:
        check_encoders(
            name, (told.codec_id or told.codec.kind, told.text_id or told.text.kind), (ours.codec, ours.text_encoder)
        )
    return replace(seen.compared, goes_with={"codec": ours.codec, "text_encoder": ours.text_encoder})


@lru_cache(maxsize=32)
def _in_folder(name: str, fingerprint: str) -> _Seen:
    """`fingerprint`: of what is in it, so that it is looked at again where that has changed."""
    place = Path(name).expanduser()
    is_on_hub = not place.exists() and not name.startswith((".", "/", "~")) and name.count("/") == 1
    try:
        model = in_folder(from_hub(name, "") if is_on_hub else place, Choice(), name)
    except UsageError as error:
        raise SpecError(f"evaluate.compare: {error}") from None
    told = Encoders(codec=model.codec, text=model.text, codec_id=model.codec_id, text_id=model.text_id)
    compared = Compared(
        _identity(model.identity["digest"], model.config),
        0,
        model.identity.get("weights", "raw"),
        model.family,
        lambda device: model.load(torch.float32, device),
        model.shift,
    )
    return _Seen(compared, model.config, None if model.remarks else told)


def _key_in(store: Store, name: str) -> str:
    """The key of the weights that a folder of the store holds, or of a file itself; empty: there are none."""
    if not is_key(name):
        return ""
    names = [name, *(f"{name.rstrip('/')}/{each}" for each in ("ema.safetensors", *NAMES))]
    return next((key for key in names if store.head(key) is not None), "")


def _in_store(store: Store, name: str, key: str) -> _Seen:
    folder, _, file = key.rpartition("/")
    beside = {each: f"{folder}/{each}" for each in (CONFIG, PROVENANCE)}
    with scratch() as here:
        for (each, _), (_, data) in zip(beside.items(), store.get_many(beside.values()), strict=True):
            if data is not None:
                (here / each).write_bytes(data)
        if not (here / CONFIG).is_file():
            raise SpecError(
                f"evaluate.compare names {name}, and {store.uri} has no {beside[CONFIG]}, so the network's shape is "
                "not known: bring the checkpoint in with bricks checkpoint import."
            )
        config, told = read_config(here / CONFIG), told_by(here)
    stored = [StoredObject(key=each, size_bytes=0, sha256=store.sha256(each)) for each in (key, beside[CONFIG])]
    weights: Weights = "ema" if file.startswith("ema") else told.weights or "raw"
    compared = _stored(store, stored[0], stored[1], _identity(stored[0].sha256[:16], config), 0, weights)
    return _Seen(compared, config, told.encoders)


def _identity(digest: str, config: Mapping[str, Any]) -> str:
    """Weights by their content, and the network that they are read into."""
    return f"sha256:{digest}{hashlib.sha256(canonical_json(config)).hexdigest()[:16]}"
