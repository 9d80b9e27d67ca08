"""The controller of a namespace: brings its BrickRuns on, stage by stage (docs/controller.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bricks_core.errors import UsageError
from jobs.entry_point import serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__)
def controller(
    profile: Annotated[
        Path | None,
        typer.Option(envvar="BRICKS_PROFILE", help="The cluster's profile (the chart mounts one).", metavar="FILE"),
    ] = None,
    store: Annotated[
        str,
        typer.Option(envvar="BRICKS_STORE", help="Where artifacts live; else the profile's store.uri.", metavar="URI"),
    ] = "",
    namespace: Annotated[
        str, typer.Option(envvar="BRICKS_NAMESPACE", help="Else the pod's own, or the kubeconfig's.", metavar="NAME")
    ] = "",
    resync_s: Annotated[
        float, typer.Option(envvar="BRICKS_RESYNC_S", help="Look at every run so often.", min=1, metavar="SECONDS")
    ] = 60,
    workers: Annotated[
        int, typer.Option(envvar="BRICKS_WORKERS", help="Runs looked at at the same time.", min=1, max=64)
    ] = 4,
    health_port: Annotated[
        int | None,
        typer.Option(envvar="BRICKS_HEALTH_PORT", help="Answer probes at /healthz there.", min=1, max=65535),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look at every run until nothing changes, and end.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more.")] = False,
) -> None:
    from bricks_core.cluster.api import connect
    from bricks_core.controller.json_log import configure_logging
    from bricks_core.controller.notices import Notices
    from bricks_core.controller.reconcile import Reconciler
    from bricks_core.pipeline.notify import address_given
    from bricks_core.spec.cluster import ClusterProfile, load_profile
    from bricks_core.storage.places import open_store

    configure_logging(verbose)
    if profile is None and not store:
        raise UsageError(
            "Say what the cluster is like: --profile FILE. The chart's: kubectl get configmap bricks-profile -o "
            "jsonpath='{.data.profile\\.yaml}' > profile.yaml."
        )
    cluster_profile = load_profile(profile) if profile else ClusterProfile()
    address = address_given()
    opened = open_store(store or cluster_profile.store.uri)
    cluster = connect(namespace=namespace or None)
    notices = Notices(cluster, opened, address) if address else None
    if once:
        reconciler = Reconciler(cluster, opened, cluster_profile, untold=notices.tell if notices else None)
        for name in reconciler.runs():
            reconciler.reconcile(name)
        return
    from bricks_core.controller.handlers import Shell

    reconciler = Reconciler(cluster, opened, cluster_profile, untold=notices.add if notices else None)
    Shell(reconciler, resync_s=resync_s, workers=workers, notices=notices).serve(health_port)


def main() -> NoReturn:
    serve(app)


if __name__ == "__main__":
    main()
