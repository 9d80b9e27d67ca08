"""Write a stage of a run as YAML for kubectl: python -m jobs.render k8s/runs/quickstart.yaml --stage clip"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bricks_core.errors import UsageError
from jobs.entry_point import SetFlag, commands, serve


def render(
    file: Annotated[Path, typer.Argument(help="The run's YAML.", metavar="FILE")],
    stage: Annotated[str | None, typer.Option(help="Which stage.", metavar="STAGE")] = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="Only look whether train's nodes are fit.")] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="What the cluster is like: k8s/cluster/profile-h100-ib.yaml.", metavar="FILE"),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Written into every object.", metavar="NAMESPACE")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the workload, instead of RUN-STAGE.", metavar="NAME")] = "",
    image: Annotated[str, typer.Option(help="Instead of the profile's.", metavar="REFERENCE")] = "",
    overrides: SetFlag = [],  # noqa: B006 (typer reads it)
) -> None:
    """Write a stage of a run as YAML for `kubectl apply`, which needs no controller."""
    from bricks_core.cluster.manifests import Origin, manifest, plain_task
    from bricks_core.cluster.runs import checked, left_out
    from bricks_core.spec.cluster import ClusterProfile, load_profile
    from bricks_core.spec.run import load_run
    from bricks_core.spec.stages import STAGES, stage_named

    if (stage is None) != preflight:
        raise UsageError(f"Say which stage: --stage with one of {' '.join(STAGES)}, or --preflight.")
    if namespace:
        checked(namespace, "namespace")
    if image and ("://" in image or image != "".join(image.split())):
        raise UsageError(f'"{image}" is no image: write registry.example.org/you/bricks-train:0.1.0, without https://.')
    run = load_run(file, overrides)
    cluster = load_profile(profile) if profile else ClusterProfile()
    wanted = stage_named(stage or "train").name
    task = plain_task(run, wanted, cluster, name=name, image=image, preflight_only=preflight)
    flags = {"--stage": stage, "--profile": profile, "--namespace": namespace, "--name": name, "--image": image}
    given = [f"{flag} {shlex.quote(str(value))}" for flag, value in flags.items() if value]
    given += ["--preflight"] * preflight + [f"--set {shlex.quote(each)}" for each in overrides]
    command = " ".join(["bricks render", shlex.quote(str(file)), *given])
    if words := left_out(run):
        typer.echo(words, err=True)
    typer.echo(manifest(task, namespace, Origin(command=command)), nl=False)


def main() -> NoReturn:
    app = commands(None)
    app.command()(render)
    serve(app)


if __name__ == "__main__":
    main()
