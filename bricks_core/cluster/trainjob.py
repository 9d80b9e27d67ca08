"""A TrainJob of Kubeflow Trainer (v2.2 and later): train on several nodes.

It says little itself: what a node is stands in a TrainingRuntime, which we render beside it, and which becomes a
JobSet. The names `node` of the replicated job and of its container are the Trainer's own.
"""

from __future__ import annotations

from collections import Counter

from bricks_core.cluster.indexed_job import INDEX_LABEL, exit_code_rules
from bricks_core.cluster.launcher import Launcher, Object, Observation, Task
from bricks_core.cluster.metadata import metadata
from bricks_core.cluster.needs import needs, num_nodes, num_processes
from bricks_core.cluster.observe import Progress, condition, has_ended, observe
from bricks_core.cluster.pod import pod_template, train_environment
from bricks_core.cluster.run_file import run_file
from bricks_core.errors import WRONG_DATA, WRONG_FOR_ALL


class TrainJob(Launcher):
    """trainer.kubeflow.org/v1alpha1 TrainJob, with a TrainingRuntime of its own."""

    api_version = "trainer.kubeflow.org/v1alpha1"
    kind = "TrainJob"

    def render(self, task: Task) -> list[Object]:
        config = run_file(task)
        workload = {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": metadata(task),
            "spec": {
                "runtimeRef": {
                    "apiGroup": "trainer.kubeflow.org",
                    "kind": "TrainingRuntime",
                    "name": task.workload_name,
                },
                "activeDeadlineSeconds": needs(task).deadline_s,
                "trainer": {"numNodes": num_nodes(task), "numProcPerNode": num_processes(task)},
            },
        }
        return [config, _runtime(task, config), workload]

    def observe(self, workload: Object, pods: list[Object], admission: Object | None = None) -> Observation:
        progress = _progress(workload, pods)
        return observe(workload, pods, admission, progress, container="node", index_label=INDEX_LABEL, gang=True)


def _runtime(task: Task, config: Object) -> Object:
    name = task.workload_name
    env = train_environment(task, rendezvous=f"{name}-node-0-0.{name}", rank_label=INDEX_LABEL)
    alone = task.owner is None and not task.preflight_only
    restarts = task.profile.train.max_restarts + 1 if alone else 0
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    runtime_labels = {"trainer.kubeflow.org/framework": "torch"}
    about = metadata(task, queued=False)
    return {
        "apiVersion": TrainJob.api_version,
        "kind": "TrainingRuntime",
        "metadata": about | {"labels": about["labels"] | runtime_labels},
        "spec": {
            "mlPolicy": {"numNodes": num_nodes(task), "torch": {}},
            "template": {
                # No ttlSecondsAfterFinished: Trainer would make the JobSet again that is removed (trainer#2981, #3779).
                "spec": {
                    "failurePolicy": {
                        "maxRestarts": restarts,
                        # All nodes anew, when the last pod of the old ones is gone: what NCCL wants.
                        "restartStrategy": "BlockingRecreate",
                        "rules": [
                            {
                                "name": "WrongForAll",
                                "action": "FailJobSet",
                                "onJobFailureReasons": ["PodFailurePolicy"],
                            }
                        ],
                    },
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "template": {
                                "metadata": {"labels": step},
                                "spec": {
                                    "backoffLimit": 0,
                                    "podReplacementPolicy": "Failed",
                                    "podFailurePolicy": {
                                        "rules": exit_code_rules("node", FailJob=WRONG_FOR_ALL + WRONG_DATA)
                                    },
                                    "template": pod_template(task, config, container="node", env=env),
                                },
                            },
                        }
                    ],
                }
            },
        },
    }


def _progress(workload: Object, pods: list[Object]) -> Progress:
    """Its nodes are counted over pods: what jobsStatus counts are the JobSet's Jobs, and all nodes are one of them."""
    status, spec = workload.get("status") or {}, workload.get("spec") or {}
    phases = Counter((pod.get("status") or {}).get("phase") for pod in pods)
    done, wanted = condition(workload, "Complete"), int((spec.get("trainer") or {}).get("numNodes") or 1)
    return Progress(
        succeeded=done,
        failed=condition(workload, "Failed"),
        suspended=bool(spec.get("suspend")),
        noticed=bool(status),
        operator="Kubeflow Trainer 2.2 or later",
        num_wanted=wanted,
        num_active=sum(not has_ended(pod) for pod in pods),
        num_succeeded=wanted if done else phases["Succeeded"],
        num_failed=phases["Failed"],
    )
