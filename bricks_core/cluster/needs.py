"""What the pods of a task get: what the run asks for, and else what the cluster's profile says."""

from __future__ import annotations

from bricks_core.cluster.launcher import Task
from bricks_core.spec.cluster import StageProfile, StageSettings
from bricks_core.spec.stages import STAGES

PREFLIGHT_S = 1800
"""A preflight alone is given up after so long, waiting for its image included."""


def needs(task: Task) -> StageProfile:
    """What each pod of the task gets: the profile's, where the run does not say otherwise."""
    profile, cluster = task.profile, task.run.spec.cluster
    asked = cluster.stages.get(task.stage, StageSettings())  # type: ignore[call-overload]
    changes = {name: value for name, value in asked.model_dump().items() if value is not None}
    if not STAGES[task.stage].sharded:
        changes["shards"] = 1
    if task.stage != "train":
        return profile.stage(task.stage).model_copy(update=changes)
    train = profile.train
    gpus = train.gpus_per_node if cluster.gpus_per_node is None else cluster.gpus_per_node
    given = StageProfile(
        cpu=train.cpu, memory=train.memory, scratch=train.scratch, gpus=gpus, deadline_s=train.deadline_s
    )
    if task.preflight_only:
        changes["deadline_s"] = PREFLIGHT_S
    return given.model_copy(update=changes)


def num_nodes(task: Task) -> int:
    """Pods that work as one: train's nodes."""
    if task.stage != "train":
        return 1
    nodes = task.run.spec.cluster.nodes
    return task.profile.train.nodes if nodes is None else nodes


def num_processes(task: Task) -> int:
    """Of each node: one a GPU, or one on the CPU."""
    return max(1, needs(task).gpus)


def image(task: Task) -> str:
    return task.image or task.profile.images.of(task.stage)
