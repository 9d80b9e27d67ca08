"""Checkpoints of other tools and ours, as they lie: what each layout holds, and the network that is in it.

    layout                weights                             EMA                shape         step
    bricks                weights.safetensors                 ema.safetensors    config.json   state.json
    open-sora-hub         model.safetensors                                      config.json
    open-sora-training    model/, shards under an index       ema.pt             of tensors    running_states.json
    diffusers             transformer/, one file or shards                       config.json
    file                  any such file, or a .pt of torch                       of tensors

The network is STDiT2; one of another family (Wan) is known by its config.json alone, in our layout and diffusers'.
Sections in brackets are of the specification, docs/stdit2.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bricks_core.diffusion.families import family_of
from bricks_core.diffusion.family import Family
from bricks_core.errors import DataError, SpecError, UsageError
from bricks_core.models.beside import CONFIG, PROVENANCE, STATE, read_beside, told_by
from bricks_core.models.pretrained import DTYPES
from bricks_core.models.tensor_files import INDEX, Heading, Tensors, open_tensors
from bricks_core.models.weights import (
    FIELDS,
    LEGACY,
    NAMES,
    NULL_CAPTION,
    ROTARY,
    differences,
    expected_headings,
    first_few,
    headings_of,
    infer_shape,
    read_config,
    shape_of,
    with_null_caption_of,
)
from bricks_core.pipeline.trained import Trained, find_trained
from bricks_core.spec.latents import Encoders, LatentsSpec
from bricks_core.spec.train import ModelSpec, STDiT2Spec, Weights
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.store import Store
from bricks_core.storage.tables import read_columns
from bricks_core.storage.trainings import EMA, WEIGHTS

Layout = Literal["bricks", "open-sora-hub", "open-sora-training", "diffusers", "file"]

DtypeName = Literal["stored", "float32", "bfloat16", "float16"]
"""stored: every tensor in the type it has, so that nothing is lost."""

RUNNING_STATES = "running_states.json"
PICKLES = (".pt", ".pth", ".bin")

OPTIMIZER = "optimizer/ (Adam's moments; training begins with new ones)"
LEFT_OUT = {
    "optimizer": OPTIMIZER,
    "lr_scheduler": "lr_scheduler (a run file has schedules of its own)",
    "sampler": "sampler (the place in the data; a run has data of its own)",
    "optimizer.safetensors": "optimizer.safetensors (moments; a run continues from its own store)",
}
"""What lies beside weights and is not taken over."""


@dataclass(frozen=True)
class Checkpoint:
    """What lies at a place, before it is known whether it fits together."""

    name: str
    """As a person is told."""
    layout: Layout
    weights: Tensors
    ema: Tensors | None = None
    config: dict[str, Any] | None = None
    """As it was given; None: the tensors alone say what the network is."""
    running: dict[str, Any] = field(default_factory=dict)
    """Where its training stood, in the words of upstream's running_states.json [9]; empty where nothing says it."""
    left_out: tuple[str, ...] = ()
    model: ModelSpec | None = None
    """As the run file has it that it was trained by."""
    encoders: Encoders | None = None
    """What it goes with; None: nothing says it."""
    origin: str = ""
    """Where it comes from, as an export tells it: of a path its last part."""
    told_weights: Weights | None = None
    """Which of a training's its weights are, where they are of one kind alone and their provenance tells."""
    training: str = ""
    """That its training is not finished, in words."""

    @property
    def family(self) -> Family:
        """The kind of its network; STDiT2 where nothing says it.

        Raises SpecError: it is none that we know.
        """
        if self.model is not None:
            return family_of(self.model)
        said = self.config or {}
        return family_of(said if said.get("_class_name") or said.get("architectures") else STDiT2Spec())

    @property
    def step(self) -> int | None:
        step = self.running.get("global_step")
        return step if isinstance(step, int) else None

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.weights.files, *(self.ema.files if self.ema else ()))


@dataclass(frozen=True)
class Network:
    """A checkpoint whose tensors and shape fit together."""

    shape: dict[str, Any]
    """What STDiT2 is built of, all of it; of another network its config.json."""
    weights: Tensors
    ema: Tensors | None
    inferred: bool
    """Whether the shape was read from the tensors."""
    assumed: tuple[str, ...] = ()
    """Fields that nothing says; STDiT2-XL/2's values were taken."""
    dropped: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    @property
    def is_stdit2(self) -> bool:
        return not _is_wan(self.shape)

    @property
    def config(self) -> dict[str, Any]:
        """As it is written beside our weights."""
        return {"architectures": ["STDiT2"], **self.shape} if self.is_stdit2 else self.shape

    @property
    def expected(self) -> dict[str, Heading]:
        """What a network of this shape holds.

        Raises SpecError: there is none.
        """
        if self.is_stdit2:
            return expected_headings(self.shape)
        from diffusers import WanTransformer3DModel

        try:
            with torch.device("meta"):
                return headings_of(WanTransformer3DModel.from_config(self.shape))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise SpecError(f"Wan's network of this config.json cannot be built: {error}.") from error

    @property
    def exact(self) -> set[str]:
        """Tensors that stay float32 where the others become narrower."""
        if self.is_stdit2:
            return {ROTARY}
        from diffusers import WanTransformer3DModel

        parts = set(WanTransformer3DModel._keep_in_fp32_modules)
        return {name for name in self.weights.headings if not parts.isdisjoint(name.split("."))}


# ------------------------------------------------------------------------------------------------------------- opening


def goes_with(checkpoint: Checkpoint, weights: Weights | None) -> dict[str, Any]:
    """What a folder's provenance tells for `bricks generate`; nothing of what is not known."""
    encoders = checkpoint.encoders.model_dump(mode="json") if checkpoint.encoders else None
    told = {"weights": weights, "training": checkpoint.training, "encoders": encoders}
    return {name: each for name, each in told.items() if each}


def is_path(wanted: str) -> bool:
    """Whether a checkpoint is meant that lies on this disk, and none of the store."""
    return Path(wanted).expanduser().exists() or wanted.startswith((".", "/", "~"))


@contextmanager
def find_checkpoint(wanted: str, store: Store, step: int | None = None) -> Iterator[Checkpoint]:
    """The checkpoint at a path, or of a run's training in the store: RUN, RUN/train or train/DIGEST.

    Raises:
        UsageError, DataError: there is none, or it is damaged.
    """
    if is_path(wanted):
        if step is not None:
            raise UsageError(f"{wanted} is one checkpoint and has no steps to choose from: leave --step out.")
        yield open_checkpoint(Path(wanted).expanduser())
        return
    name = wanted.removeprefix("artifacts/").rstrip("/")
    first, _, second = name.partition("/")
    if second != "train" and (second and first != "train"):
        raise UsageError(
            f"{wanted} is no path here, and no RUN or train/DIGEST of the store. If it is a hub id, bring it in first: "
            f"bricks checkpoint import {wanted} --out FOLDER."
        )
    training = find_trained(store, name)
    state = training.state(step)
    with ExitStack() as stack:
        weights, ema, config = (
            stack.enter_context(training.local(each)) for each in (*state.files.values(), state.config)
        )
        yield Checkpoint(
            f"{wanted}, step {state.step}",
            "bricks",
            open_tensors(weights),
            open_tensors(ema),
            read_config(config),
            {"epoch": 0, "step": state.step, "global_step": state.step, "sample_start_index": None},
            model=training.spec.model,
            encoders=_encoders(training),
            origin=state.origin,
            training=training.unfinished,
        )


def _encoders(training: Trained) -> Encoders | None:
    """What a training's latents were made with; None where that is gone."""
    if not training.latents:
        return None
    try:
        latents = open_artifact(training.store, "latents", training.latents, earlier=True)
        with latents.local(latents.manifest.tables["latents"].key) as file:
            row = next(read_columns(file, ["codec", "text_encoder"]))
    except (DataError, StopIteration):
        return None
    made = LatentsSpec.model_validate(latents.manifest.spec)
    return Encoders(codec=made.codec, text=made.text, codec_id=row["codec"], text_id=row["text_encoder"])


def open_checkpoint(place: Path, name: str = "") -> Checkpoint:
    """What lies at a path, by its layout. Reads headings only, of pickles all.

    Raises:
        UsageError: nothing is there.
        DataError: it holds no checkpoint, or a file of it is damaged or missing.
    """
    found = _lying_at(place, name or str(place))
    told = told_by(place if place.is_dir() else place.parent)
    said = read_beside((place if place.is_dir() else place.parent) / PROVENANCE).get("running_states")
    return replace(
        found,
        running=found.running or (said if isinstance(said, dict) else {}),
        encoders=told.encoders,
        origin=Path(found.name).name,
        told_weights=told.weights if found.ema is None else None,
        training=told.training,
    )


def _lying_at(place: Path, name: str) -> Checkpoint:
    if place.is_file():
        beside = place.with_name(CONFIG)
        return Checkpoint(name, "file", open_tensors(place), config=read_config(beside) if beside.is_file() else None)
    if not place.is_dir():
        raise UsageError(f"{place} is not there: give a file or folder, or a hub id such as owner/name.")
    left_out = tuple(words for entry, words in LEFT_OUT.items() if (place / entry).exists())
    given = read_config(place / CONFIG) if (place / CONFIG).is_file() else None
    if (place / "model").is_dir():
        weights = open_tensors(_weights_in(place / "model"))
        ema = open_tensors(place / "ema.pt") if (place / "ema.pt").is_file() else None
        running = read_beside(place / RUNNING_STATES)
        return Checkpoint(name, "open-sora-training", weights, ema, given, running, left_out)
    if (place / "transformer").is_dir():
        inner = place / "transformer"
        given = read_config(inner / CONFIG) if (inner / CONFIG).is_file() else None
        others = sorted(each.name for each in place.iterdir() if each.is_dir() and each != inner)
        left_out = tuple(f"{each}/ (not part of the network)" for each in others)
        return Checkpoint(name, "diffusers", open_tensors(_weights_in(inner)), config=given, left_out=left_out)
    file = _weights_in(place)
    if file.name != WEIGHTS:
        layout: Layout = "diffusers" if file.name.startswith("diffusion_pytorch_model") else "open-sora-hub"
        return Checkpoint(name, layout, open_tensors(file), config=given, left_out=left_out)
    ema = open_tensors(place / EMA) if (place / EMA).is_file() else None
    step = read_beside(place / STATE).get("step")
    running = {"epoch": 0, "step": step, "global_step": step, "sample_start_index": None} if step is not None else {}
    return Checkpoint(name, "bricks", open_tensors(file), ema, given, running, left_out)


def _weights_in(folder: Path) -> Path:
    """The file of a folder's weights, or the index of its shards."""
    for name in (*NAMES, "pytorch_model.safetensors", "pytorch_model.bin"):
        for file in (folder / name, folder / f"{name}{INDEX}"):
            if file.is_file():
                return file
    files = sorted(each for each in folder.iterdir() if each.suffix in (".safetensors", *PICKLES))
    if len(files) == 1 and not re.search(r"-\d{5}", files[0].stem):
        return files[0]
    if files and all(re.search(r"-\d{5}", each.stem) for each in files):
        raise DataError(
            f"{folder} holds {len(files)} shards such as {files[0].name} but no index that says what is in them and "
            f"whether they are all: get the file that ends in {INDEX} too."
        )
    checkpoints = sorted(folder.glob("epoch*-global_step*"), key=lambda each: (len(each.name), each.name))
    if checkpoints:
        raise DataError(f"{folder} holds {len(checkpoints)} training checkpoints: name one, such as {checkpoints[-1]}.")
    found = f"{len(files)} files of weights, and which is meant cannot be told" if files else "no file of weights"
    raise DataError(f"{folder} holds {found}: name the file itself.")


# --------------------------------------------------------------------------------------------------------- fitting it


def network_of(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Network:
    """The network that a checkpoint holds: legacy tensors dropped, the null caption of the config's length [9].

    config  instead of the checkpoint's own

    Raises DataError: its tensors do not make a network; names the first that is wrong.
    """
    network = shaped(checkpoint, config)
    expected = network.expected
    for tensors in (network.weights, network.ema):
        wrong = differences(expected, tensors.headings) if tensors else []
        if tensors and wrong:
            why = "the shape that its other tensors have" if network.inferred else "its config.json"
            raise DataError(
                f"{tensors.place} is not of {why}: {first_few(wrong)}. Get the files again, or the config.json that "
                "belongs to them; bricks checkpoint show lists all."
            )
    return network


def shaped(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Network:
    """The same, before it is known whether every tensor fits."""
    given = config or checkpoint.config
    dropped = tuple(name for name in LEGACY if name in checkpoint.weights.headings)
    weights = checkpoint.weights.without(LEGACY)
    ema = checkpoint.ema.without(LEGACY) if checkpoint.ema else None
    if given is not None and _is_wan(given):
        return Network(dict(given), checkpoint.weights, checkpoint.ema, False)
    if given is None:
        inferred = infer_shape(weights)
        return Network(inferred.shape, weights, ema, True, inferred.assumed, dropped)
    shape = _whole(shape_of(given), given)
    if isinstance(shape["depth"], int) and shape["depth"] > len(weights.headings):  # not built: it might never end
        raise DataError(f"Its config.json says {shape['depth']} blocks, and there are {len(weights.headings)} tensors.")
    length = shape["model_max_length"]
    network = Network(shape, with_null_caption_of(weights, length), ema, False, dropped=dropped)
    was, becomes = (each.headings.get(NULL_CAPTION) for each in (weights, network.weights))
    if was is None or was == becomes:
        return network
    resized = (f"{NULL_CAPTION}: from {was.shape[0]} rows to {length}",)
    return replace(network, ema=with_null_caption_of(ema, length) if ema else None, resized=resized)


def _whole(shape: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A given shape with the fields it leaves out."""
    names = _names(given)
    if names and "STDiT2" not in names:
        raise DataError(
            f"Its config.json is that of {', '.join(sorted(names))}, and bricks checkpoint knows STDiT2 and "
            "WanTransformer3DModel."
        )
    return {name: each.default for name, each in FIELDS.items()} | dict(shape)


def _names(config: Mapping[str, Any]) -> set[str]:
    """The classes of which a config.json is."""
    return {str(name) for name in (config.get("_class_name"), *(config.get("architectures") or ())) if name}


def _is_wan(config: Mapping[str, Any]) -> bool:
    return "WanTransformer3DModel" in _names(config)


def type_named(name: DtypeName) -> torch.dtype | None:
    """None: as stored."""
    return None if name == "stored" else DTYPES[name]


def in_dtype(
    headings: Mapping[str, Heading], dtype: torch.dtype | None, exact: Collection[str] = ()
) -> dict[str, Heading]:
    """The same tensors in a type, those that are to be exact in float32; None: as they are."""

    def of(name: str, heading: Heading) -> Heading:
        if dtype is None:
            return heading
        return Heading(torch.float32 if name in exact else dtype, heading.shape)

    return {name: of(name, heading) for name, heading in headings.items()}
