"""Runs in a cluster: bricks submit|status|logs|suspend|resume|retry|cancel|doctor"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bricks_core.errors import ClusterUnavailable, DataError
from jobs.ci import seconds_of
from jobs.entry_point import DEFAULT_STORE, SetFlag, VerboseFlag, commands, serve

if TYPE_CHECKING:
    from bricks_core.cluster.api import Cluster

RunArgument = Annotated[str, typer.Argument(help="The run's name.", metavar="RUN")]
NamespaceFlag = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: the context's.", metavar="NAME", show_default=False)
]
ContextFlag = Annotated[
    str | None, typer.Option("--context", help="Of the kubeconfig. Default: its current one.", metavar="NAME")
]


def submit(
    file: Annotated[Path, typer.Argument(help="The run's YAML, such as k8s/runs/quickstart.yaml.", metavar="FILE")],
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
    namespace: NamespaceFlag = None,
    context: ContextFlag = None,
    suspend: Annotated[bool, typer.Option("--suspend", help="Hand it in without starting it: bricks resume.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; 0 only if it succeeded.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", help="Of --wait, such as 12h.")] = "168h",
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.1, max=600)] = 5.0,
) -> None:
    """Hand a run in to a cluster, or change it there.

    The file is checked first. Of a run that is there already, what differs is changed, and told.
    """
    from bricks_core.cluster.runs import left_out
    from bricks_core.cluster.runs import submit as hand_in
    from bricks_core.cluster.screen import submitted_screen
    from bricks_core.spec.run import load_run, without_gaps

    timeout_s = seconds_of(timeout)
    run = without_gaps(load_run(file, [*overrides, "suspend=true"] if suspend else overrides))
    cluster = _connect(context, namespace)
    came = hand_in(cluster, run)
    if words := left_out(run):
        typer.echo(words, err=True)
    submitted_screen(run.name, cluster.namespace, came, _flags(namespace, context))
    if wait:
        _wait(run.name, namespace, context, timeout_s, every)


def status(
    name: Annotated[str | None, typer.Argument(help="One run; all when left out.", metavar="RUN")] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            envvar="BRICKS_STORE",
            help=f"Where artifacts live. Default: {DEFAULT_STORE}, if it is here; else the cluster is asked.",
            metavar="URI",
        ),
    ] = None,
    in_cluster: Annotated[bool, typer.Option("--cluster", help="Of the runs in the cluster.")] = False,
    namespace: NamespaceFlag = None,
    context: ContextFlag = None,
) -> None:
    """Say how far runs are: the store's, or the cluster's."""
    asks_cluster = in_cluster or namespace is not None or context is not None
    if not asks_cluster and (store is not None or _here_is(name)):
        from bricks_core.pipeline.screen import status_screen
        from bricks_core.storage.places import open_existing

        status_screen(open_existing(store or DEFAULT_STORE, f"run {name}" if name else ""), name)
        return
    try:
        cluster = _connect(context, namespace)
    except ClusterUnavailable as error:
        if asks_cluster or not Path(DEFAULT_STORE).is_dir():
            nothing = "" if asks_cluster else f"There is no store here ({DEFAULT_STORE}), and no cluster to ask. "
            raise ClusterUnavailable(f"{nothing}{error}") from None
        raise DataError(
            f"{DEFAULT_STORE} has no run {name}, and no cluster is there to ask; bricks status shows what is here."
        ) from None
    _cluster_status(cluster, name, _flags(namespace, context))


def logs(
    run: RunArgument,
    stage: Annotated[
        str,
        typer.Argument(help="ingest, clip, score, caption, latents, train, evaluate, or preflight.", metavar="STAGE"),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage is at its end.")] = False,
    index: Annotated[int | None, typer.Option("--index", help="Of one shard or node alone.", min=0)] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Which try; the last when left out.", min=1)] = None,
    tail: Annotated[int | None, typer.Option("--tail", help="The last so many lines of each pod.", min=0)] = None,
    namespace: NamespaceFlag = None,
    context: ContextFlag = None,
) -> None:
    """Print what the pods of a stage wrote, and how they ended."""
    from bricks_core.cluster.logs import Wanted, follow_logs, read_logs
    from bricks_core.cluster.runs import checked
    from bricks_core.spec.stages import stage_named

    wanted = Wanted(checked(run), stage_named(stage).name if stage != "preflight" else stage, attempt, index, tail)
    cluster = _connect(context, namespace)
    for line in follow_logs(cluster, wanted) if follow else read_logs(cluster, wanted):
        typer.echo(line)


def suspend(run: RunArgument, namespace: NamespaceFlag = None, context: ContextFlag = None) -> None:
    """Stop a run for a while.

    Its pods are ended; what is finished is kept, and no try is spent.
    """
    from bricks_core.cluster.runs import set_field
    from bricks_core.cluster.screen import next_commands

    flags = _flags(namespace, context)
    if set_field(_connect(context, namespace), run, "suspend", True):
        typer.echo(f"Run {run} is being suspended: its pods stop where their last finished item, or checkpoint, is.")
    else:
        typer.echo(f"Run {run} is suspended already.")
    next_commands([(f"bricks resume {run}{flags}", "go on from there")])


def resume(run: RunArgument, namespace: NamespaceFlag = None, context: ContextFlag = None) -> None:
    """Go on with a suspended run."""
    from bricks_core.cluster.runs import set_field
    from bricks_core.cluster.screen import next_commands

    flags = _flags(namespace, context)
    if set_field(_connect(context, namespace), run, "suspend", False):
        typer.echo(f"Run {run} goes on from what is finished.")
    else:
        typer.echo(f"Run {run} is not suspended.")
    next_commands([(f"bricks status {run} --cluster{flags}", "how far it is, and why it waits")])


def retry(
    run: RunArgument,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Do again what the installed version makes otherwise (bricks status says what)."),
    ] = False,
    namespace: NamespaceFlag = None,
    context: ContextFlag = None,
) -> None:
    """Begin a run again that failed for good, or was cancelled.

    Once, and with the images that are installed now. What is finished stays finished.
    """
    from bricks_core.cluster.runs import retry as begin_again
    from bricks_core.cluster.screen import next_commands

    flags = _flags(namespace, context)
    was = begin_again(_connect(context, namespace), run, renew=renew)
    what = "does again what the installed version makes otherwise" if renew else "begins again where it stopped"
    typer.echo(f"Run {run} ({was.lower()}) {what}.")
    next_commands([(f"bricks status {run} --cluster{flags}", "how far it is, and why it waits")])


def cancel(
    run: RunArgument,
    namespace: NamespaceFlag = None,
    context: ContextFlag = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; nobody is asked in a pipe.")] = False,
) -> None:
    """End a run for good.

    What is finished is kept, and found by another run that asks the same. Only bricks retry begins it again.
    """
    from bricks_core.cluster.runs import get, set_field
    from bricks_core.cluster.screen import next_commands

    cluster = _connect(context, namespace)
    get(cluster, run)
    if not yes and sys.stdin.isatty():
        typer.confirm(
            f"End run {run} in namespace {cluster.namespace} for good? (bricks suspend stops it for a while)",
            abort=True,
        )
    if set_field(cluster, run, "cancel", True):
        typer.echo(
            f"Run {run} is being cancelled: its pods stop. Every finished item, checkpoint and artifact is kept."
        )
    else:
        typer.echo(f"Run {run} is cancelled already.")
    flags = _flags(namespace, context)
    next_commands(
        [
            (f"bricks retry {run}{flags}", "begin it again: what is done is found"),
            (
                f"kubectl delete brickrun {run} --namespace {cluster.namespace}",
                "remove it and its Jobs; artifacts stay in the store",
            ),
        ]
    )


def doctor(
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="The cluster's profile. Default: the one the chart installed.", metavar="FILE"),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", envvar="BRICKS_STORE", help="Default: the profile's.", metavar="URI")
    ] = None,
    namespace: NamespaceFlag = None,
    context: ContextFlag = None,
    verbose: VerboseFlag = False,
) -> None:
    """Look whether a cluster has all that a run needs.

    One thing after the other, each with the way to mend it. Nothing is changed.
    """
    from bricks_core.cluster.doctor import Patient, examine, findings_screen
    from bricks_core.controller.crd import schema
    from bricks_core.progress import configure_logging
    from bricks_core.spec.cluster import load_profile

    configure_logging(verbose)
    given = load_profile(profile) if profile else None
    cluster = _connect(context, namespace)
    findings_screen(examine(Patient(cluster, given, store, schema())))


def _cluster_status(cluster: Cluster, name: str | None, flags: str) -> None:
    from bricks_core.cluster.runs import KIND, get
    from bricks_core.cluster.screen import run_screen, runs_screen

    if name is not None:
        run_screen(get(cluster, name), cluster.namespace, flags)
    else:
        runs_screen(cluster.list(KIND), cluster.namespace)


def _here_is(name: str | None) -> bool:
    """Whether the store in this folder is what is meant."""
    if not Path(DEFAULT_STORE).is_dir():
        return False
    if name is None:
        return True
    from bricks_core.pipeline.points import run_names
    from bricks_core.storage.places import open_store

    return name in run_names(open_store(DEFAULT_STORE))


def _wait(name: str, namespace: str | None, context: str | None, timeout_s: float, every_s: float) -> None:
    from bricks_core.cluster.runs import condition, wait_for_run, why_so

    typer.echo("")
    run = wait_for_run(
        lambda: _connect(context, namespace), name, timeout_s=timeout_s, tell=typer.echo, every_s=every_s
    )
    if condition(run, "Succeeded").get("status") != "True":
        raise DataError(f"Run {name} did not succeed. {why_so(run)}")


def _connect(context: str | None, namespace: str | None) -> Cluster:
    from bricks_core.cluster.api import connect
    from bricks_core.cluster.runs import checked

    return connect(context, checked(namespace, "namespace") if namespace is not None else None)


def _flags(namespace: str | None, context: str | None) -> str:
    """The same flags, for the commands that are printed."""
    return (f" --namespace {namespace}" if namespace else "") + (f" --context {context}" if context else "")


app = commands("Runs in a cluster.")
for command in (submit, status, logs, suspend, resume, retry, cancel, doctor):
    app.command()(command)

if __name__ == "__main__":
    serve(app)
