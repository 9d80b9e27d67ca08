"""One of the processes that bricks-train starts: the preflight, then training. Not to be called by hand."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bricks_core.errors import BricksError, Stopped
from jobs.bricks_train import PREFLIGHT
from jobs.entry_point import DEFAULT_STORE, SetFlag, StoreFlag, VerboseFlag, serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def process(
    run: Annotated[Path, typer.Option("--run", help="The run's YAML.", metavar="FILE")],
    store: StoreFlag = DEFAULT_STORE,
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
    node_rank: Annotated[int, typer.Option(help="This node's place, from 0.", min=0)] = 0,
    node_name: Annotated[str, typer.Option(help="This node's name, for reports.")] = "",
    gpus: Annotated[int, typer.Option(help="GPUs that each node must have.", min=0)] = 0,
    rdma: Annotated[bool, typer.Option("--rdma", help="InfiniBand must work.")] = False,
    preflight: Annotated[bool, typer.Option("--preflight/--no-preflight", help="Ask whether nodes are fit.")] = True,
    train: Annotated[bool, typer.Option("--train/--no-train", help="Train when they are.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say where the artifact is.")] = False,
    verbose: VerboseFlag = False,
) -> None:
    from bricks_core.nodes.exit_codes import leave_word
    from bricks_core.nodes.preflight import Node
    from bricks_core.nodes.process import Duty, do
    from bricks_core.progress import configure_logging
    from bricks_core.spec.cluster import load_preflight
    from bricks_core.spec.run import load_run
    from bricks_core.storage.places import open_store

    configure_logging(verbose)
    try:
        loaded = load_run(run, overrides)
        node = Node(loaded.metadata.name, node_rank, node_name, gpus, rdma, load_preflight(run.parent / PREFLIGHT))
        address = do(loaded, open_store(store), node, Duty(preflight=preflight, train=train))
    except (BricksError, Stopped) as error:
        if not leave_word(error):
            raise
        # The agent says it, once for all its processes. Not by an exception: typer would return it as a value.
        sys.stdout.flush()
        os._exit(error.exit_code)
    if address and not quiet:
        typer.echo(address)


def main() -> None:
    serve(app)


if __name__ == "__main__":
    main()
