"""Nodes that train together where no operator is: an Indexed Job of one pod a node, and a headless Service."""

from __future__ import annotations

from bricks_core.cluster.indexed_job import INDEX_LABEL, IndexedJob, job, progress
from bricks_core.cluster.launcher import Object, Observation, Task
from bricks_core.cluster.metadata import labels, owners
from bricks_core.cluster.needs import num_nodes
from bricks_core.cluster.observe import observe
from bricks_core.cluster.pod import RENDEZVOUS_PORT, pod_template, train_environment
from bricks_core.cluster.run_file import run_file


class PlainJob(IndexedJob):
    """The Service gives the first pod a name, <job>-0.<service>, which the others meet at."""

    def render(self, task: Task) -> list[Object]:
        config, name, nodes = run_file(task), task.workload_name, num_nodes(task)
        env = train_environment(task, rendezvous=f"{name}-0.{name}", rank_label=INDEX_LABEL)
        template = pod_template(task, config, env=env, subdomain=name)
        return [config, _service(task), job(task, template, nodes, nodes, gang=True)]

    def observe(self, workload: Object, pods: list[Object], admission: Object | None = None) -> Observation:
        return observe(
            workload, pods, admission, progress(workload), container="main", index_label=INDEX_LABEL, gang=True
        )


def _service(task: Task) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": task.workload_name, "labels": labels(task)} | owners(task),
        "spec": {
            "clusterIP": "None",
            "selector": {"batch.kubernetes.io/job-name": task.workload_name},
            # The nodes look for the first one while it is still starting.
            "publishNotReadyAddresses": True,
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }
