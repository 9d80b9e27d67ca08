"""Evaluations that a CI asks for: bricks ci render|wait|report"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bricks_core.errors import UsageError
from jobs.entry_point import SetFlag, VerboseFlag, commands, serve

app = commands("Evaluate a commit on a cluster, from any CI.")

JobFlag = Annotated[Path, typer.Option("--job", help="What bricks ci render wrote.", metavar="FILE")]
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@app.command()
def render(
    run: Annotated[
        Path,
        typer.Option("--run", help="The trained run's YAML with the evaluation that is wanted.", metavar="FILE"),
    ],
    sha: Annotated[str, typer.Option("--sha", help="The commit.", metavar="SHA")],
    suite: Annotated[str, typer.Option("--suite", help="Which evaluation, if there are several.")] = "default",
    attempt: Annotated[int, typer.Option("--attempt", help="Which try, from 1.", min=1, max=9999)] = 1,
    image_digest: Annotated[
        str, typer.Option("--image-digest", help="Of the evaluate image.", metavar="sha256:…", show_default=False)
    ] = "",
    profile: Annotated[Path | None, typer.Option("--profile", help="The cluster's profile.", metavar="FILE")] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Written into the objects.")] = "",
    any_code: Annotated[
        bool, typer.Option("--any-code", help="Take what another commit sampled, where it is there.")
    ] = False,
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
) -> None:
    """Print the YAML of the Job.

    It is called eval-<sha>-<suite>-r<attempt>, and the same flags print the same bytes.
    """
    from bricks_core.cluster.evaluation import Asked
    from bricks_core.cluster.evaluation import render as rendered
    from bricks_core.cluster.runs import left_out
    from bricks_core.spec.cluster import ClusterProfile, load_profile
    from bricks_core.spec.run import load_run

    cluster = load_profile(profile) if profile else ClusterProfile()
    loaded = load_run(run, overrides)
    if words := left_out(loaded):
        typer.echo(words, err=True)
    typer.echo(rendered(Asked(loaded, cluster, sha, suite, attempt, image_digest, namespace, any_code)), nl=False)


@app.command()
def wait(
    job: JobFlag,
    timeout: Annotated[str, typer.Option("--timeout", help="At most so long, such as 110m.")] = "110m",
    logs: Annotated[bool, typer.Option("--logs", help="Print what its pods write.")] = False,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the file's.")] = None,
    context: Annotated[str | None, typer.Option("--context", help="Of the kubeconfig.")] = None,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.1, max=600)] = 5.0,
    verbose: VerboseFlag = False,
) -> None:
    """Wait until the Job is at its end, and say why it waits.

    Ends with 0 when it is complete and when it has failed: which of both it means is for the report to say.
    """
    from bricks_core.cluster.api import connect
    from bricks_core.cluster.evaluation import load_evaluation
    from bricks_core.cluster.follow_evaluation import wait_for_evaluation
    from bricks_core.progress import configure_logging

    configure_logging(verbose)
    timeout_s = seconds_of(timeout)
    loaded = load_evaluation(job)
    wait_for_evaluation(
        lambda: connect(context, namespace or loaded.namespace),
        loaded,
        timeout_s=timeout_s,
        every_s=every,
        logs=logs,
        tell=typer.echo,
    )


@app.command()
def report(
    job: JobFlag,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it here; else it is printed.", metavar="FILE")
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 0 passed, 1 a gate is not reached, 75 no verdict.")
    ] = False,
    store: Annotated[
        str,
        typer.Option(
            "--store", help="Where the report is. Default: the Job's store.", envvar="BRICKS_STORE", metavar="URI"
        ),
    ] = "",
    web: Annotated[str, typer.Option("--web", help="Where the store is seen in a browser, for links.")] = "",
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Default: the file's.")] = None,
    context: Annotated[str | None, typer.Option("--context", help="Of the kubeconfig.")] = None,
) -> None:
    """Write what the evaluation came to, as Markdown.

    The verdict is report.json, as it is in the store, held against the gates of the run.
    """
    from bricks_core.cluster.api import connect
    from bricks_core.cluster.evaluation import load_evaluation
    from bricks_core.cluster.follow_evaluation import report_on
    from bricks_core.errors import GateFailed, SpecError, TryLater

    if web and not re.match(r"https?://", web):
        raise UsageError(f"--web {web} is no address of a browser: write https://….")
    loaded = load_evaluation(job)
    result = report_on(loaded, store or loaded.store_uri, lambda: connect(context, namespace or loaded.namespace), web)
    if out is None:
        typer.echo(result.markdown, nl=False)
    else:
        try:
            out.write_text(result.markdown, encoding="utf-8")
        except OSError as error:
            raise SpecError(f"{out} cannot be written: {error.strerror}.") from None
        typer.echo(f"{result.words} The table is in {out}.")
    if exit_code and result.verdict is None:
        raise TryLater(result.words)
    if exit_code and not result.verdict.passed:  # type: ignore[union-attr]
        raise GateFailed(result.words)


def seconds_of(text: str) -> float:
    """110m, 2h, 90s or 90 as seconds.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    if match is None:
        raise UsageError(f"--timeout {text} is no time: write 110m, 2h or 90s.")
    return float(match[1]) * _UNITS[match[2]]


if __name__ == "__main__":
    serve(app)
