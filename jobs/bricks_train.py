"""Train on one node or several: bricks-train --run FILE

Starts this node's processes, meets the other nodes, sees whether all are fit, trains, and starts processes again that
were lost. Ends with Bricks' exit codes (docs/exit-codes.md).
"""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from bricks_core.errors import SpecError, UsageError
from jobs.entry_point import DEFAULT_STORE, SetFlag, StoreFlag, VerboseFlag, serve

PREFLIGHT = "preflight.yaml"
"""Beside the run file: what nodes must be able to do."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(help=__doc__)
def train(
    run: Annotated[Path, typer.Option("--run", help="The run's YAML.", metavar="FILE")],
    store: StoreFlag = DEFAULT_STORE,
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
    nodes: Annotated[int, typer.Option(envvar="BRICKS_NODES", help="Nodes that train together.", min=1)] = 1,
    processes: Annotated[
        int | None,
        typer.Option(envvar="BRICKS_PROCESSES", help="Of each node. Left out: one a GPU, or one.", min=1),
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(envvar="BRICKS_NODE_RANK", help="This node's place, from 0. Left out: as the pod says.", min=0),
    ] = None,
    rendezvous: Annotated[
        str, typer.Option(envvar="BRICKS_RENDEZVOUS", help="Where nodes meet, on node 0.", metavar="HOST:PORT")
    ] = "",
    rendezvous_id: Annotated[
        str, typer.Option(envvar="BRICKS_RENDEZVOUS_ID", help="The same on all nodes, new for every try.")
    ] = "",
    max_restarts: Annotated[
        int, typer.Option(envvar="BRICKS_MAX_RESTARTS", help="Times that lost processes are started again.", min=0)
    ] = 3,
    grace_s: Annotated[int, typer.Option(envvar="BRICKS_GRACE_S", help="Seconds from SIGTERM to SIGKILL.", min=2)] = 60,
    node_name: Annotated[str, typer.Option(envvar="BRICKS_NODE_NAME", help="This node's name, for reports.")] = "",
    gpus: Annotated[
        int | None,
        typer.Option(envvar="BRICKS_GPUS", help="GPUs that each node must have. Left out: the run's.", min=0),
    ] = None,
    rdma: Annotated[
        bool, typer.Option("--rdma/--no-rdma", envvar="BRICKS_RDMA", help="InfiniBand must work, no TCP instead.")
    ] = False,
    preflight: Annotated[
        bool, typer.Option("--preflight/--no-preflight", help="See whether nodes are fit before they train.")
    ] = True,
    preflight_only: Annotated[bool, typer.Option("--preflight-only", help="Only see whether they are.")] = False,
    verbose: VerboseFlag = False,
) -> None:
    from bricks_core.nodes import meeting
    from bricks_core.progress import configure_logging

    configure_logging(verbose)
    if preflight_only and not preflight:
        raise UsageError("--preflight-only and --no-preflight ask for nothing together: leave one out.")
    gpus = _check_files(run, store, overrides, gpus)
    rank, (host, port) = meeting.node_rank(node_rank), meeting.rendezvous(rendezvous)
    if rank >= nodes:
        raise UsageError(f"--node-rank {rank} of --nodes {nodes} is none: nodes count from 0.")
    if nodes > 1 and not host:
        raise UsageError(f"{nodes} nodes need a place to meet: give --rendezvous HOST:PORT, a free port on node 0.")
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,128}", rendezvous_id):
        raise UsageError(f"--rendezvous-id {rendezvous_id!r} must be letters, digits, dots, dashes and underscores.")

    arguments = ["-m", "jobs.train_process", "--run", str(run), "--store", store, "--node-rank", str(rank)]
    arguments += [each for override in overrides for each in ("--set", override)]
    arguments += ["--gpus", str(gpus), *(["--node-name", node_name] if node_name else [])]
    arguments += ["--rdma"] * rdma + ["--no-preflight"] * (not preflight) + ["--no-train"] * preflight_only
    arguments += ["--verbose"] * verbose

    # A store that has gone is told in a sentence; torch would add a trace of its own functions each time.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Only now, as it takes seconds: what is wrong above is told at once.
    from bricks_core.nodes.agent import launch, set_defaults

    num_processes = processes or _num_gpus() or 1
    set_defaults(rdma=rdma, num_processes=num_processes, only_preflight=preflight_only)
    met = meeting.Meeting(
        num_nodes=nodes,
        num_processes=num_processes,
        node_rank=rank,
        host=host if nodes > 1 else "127.0.0.1",
        port=port if nodes > 1 else 0,
        name=rendezvous_id or "bricks",
        max_restarts=0 if preflight_only else max_restarts,
        grace_s=grace_s,
        node_name=node_name,
    )
    launch(met, arguments)


def _check_files(run: Path, store: str, overrides: list[str], gpus: int | None) -> int:
    """GPUs that are asked of each node, once everything that was given can be meant.

    Raises UsageError: the run file, preflight.yaml beside it or the store's address cannot be used, on any node and
    however often it is tried.
    """
    from bricks_core.spec.cluster import load_preflight
    from bricks_core.spec.run import load_run
    from bricks_core.storage.places import split_uri

    try:
        loaded = load_run(run, overrides)
        loaded.stage_spec("train")
        load_preflight(run.parent / PREFLIGHT)
        split_uri(store)
    except SpecError as error:
        raise UsageError(str(error)) from None
    return gpus if gpus is not None else loaded.spec.cluster.gpus_per_node or 0


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def main() -> None:
    serve(app)


if __name__ == "__main__":
    main()
