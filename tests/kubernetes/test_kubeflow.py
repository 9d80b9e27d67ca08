"""The double's Kubeflow: PyTorchJobs as Training Operator v1.9.4 runs them, TrainJobs as Trainer 2.2 and later.

What is asserted was read in their source at these tags: pkg/controller.v1/pytorch and pkg/controller.v1/common of
v1.9.4, pkg/runtime/framework/plugins/{torch,jobset} and pkg/controller of v2.3.0. No server at hand has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bricks_core.cluster.api import Cluster, Refused
from tests.kubernetes.crds import kubeflow
from tests.kubernetes.double import Double
from tests.kubernetes.test_contract import bind, conditions

Object = dict[str, Any]


@pytest.fixture
def operated() -> Iterator[Double]:
    with Double(crds=kubeflow()) as server:
        yield server


@pytest.fixture
def cluster(operated: Double) -> Cluster:
    return operated.cluster("bricks")


def pytorchjob(*, replicas: int = 2, restart: str = "Never", **policy: Any) -> Object:
    container = {"name": "pytorch", "image": "x", "command": ["bricks-train"]}
    worker = {
        "replicas": replicas,
        "restartPolicy": restart,
        "template": {"metadata": {"labels": {"bricks.dev/run": "demo"}}, "spec": {"containers": [container]}},
    }
    elastic = {"rdzvBackend": "c10d", "rdzvId": "t", "rdzvPort": 29400, "maxRestarts": 3}
    elastic |= {
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "rdzvConf": [{"key": "join_timeout", "value": "1800"}],
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "t"},
        "spec": {
            "nprocPerNode": "8",
            "elasticPolicy": elastic,
            "runPolicy": {"cleanPodPolicy": "Running", **policy},
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }


def say(cluster: Cluster, pod: str, phase: str, code: int | None = None, restarts: int = 0) -> None:
    """What a kubelet would write."""
    found = cluster.get("Pod", pod)
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
    status = {"name": "pytorch", "image": "x", "imageID": "", "ready": code is None, "restartCount": restarts}
    found["status"] = {"phase": phase, "containerStatuses": [{**status, "state": state}]}
    cluster.write_status(found)


def phases(cluster: Cluster) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["status"]["phase"] for pod in cluster.list("Pod")}


def test_workers_are_named_by_their_index_and_meet_at_the_first(cluster: Cluster) -> None:
    cluster.create(pytorchjob())
    assert sorted(phases(cluster)) == ["t-worker-0", "t-worker-1"]
    assert [each["spec"]["clusterIP"] for each in cluster.list("Service")] == ["None", "None"]
    pod = cluster.get("Pod", "t-worker-1")
    assert pod["metadata"]["labels"]["training.kubeflow.org/replica-index"] == "1"
    assert pod["metadata"]["labels"]["bricks.dev/run"] == "demo"
    env = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert env["PET_RDZV_ENDPOINT"] == "t-worker-0:29400"
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["PET_MAX_RESTARTS"]) == ("2:2", "8", "3")
    assert (env["PET_RDZV_BACKEND"], env["PET_RDZV_CONF"]) == ("c10d", "join_timeout=1800")
    assert "PET_NODE_RANK" not in env
    assert conditions(cluster.get("PyTorchJob", "t")).keys() == {"Created"}


def test_it_runs_as_soon_as_one_worker_does(cluster: Cluster) -> None:
    cluster.create(pytorchjob())
    say(cluster, "t-worker-1", "Running")
    found = cluster.get("PyTorchJob", "t")
    assert conditions(found).keys() == {"Created", "Running"}
    assert found["status"]["replicaStatuses"]["Worker"]["active"] == 1


def test_one_worker_that_succeeds_is_enough_and_the_others_are_killed(operated: Double, cluster: Cluster) -> None:
    cluster.create(pytorchjob())
    for index in (0, 1):
        bind(operated.api(), "/api/v1/namespaces/bricks/pods", f"t-worker-{index}")
        say(cluster, f"t-worker-{index}", "Running")
    say(cluster, "t-worker-1", "Succeeded", 0)
    found = conditions(cluster.get("PyTorchJob", "t"))
    assert found.keys() == {"Created", "Succeeded"}
    assert found["Succeeded"]["reason"] == "PyTorchJobSucceeded"
    assert cluster.get("Pod", "t-worker-0")["metadata"]["deletionTimestamp"]
    assert "deletionTimestamp" not in cluster.get("Pod", "t-worker-1")["metadata"]


@pytest.mark.parametrize(
    ("policy", "left"), [("None", {"t-worker-0", "t-worker-1"}), ("Running", {"t-worker-1"}), ("All", set())]
)
def test_which_pods_are_left_at_the_end(cluster: Cluster, policy: str, left: set[str]) -> None:
    cluster.create(pytorchjob(cleanPodPolicy=policy))
    say(cluster, "t-worker-1", "Failed", 1)
    assert conditions(cluster.get("PyTorchJob", "t")).keys() == {"Created", "Failed"}
    assert phases(cluster).keys() == left


def test_with_on_failure_a_failed_pod_is_made_anew(cluster: Cluster) -> None:
    cluster.create(pytorchjob(restart="OnFailure"))
    old = cluster.get("Pod", "t-worker-0")["metadata"]["uid"]
    say(cluster, "t-worker-0", "Failed", 1)
    assert cluster.get("Pod", "t-worker-0")["metadata"]["uid"] != old
    assert "Restarting" in conditions(cluster.get("PyTorchJob", "t"))
    say(cluster, "t-worker-0", "Running")
    assert conditions(cluster.get("PyTorchJob", "t")).keys() == {"Created", "Running"}


def test_restarts_of_containers_are_counted_together(cluster: Cluster) -> None:
    cluster.create(pytorchjob(restart="OnFailure", backoffLimit=4))
    say(cluster, "t-worker-0", "Running", restarts=2)
    assert "Running" in conditions(cluster.get("PyTorchJob", "t"))
    say(cluster, "t-worker-1", "Running", restarts=2)
    assert "Failed" in conditions(cluster.get("PyTorchJob", "t"))


def test_suspended_it_has_no_pods_and_its_deadline_starts_anew(operated: Double, cluster: Cluster) -> None:
    cluster.create(pytorchjob(suspend=True, activeDeadlineSeconds=60))
    assert phases(cluster) == {}
    operated.advance(600)
    cluster.patch("PyTorchJob", "t", {"spec": {"runPolicy": {"suspend": False}}})
    say(cluster, "t-worker-0", "Running")
    assert conditions(cluster.get("PyTorchJob", "t")).keys() == {"Created", "Running"}
    operated.advance(61)
    assert conditions(cluster.get("PyTorchJob", "t")).keys() == {"Created", "Failed"}


def test_it_goes_after_its_time_with_all_that_is_its(operated: Double, cluster: Cluster) -> None:
    cluster.create(pytorchjob(ttlSecondsAfterFinished=100))
    say(cluster, "t-worker-0", "Succeeded", 0)
    operated.advance(101)
    assert cluster.list("PyTorchJob") == cluster.list("Pod") == cluster.list("Service") == []


def test_processes_per_node_are_a_text(cluster: Cluster) -> None:
    """The CRD's own type: 8 without quotes is refused."""
    asked = pytorchjob()
    asked["spec"]["nprocPerNode"] = 8
    with pytest.raises(Refused, match=r"spec\.nprocPerNode"):
        cluster.create(asked)


# TrainJobs


def runtime(**failure: Any) -> Object:
    container = {"name": "node", "image": "x", "command": ["bricks-train"]}
    pod = {"restartPolicy": "Never", "containers": [container]}
    rules = [{"action": "FailJob", "onExitCodes": {"containerName": "node", "operator": "In", "values": [64]}}]
    job = {"backoffLimit": 0, "podFailurePolicy": {"rules": rules}, "template": {"spec": pod}}
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    replicated = [{"name": "node", "template": {"metadata": {"labels": step}, "spec": job}}]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": "t"},
        "spec": {
            "mlPolicy": {"numNodes": 2, "torch": {}},
            "template": {"spec": {"failurePolicy": failure, "replicatedJobs": replicated}},
        },
    }


def trainjob(**spec: Any) -> Object:
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "t"}
    trainer = {"numNodes": 2, "numProcPerNode": 8}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "t"},
        "spec": {"runtimeRef": reference, "trainer": trainer, **spec},
    }


def end_node(cluster: Cluster, code: int) -> None:
    pod = next(pod for pod in cluster.list("Pod") if pod["status"]["phase"] == "Pending")
    status = {"name": "node", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    status["state"] = {"terminated": {"exitCode": code}}
    pod["status"] |= {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]}
    cluster.write_status(pod)


def test_nodes_are_pods_of_one_indexed_job_that_meet_at_the_first(cluster: Cluster) -> None:
    cluster.create(runtime())
    cluster.create(trainjob())
    pods = cluster.list("Pod")
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["t-node-0-0", "t-node-0-1"]
    assert {pod["spec"]["subdomain"] for pod in pods} == {"t"}
    env = {each["name"]: each for each in pods[0]["spec"]["containers"][0]["env"]}
    assert (env["PET_NNODES"]["value"], env["PET_NPROC_PER_NODE"]["value"]) == ("2", "8")
    assert (env["PET_MASTER_ADDR"]["value"], env["PET_MASTER_PORT"]["value"]) == ("t-node-0-0.t", "29500")
    assert "fieldRef" in env["PET_NODE_RANK"]["valueFrom"]


def test_it_is_complete_when_all_nodes_are(cluster: Cluster) -> None:
    cluster.create(runtime())
    cluster.create(trainjob())
    end_node(cluster, 0)
    assert conditions(cluster.get("TrainJob", "t")) == {}
    end_node(cluster, 0)
    assert conditions(cluster.get("TrainJob", "t")).keys() == {"Complete"}
    (node,) = cluster.get("TrainJob", "t")["status"]["jobsStatus"]
    assert (node["name"], node["succeeded"], node["failed"]) == ("node", 1, 0)


def test_all_nodes_are_made_anew_as_often_as_the_runtime_allows(cluster: Cluster) -> None:
    cluster.create(runtime(maxRestarts=1))
    cluster.create(trainjob())
    before = {pod["metadata"]["uid"] for pod in cluster.list("Pod")}
    end_node(cluster, 1)
    after = {pod["metadata"]["uid"] for pod in cluster.list("Pod")}
    assert len(after) == 2
    assert not before & after
    end_node(cluster, 1)
    failed = conditions(cluster.get("TrainJob", "t"))["Failed"]
    assert "BackoffLimitExceeded" in failed["message"]


def test_what_would_fail_again_is_not_tried_again(cluster: Cluster) -> None:
    rule = {"name": "wrong", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    cluster.create(runtime(maxRestarts=5, rules=[rule]))
    cluster.create(trainjob())
    end_node(cluster, 64)
    assert "PodFailurePolicy" in conditions(cluster.get("TrainJob", "t"))["Failed"]["message"]


def test_a_suspended_trainjob_has_no_pods(cluster: Cluster) -> None:
    cluster.create(runtime())
    cluster.create(trainjob(suspend=True))
    assert cluster.list("Pod") == []
    assert conditions(cluster.get("TrainJob", "t")).keys() == {"Suspended"}
    cluster.patch("TrainJob", "t", {"spec": {"suspend": False}})
    assert len(cluster.list("Pod")) == 2
    assert conditions(cluster.get("TrainJob", "t")) == {}
