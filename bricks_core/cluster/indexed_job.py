"""An Indexed Job: every stage but train, in as many pods as it has shards; and train on one node."""

from __future__ import annotations

from bricks_core.cluster.launcher import Launcher, Object, Observation, Task
from bricks_core.cluster.metadata import metadata
from bricks_core.cluster.needs import needs
from bricks_core.cluster.observe import Progress, condition, observe
from bricks_core.cluster.pod import pod_template, train_environment
from bricks_core.cluster.run_file import run_file
from bricks_core.errors import WRONG_DATA, WRONG_FOR_ALL

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
KEPT_FOR_S = 604_800
"""A week: what the controller does not own goes by itself after it, and its logs with it."""
TRIES_PER_SHARD = 3
"""Each shard is tried so often inside one Job; only then is the Job itself tried again."""


class IndexedJob(Launcher):
    """batch/v1 Job, completionMode Indexed: pod i works on shard i."""

    api_version = "batch/v1"
    kind = "Job"

    def render(self, task: Task) -> list[Object]:
        config = run_file(task)
        if task.stage == "train":
            env = train_environment(task, rendezvous="localhost", rank_label=INDEX_LABEL)
            return [config, job(task, pod_template(task, config, env=env))]
        need = needs(task)
        return [config, job(task, pod_template(task, config), need.shards, need.parallelism)]

    def observe(self, workload: Object, pods: list[Object], admission: Object | None = None) -> Observation:
        # What a shard failed with before it was done explains nothing any more.
        done = _indexes(str((workload.get("status") or {}).get("completedIndexes") or ""))
        pods = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(INDEX_LABEL) not in done]
        return observe(workload, pods, admission, progress(workload), container="main", index_label=INDEX_LABEL)


def job(task: Task, template: Object, shards: int = 1, parallelism: int = 1, *, gang: bool = False) -> Object:
    """The Job of a task. `gang`: its pods are nothing without each other, so none is given up alone."""
    # With one pod there is nothing for the Job to decide that the controller, which reads exit codes, does not know
    # better; without a controller the Job is all there is.
    once = task.preflight_only or (task.owner is not None and (gang or shards == 1))
    tries = 1 if once else TRIES_PER_SHARD
    if gang:
        retries: Object = {"backoffLimit": (tries - 1) * shards}
        rules = exit_code_rules(FailJob=WRONG_FOR_ALL + WRONG_DATA)
    else:
        retries = {"backoffLimitPerIndex": tries - 1, "maxFailedIndexes": -(-shards // 4)}
        rules = exit_code_rules(FailJob=WRONG_FOR_ALL, FailIndex=WRONG_DATA)
    return {
        "apiVersion": IndexedJob.api_version,
        "kind": IndexedJob.kind,
        "metadata": metadata(task),
        "spec": {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": shards if gang else min(shards, parallelism),
            **retries,
            # A pod that is being stopped still writes; the next one starts when it is gone.
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": needs(task).deadline_s,
            **({} if task.owner else {"ttlSecondsAfterFinished": KEPT_FOR_S}),
            "podFailurePolicy": {"rules": rules},
            "template": template,
        },
    }


def exit_code_rules(container: str = "main", **codes: tuple[int, ...]) -> list[Object]:
    """A Job's podFailurePolicy: what it does after these exit codes, by action.

    Rules are tried in order. A pod that is stopped from outside has an exit code as well, so that comes first, and
    costs nothing.
    """
    stopped: Object = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [stopped] + [
        {
            "action": action,
            "onExitCodes": {"containerName": container, "operator": "In", "values": sorted(values)},
        }
        for action, values in codes.items()
    ]


def _indexes(text: str) -> set[str]:
    """Kubernetes' way to write many numbers, as 0-3,5."""
    found: set[str] = set()
    for each in filter(None, text.split(",")):
        first, _, last = each.partition("-")
        found.update(map(str, range(int(first), int(last or first) + 1)))
    return found


def progress(workload: Object) -> Progress:
    """How far a Job says it is. SuccessCriteriaMet and FailureTarget are on the way: its pods may still run."""
    status, spec = workload.get("status") or {}, workload.get("spec") or {}
    return Progress(
        succeeded=condition(workload, "Complete"),
        failed=condition(workload, "Failed"),
        suspended=bool(spec.get("suspend")),
        noticed=bool(status),
        operator="Kubernetes' own Job controller (kube-controller-manager)",
        num_wanted=int(spec.get("completions") or 1),
        num_active=int(status.get("active") or 0),
        num_succeeded=int(status.get("succeeded") or 0),
        num_failed=int(status.get("failed") or 0),
    )
