"""Checkpoints from other tools and to them: python -m jobs.checkpoint import|export|show"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.entry_point import DEFAULT_STORE, StoreFlag, VerboseFlag, commands, serve


class Format(StrEnum):
    """Layouts that a checkpoint can be written in."""

    open_sora_hub = "open-sora-hub"
    open_sora_training = "open-sora-training"
    diffusers = "diffusers"


class Weights(StrEnum):
    """Which of a checkpoint's weights."""

    raw = "raw"
    ema = "ema"


class Dtype(StrEnum):
    """Types that weights can be written in."""

    stored = "stored"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


app = commands("Bring checkpoints in from other tools and take them out again.")

OutFlag = Annotated[Path, typer.Option("--out", help="The folder to make.", metavar="FOLDER")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace the folder if another checkpoint is there.")]
StepFlag = Annotated[int | None, typer.Option("--step", help="Of a run: this step's; the last when left out.", min=0)]
CheckpointArgument = Annotated[
    str,
    typer.Argument(help="A file or folder, or a run's training in the store: RUN or train/DIGEST.", metavar="CKPT"),
]


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Upstream's safetensors or .pt file, hub folder, hub id or training checkpoint; or diffusers' folder.",
            metavar="SRC",
        ),
    ],
    out: OutFlag,
    revision: Annotated[str, typer.Option(help="Of a hub id: a branch, tag or commit.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="The network's config.json, if it is not beside.", metavar="FILE")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type to keep the weights in; stored loses nothing.")] = Dtype.stored,
    key: Annotated[
        str, typer.Option("--key", help="Also put it into the store, where pods find it: weights/NAME.", metavar="KEY")
    ] = "",
    force: ForceFlag = False,
    store: StoreFlag = DEFAULT_STORE,
    verbose: VerboseFlag = False,
) -> None:
    """Bring a checkpoint in, bit by bit."""
    from bricks_core.exchange.checkpoints.bring_in import import_checkpoint, put_into
    from bricks_core.exchange.checkpoints.screen import tell_imported
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_store

    configure_logging(verbose)
    imported = import_checkpoint(source, out, revision=revision, config=config, dtype=dtype.value, force=force)
    if key:
        put_into(open_store(store), key, imported, force=force)
    tell_imported(imported, key)


@app.command()
def export(
    checkpoint: CheckpointArgument,
    format: Annotated[Format, typer.Option("--format", help="What to write.")],
    out: OutFlag,
    weights: Annotated[
        Weights | None,
        typer.Option(help="Left out: ema where there is one; for open-sora-training, which holds both, raw in model/."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Left out: float32 for the hub, bfloat16 for training, as stored for diffusers."),
    ] = None,
    step: StepFlag = None,
    vae: Annotated[str, typer.Option(help="For diffusers: an autoencoder to include, a folder or hub id.")] = "",
    text_encoder: Annotated[str, typer.Option(help="For diffusers: a T5 to include, a folder or hub id.")] = "",
    licence: Annotated[
        str, typer.Option("--licence", help="What you pass it on under, for its card: never guessed.")
    ] = "",
    base_licence: Annotated[
        str,
        typer.Option("--base-licence", help="Of the weights that it began with, where no card beside them says it."),
    ] = "",
    force: ForceFlag = False,
    store: StoreFlag = DEFAULT_STORE,
    verbose: VerboseFlag = False,
) -> None:
    """Write a checkpoint in another layout, with its model card."""
    from bricks_core.exchange.checkpoints.checkpoint import find_checkpoint, is_path
    from bricks_core.exchange.checkpoints.export import export_checkpoint
    from bricks_core.exchange.checkpoints.model_card import origin_of
    from bricks_core.exchange.checkpoints.screen import tell_exported
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_store

    configure_logging(verbose)
    opened = open_store(store)
    with find_checkpoint(checkpoint, opened, step) as found:
        known = not is_path(checkpoint)
        exported = export_checkpoint(
            found,
            out,
            format.value,
            weights=weights.value if weights else None,
            dtype=dtype.value if dtype else None,
            vae=vae,
            text_encoder=text_encoder,
            force=force,
            origin=origin_of(opened, checkpoint, step, base_licence) if known else None,
            licence=licence,
        )
    tell_exported(exported)


@app.command()
def show(
    checkpoint: CheckpointArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor, and all that differ.")] = False,
    step: StepFlag = None,
    store: StoreFlag = DEFAULT_STORE,
) -> None:
    """Say what one holds, and what is wrong."""
    from bricks_core.exchange.checkpoints.checkpoint import find_checkpoint
    from bricks_core.exchange.checkpoints.screen import show_checkpoint
    from bricks_core.storage.places import open_store

    with find_checkpoint(checkpoint, open_store(store), step) as found:
        show_checkpoint(found, all_tensors=tensors)


if __name__ == "__main__":
    serve(app)
