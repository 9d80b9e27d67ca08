"""A checkpoint becomes a folder of another tool."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bricks_core.errors import UsageError
from bricks_core.exchange.checkpoints.checkpoint import (
    RUNNING_STATES,
    Checkpoint,
    DtypeName,
    Network,
    goes_with,
    network_of,
    type_named,
)
from bricks_core.exchange.checkpoints.model_card import Origin, write_card
from bricks_core.exchange.checkpoints.new_folder import new_folder
from bricks_core.exchange.checkpoints.open_sora import write_hub_folder, write_training_folder
from bricks_core.models.beside import CONFIG, PROVENANCE
from bricks_core.models.tensor_files import Tensors
from bricks_core.progress import Progress
from bricks_core.spec.train import DEFAULT_WEIGHTS, Weights

Format = Literal["open-sora-hub", "open-sora-training", "diffusers"]

USUAL_DTYPE: dict[Format, DtypeName] = {
    "open-sora-hub": "float32",
    "open-sora-training": "bfloat16",
    "diffusers": "stored",
}

KNOWN_BY = ("model.safetensors", CONFIG, RUNNING_STATES, "model_index.json", "ema.pt")
"""Names by which a folder is known to be such an export."""


@dataclass(frozen=True)
class Exported:
    """What came of it."""

    checkpoint: Checkpoint
    network: Network
    format: Format
    weights: Weights | None
    """None: the checkpoint has one kind alone, and does not say which."""
    dtype: DtypeName
    out: Path
    was_there: bool
    """The very same had been exported before."""


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    format: Format,
    *,
    weights: Weights | None = None,
    dtype: DtypeName | None = None,
    vae: str = "",
    text_encoder: str = "",
    force: bool = False,
    origin: Origin | None = None,
    licence: str = "",
) -> Exported:
    """Write a checkpoint's network in another tool's layout.

    weights             None: the EMA where there is one; of a training folder, which holds both, the weights themselves
    dtype               of the weights; None: the one that is usual there (USUAL_DTYPE)
    vae, text_encoder   folders or hub ids to put beside it, for diffusers
    origin              what the store knows of it, for its card
    licence             what it is passed on under, for its card

    Raises:
        UsageError: it has no EMA, or `out` is in the way.
        DataError: it is damaged; names the first tensor that is wrong.
    """
    if (vae or text_encoder) and format != "diffusers":
        raise UsageError(f"{format} holds the network alone: --vae and --text-encoder go with --format diffusers.")
    family = checkpoint.family
    if family.name != "stdit2" and format != "diffusers":
        raise UsageError(f"{format} is Open-Sora's and holds STDiT2; {checkpoint.name} is of the family {family.name}.")
    network = network_of(checkpoint)
    if weights == "ema" and network.ema is None:
        raise UsageError(f"{checkpoint.name} has no EMA weights: leave --weights out to export those it has.")
    if weights is None and network.ema is not None:
        weights = "raw" if format == "open-sora-training" else DEFAULT_WEIGHTS
    chosen: Tensors = network.ema if weights == "ema" and network.ema else network.weights
    which = weights if network.ema else checkpoint.told_weights
    dtype = dtype or USUAL_DTYPE[format]
    count = len(chosen.headings)
    with new_folder(out, force=force, known_by=KNOWN_BY) as folder, Progress("export") as progress:
        progress.begin(2 * count if format == "open-sora-training" else count, unit="tensors")

        def wrote(name: str) -> None:
            progress.advance(note=name)

        if format == "open-sora-hub":
            write_hub_folder(network, chosen, type_named(dtype), folder.path, wrote)
        elif format == "open-sora-training":
            ema = network.ema or network.weights
            write_training_folder(network, chosen, ema, checkpoint.running, type_named(dtype), folder.path, wrote)
        else:
            from bricks_core.exchange.checkpoints.diffusers_folder import write_diffusers_folder

            write_diffusers_folder(family, network, chosen, type_named(dtype), vae, text_encoder, folder.path)
            progress.advance(count)
        write_card(folder.path, checkpoint, format, which, dtype, origin, licence)
        # A training folder holds both kinds of weights, so it is of none.
        if told := goes_with(checkpoint, None if format == "open-sora-training" else which):
            provenance = {"from": checkpoint.origin, "running_states": checkpoint.running} | told
            (folder.path / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    return Exported(checkpoint, network, format, which, dtype, out, folder.was_there)
