"""A PyTorchJob of Kubeflow's Training Operator (v1, release 1.9): train on several nodes.

What the operator does with one was read in its source at v1.9.4 (pkg/controller.v1/pytorch): workers alone with an
elastic policy have one set of pods, no init container, and meet over c10d. It calls the job done as soon as one
worker is, and ends the others: so no process of ours ends before the artifact is there (pipeline/local.py).
"""

from __future__ import annotations

from bricks_core.cluster.indexed_job import KEPT_FOR_S
from bricks_core.cluster.launcher import Launcher, Object, Observation, Task
from bricks_core.cluster.metadata import metadata
from bricks_core.cluster.needs import needs, num_nodes, num_processes
from bricks_core.cluster.observe import Progress, condition, observe
from bricks_core.cluster.pod import RENDEZVOUS_PORT, pod_template, train_environment
from bricks_core.cluster.run_file import run_file

INDEX_LABEL = "training.kubeflow.org/replica-index"
JOIN_TIMEOUT_S = 1800
"""How long the first node waits for the others: longer than a cold node needs to fetch the image."""


class PyTorchJob(Launcher):
    """kubeflow.org/v1 PyTorchJob, workers only."""

    api_version = "kubeflow.org/v1"
    kind = "PyTorchJob"

    def render(self, task: Task) -> list[Object]:
        config, name, nodes = run_file(task), task.workload_name, num_nodes(task)
        env = train_environment(task, rendezvous=f"{name}-worker-0", rank_label=INDEX_LABEL)
        # The replica says how a pod is restarted; in the template it would be overwritten, with a warning.
        template = pod_template(task, config, container="pytorch", restart_policy=None, env=env)
        alone = task.owner is None and not task.preflight_only
        restarts = task.profile.train.max_restarts
        workload = {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": metadata(task),
            "spec": {
                "nprocPerNode": str(num_processes(task)),
                "elasticPolicy": {
                    "minReplicas": nodes,
                    "maxReplicas": nodes,
                    "maxRestarts": 0 if task.preflight_only else restarts,
                    "rdzvBackend": "c10d",
                    "rdzvId": name,
                    "rdzvPort": RENDEZVOUS_PORT,
                    "rdzvConf": [{"key": "join_timeout", "value": str(JOIN_TIMEOUT_S)}],
                },
                "runPolicy": {
                    # The operator's default leaves the pods of a failed job running, with their GPUs (trainer#1579).
                    "cleanPodPolicy": "Running",
                    "activeDeadlineSeconds": needs(task).deadline_s,
                    # It counts the restarts of all pods together, and they all restart together.
                    **({"backoffLimit": (restarts + 1) * nodes} if alone else {}),
                    **({} if task.owner else {"ttlSecondsAfterFinished": KEPT_FOR_S}),
                },
                "pytorchReplicaSpecs": {
                    "Worker": {
                        "replicas": nodes,
                        # The controller makes a new job of a failed one, on other nodes where it must; with nobody to
                        # do that, the pods start again where they are and go on from the last checkpoint.
                        "restartPolicy": "OnFailure" if alone else "Never",
                        "template": template,
                    }
                },
            },
        }
        return [config, workload]

    def observe(self, workload: Object, pods: list[Object], admission: Object | None = None) -> Observation:
        return observe(
            workload, pods, admission, _progress(workload), container="pytorch", index_label=INDEX_LABEL, gang=True
        )


def _progress(workload: Object) -> Progress:
    status, spec = workload.get("status") or {}, workload.get("spec") or {}
    workers = (status.get("replicaStatuses") or {}).get("Worker") or {}
    wanted = ((spec.get("pytorchReplicaSpecs") or {}).get("Worker") or {}).get("replicas") or 1
    return Progress(
        succeeded=condition(workload, "Succeeded"),
        failed=condition(workload, "Failed"),
        suspended=bool((spec.get("runPolicy") or {}).get("suspend")),
        noticed=bool(status.get("conditions")),
        operator="Kubeflow's Training Operator 1.9",
        num_wanted=int(wanted),
        num_active=int(workers.get("active") or 0),
        num_succeeded=int(workers.get("succeeded") or 0),
        num_failed=int(workers.get("failed") or 0),
    )
