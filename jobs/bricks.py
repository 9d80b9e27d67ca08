"""bricks: from a folder of films to a fine-tuned text-to-video model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from bricks_core.errors import GateFailed, Stopped, UsageError
from jobs import checkpoint, ci, cluster, dataset
from jobs.entry_point import DEFAULT_STORE, SetFlag, StoreFlag, VerboseFlag, commands, listen, serve
from jobs.generate import generate
from jobs.render import render
from jobs.rights import lineage, takedown
from jobs.store import app as store_app

if TYPE_CHECKING:
    from bricks_core.spec.run import BrickRun
    from bricks_core.storage.store import Store

app = commands(__doc__)

FileArgument = Annotated[Path, typer.Argument(help="The run's YAML, such as k8s/runs/quickstart.yaml.", metavar="FILE")]
UntilFlag = Annotated[str | None, typer.Option("--until", help="Stop after this stage.", metavar="STAGE")]
GateFlag = Annotated[
    bool, typer.Option("--gate", help="End with exit code 1 where one of the run's gates is not reached.")
]


@app.command()
def run(
    file: FileArgument,
    store: StoreFlag = DEFAULT_STORE,
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
    until: UntilFlag = None,
    so_far: Annotated[
        bool,
        typer.Option("--so-far", help="The same as bricks evaluate FILE: trains nothing, whatever is left to do."),
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Leave, with exit code 75, where another process is at this run.")
    ] = False,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="Make anew what earlier versions of Bricks have made for it and this one makes otherwise."
        ),
    ] = False,
    gate: GateFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Run what is not done yet of a run, and tell what came of it.

    With several GPUs, training has a process for each; BRICKS_PROCESSES says another number.
    """
    from bricks_core.pipeline.local import run_path
    from bricks_core.pipeline.notify import notifies
    from bricks_core.pipeline.screen import announce, final_screen
    from bricks_core.progress import configure_logging
    from bricks_core.spec.run import load_run
    from bricks_core.storage.places import open_existing, open_store

    configure_logging(verbose)
    loaded = load_run(file, overrides)
    _check_gates(loaded, gate)
    if gate and (until or "evaluate") != "evaluate":
        raise UsageError("--gate holds the run against its gates, which are judged by its report: leave --until out.")
    if so_far:
        if until is not None or renew:
            raise UsageError("--so-far trains nothing and goes up to the report: leave --until and --renew out.")
        _evaluate(loaded, open_existing(store), gate=gate)
        return
    opened = open_store(store)

    def train() -> None:
        from bricks_core.nodes.here import train_here  # torch

        train_here(loaded, opened, verbose=verbose)

    how = {"wait": not no_wait, "renew": renew, "train": train}
    manifests = notifies(run_path)(loaded, opened, until, tell=announce, **how)
    outcome = final_screen(file, loaded, opened, manifests, overrides)
    if gate and outcome is not None and not outcome.passed:
        raise GateFailed(outcome.words)


@app.command()
def evaluate(
    wanted: Annotated[
        str, typer.Argument(help="The run's YAML, or the name of a run that the store has.", metavar="RUN")
    ],
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Sample every checkpoint as it is committed, until the training is finished."
        ),
    ] = False,
    every: Annotated[
        float, typer.Option("--every", help="Of --follow: seconds between two looks.", min=0.1, max=3600)
    ] = 10.0,
    store: StoreFlag = DEFAULT_STORE,
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
    gate: GateFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Evaluate a run's training, finished or not, beside whoever trains.

    Of one under way it makes the report of now. It trains nothing, and the run's own evaluation finds its samples. With
    --follow, Ctrl-C or SIGTERM makes the report of what is sampled by then; a second one leaves at once.
    """
    from bricks_core.pipeline.find import find_run
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_existing

    configure_logging(verbose)
    opened = open_existing(store)
    loaded = find_run(opened, wanted, overrides)
    _check_gates(loaded, gate)
    _evaluate(loaded, opened, gate=gate, every_s=every if follow else None)


def _evaluate(loaded: BrickRun, opened: Store, *, gate: bool, every_s: float | None = None) -> None:
    """The report of a training so far; of a finished one, its own. `every_s`: follow it until then."""
    from bricks_core.pipeline.follow import evaluate_sampled, follow
    from bricks_core.pipeline.screen import announce, so_far_screen
    from bricks_core.pipeline.so_far import evaluate_so_far

    if every_s is None:
        manifests = evaluate_so_far(loaded, opened, tell=announce)
    else:
        pause_s = every_s
        try:
            manifests = follow(loaded, opened, tell=announce, pause=lambda: time.sleep(pause_s))
        except Stopped:
            listen()
            typer.echo("Stopped following. Making the report of what is sampled; again leaves at once.", err=True)
            if (sampled := evaluate_sampled(loaded, opened, tell=announce)) is None:
                typer.echo("No checkpoint after the beginning is sampled, so there is none.", err=True)
            else:
                so_far_screen(loaded, opened, sampled)
            raise
    outcome = so_far_screen(loaded, opened, manifests)
    if gate and not outcome.passed:
        raise GateFailed(outcome.words)


def _check_gates(loaded: BrickRun, gate: bool) -> None:
    if gate and not loaded.spec.gates:
        raise UsageError("--gate holds the run against its gates, and it has none: write spec.gates.")


@app.command()
def plan(
    file: FileArgument,
    store: StoreFlag = DEFAULT_STORE,
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
    until: UntilFlag = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Read every object to check it.")] = False,
) -> None:
    """Say what a run would do and why, and how many clips each training bucket can use."""
    from bricks_core.pipeline.plan import make_plan
    from bricks_core.pipeline.screen import plan_screen
    from bricks_core.spec.run import load_run
    from bricks_core.storage.places import open_store

    loaded = load_run(file, overrides)
    opened = open_store(store)
    steps = make_plan(loaded, opened, until, thorough=thorough)
    plan_screen(loaded, opened, steps, file, overrides, until)


@app.command()
def show(
    artifact: Annotated[str, typer.Argument(help="RUN/STAGE, STAGE/DIGEST (its first digits do), or an item's key.")],
    store: StoreFlag = DEFAULT_STORE,
    rows: Annotated[int, typer.Option(help="Rows to show of each table.", min=0)] = 5,
    thorough: Annotated[bool, typer.Option("--thorough", help="Read every object to check it.")] = False,
) -> None:
    """Show an artifact: its counts and reasons, the head of its tables, whether it is whole. Or what made an item."""
    from bricks_core.pipeline.find import parts_of
    from bricks_core.pipeline.screen import artifact_screen
    from bricks_core.storage.places import open_existing

    parts_of(artifact)  # a slip of the hand is told before a store that is not there
    artifact_screen(open_existing(store, artifact), artifact, rows, thorough)


@app.command()
def gc(
    store: StoreFlag = DEFAULT_STORE,
    delete: Annotated[bool, typer.Option("--delete", help="Really delete; without it, only say.")] = False,
    paid: Annotated[bool, typer.Option("--paid", help="Also answers that cost money.")] = False,
    keep_days: Annotated[
        float, typer.Option("--keep-days", help="What was written within so many days stays.", min=0)
    ] = 14.0,
) -> None:
    """Find what nothing reaches any more: no run, no work under way, and not written within the last days."""
    from bricks_core.pipeline.garbage import collect
    from bricks_core.pipeline.screen import garbage_command, garbage_screen
    from bricks_core.storage.places import open_existing

    opened = open_existing(store)
    garbage = collect(opened, delete=delete, paid=paid, keep_days=keep_days)
    garbage_screen(garbage, deleted=delete, command=garbage_command(opened, paid=paid, keep_days=keep_days))


app.command()(generate)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(dataset.app, name="dataset")
app.add_typer(store_app, name="store")
app.command()(render)
app.command()(lineage)
app.command()(takedown)
for command in (
    cluster.submit,
    cluster.status,
    cluster.logs,
    cluster.suspend,
    cluster.resume,
    cluster.retry,
    cluster.cancel,
):
    app.command()(command)
app.command()(cluster.doctor)
app.add_typer(ci.app, name="ci")
app.add_typer(ci.app, name="eval", hidden=True)  # as it was called


@app.command()
def schema(
    crd: Annotated[bool, typer.Option("--crd", help="As Kubernetes wants it: a CustomResourceDefinition.")] = False,
) -> None:
    """Print the run file's JSON schema, for editors."""
    if crd:
        from bricks_core.controller.crd import crd_yaml

        typer.echo(crd_yaml(), nl=False)
        return
    from bricks_core.spec.run import run_schema

    typer.echo(run_schema(), nl=False)


def main() -> NoReturn:
    serve(app)


if __name__ == "__main__":
    main()
