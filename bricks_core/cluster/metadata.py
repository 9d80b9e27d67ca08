"""What is written on objects: whose they are, by labels and owner, and in which queue they wait."""

from __future__ import annotations

from bricks_core.cluster.launcher import (
    ATTEMPT_LABEL,
    CACHE_KEY_ANNOTATION,
    CIRCUMSTANCES_ANNOTATION,
    RUN_LABEL,
    STAGE_LABEL,
    WORK_ANNOTATION,
    Object,
    Task,
)
from bricks_core.cluster.needs import needs
from bricks_core.cluster.pin import GENERATION_ANNOTATION, RENEW_ANNOTATION, RETRY_ANNOTATION, VERSION_ANNOTATION

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
"""On Kueue's Workload: which job it speaks of."""


def component(task: Task) -> str:
    return "preflight" if task.preflight_only else task.stage


def labels(task: Task) -> dict[str, str]:
    """On the workload and on its pods."""
    return {
        "app.kubernetes.io/name": "bricks",
        "app.kubernetes.io/component": component(task),
        "app.kubernetes.io/managed-by": "bricks-controller" if task.owner else "bricks",
        RUN_LABEL: task.run.name,
        STAGE_LABEL: component(task),
        ATTEMPT_LABEL: str(task.attempt),
    }


def metadata(task: Task, *, queued: bool = True) -> Object:
    """The workload's. `queued`: with the label that puts it into Kueue's queue, where one is set."""
    queue = _queue(task) if queued else ""
    return {
        "name": task.workload_name,
        "labels": labels(task) | ({QUEUE_LABEL: queue} if queue else {}),
        "annotations": {CACHE_KEY_ANNOTATION: task.cache_key, CIRCUMSTANCES_ANNOTATION: task.circumstances}
        | ({WORK_ANNOTATION: task.work} if task.owner else {})
        | _begun(task),
    } | owners(task)


def _begun(task: Task) -> dict[str, str]:
    """For which generation, and which beginning, of the run a child was made."""
    if task.pin is None:
        return {}
    told = {
        GENERATION_ANNOTATION: str(task.pin.generation),
        VERSION_ANNOTATION: str(task.pin.stage(task.stage).version),
        RETRY_ANNOTATION: task.pin.retry,
        RENEW_ANNOTATION: task.pin.renew,
    }
    return {name: value for name, value in told.items() if value}


def owners(task: Task) -> Object:
    """The BrickRun that an object goes with."""
    if task.owner is None:
        return {}
    return {
        "ownerReferences": [
            {
                "apiVersion": task.run.apiVersion,
                "kind": task.run.kind,
                "name": task.owner.name,
                "uid": task.owner.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]
    }


def _queue(task: Task) -> str:
    asked, queues = task.run.spec.cluster.queue, task.profile.queues
    if asked is not None:
        return asked
    return queues.gpu if needs(task).gpus else queues.cpu
