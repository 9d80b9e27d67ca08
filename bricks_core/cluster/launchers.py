"""Which launcher runs a stage of a run on a cluster, and which one made a workload."""

from __future__ import annotations

from bricks_core.cluster.indexed_job import IndexedJob
from bricks_core.cluster.launcher import Launcher, Object
from bricks_core.cluster.plain_job import PlainJob
from bricks_core.cluster.pytorchjob import PyTorchJob
from bricks_core.cluster.trainjob import TrainJob
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import BrickRun

TRAINERS: dict[str, Launcher] = {"pytorchjob": PyTorchJob(), "trainjob": TrainJob(), "job": PlainJob()}
"""By their names in the run file and in the profile."""


def launcher_for(run: BrickRun, profile: ClusterProfile, stage: str) -> Launcher:
    """Who runs a stage. One node needs nobody who brings several together, unless the run itself asks for it."""
    asked = run.spec.cluster.launcher
    nodes = profile.train.nodes if run.spec.cluster.nodes is None else run.spec.cluster.nodes
    if stage != "train" or (nodes == 1 and asked is None):
        return IndexedJob()
    return TRAINERS[asked or profile.train.launcher]


def launcher_of(workload: Object) -> Launcher:
    """Who made a workload, by its kind; a Job whose pods have a subdomain trains on several nodes."""
    if workload["kind"] == PyTorchJob.kind:
        return TRAINERS["pytorchjob"]
    if workload["kind"] == TrainJob.kind:
        return TRAINERS["trainjob"]
    return TRAINERS["job"] if workload["spec"]["template"]["spec"].get("subdomain") else IndexedJob()
