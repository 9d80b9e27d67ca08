"""The test kubelet: what a container finds around it, and what becomes of its pod."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bricks_core.cluster.api import Cluster
from tests.kubernetes import pods
from tests.kubernetes.double import Double
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.raw import eventually

Object = dict[str, Any]
PATH = "/api/v1/namespaces/bricks"
NAPS = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('ready', flush=True); time.sleep(600)"
)
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def kubelet(double: Double, tmp_path: Path) -> Iterator[Kubelet]:
    with Kubelet(
        double, "bricks", tmp_path, environment={"FROM_THE_IMAGE": "yes"}, nodes=("node-1", "node-2")
    ) as kubelet:
        yield kubelet


@pytest.fixture
def cluster(double: Double) -> Cluster:
    return double.cluster("bricks")


def pod(name: str, program: str, *, restart: str = "Never", grace_s: int = 30, **spec: Any) -> Object:
    container = {"name": "main", "image": "x", "command": ["python", "-c", program], **spec.pop("container", {})}
    spec = {"restartPolicy": restart, "terminationGracePeriodSeconds": grace_s, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"a": "b"}}, "spec": spec}


def ended(cluster: Cluster, name: str) -> Object:
    """The pod's container's end."""

    def look() -> Object | None:
        status = cluster.get("Pod", name)["status"]
        is_over = status["phase"] in ("Succeeded", "Failed")
        return status["containerStatuses"][0]["state"]["terminated"] if is_over else None

    return eventually(look)


def ready(cluster: Cluster, name: str) -> bool:
    return cluster.get("Pod", name)["status"]["phase"] == "Running" and "ready" in list(cluster.logs(name, "main"))


def test_a_container_finds_what_its_pod_promises(double: Double, kubelet: Kubelet, cluster: Cluster) -> None:
    api = double.api()
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"KEY": "k", "OTHER": "o"},
    }
    api.post(f"{PATH}/secrets", secret)
    data = {"run.yaml": "steps: 3", "NAME": "value"}
    api.post(f"{PATH}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "run"}, "data": data})
    env = [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
        {"name": "ONE", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "OTHER"}}},
        {"name": "TWO", "valueFrom": {"configMapKeyRef": {"name": "run", "key": "NAME"}}},
        {"name": "BOTH", "value": "$(ONE)-$(TWO)-$$(ONE)-$(NOBODY)"},
        {"name": "HOME", "value": "/scratch"},
    ]
    program = (
        "import os, sys, pathlib; e = os.environ;"
        "print(*(e[k] for k in ('NODE', 'LABEL', 'ONE', 'TWO', 'BOTH', 'KEY', 'FROM_THE_IMAGE')));"
        "print(pathlib.Path(sys.argv[1]).read_text());"
        "pathlib.Path(e['HOME'], 'file').write_text('x'); print(os.listdir(e['HOME']));"
        "print(sorted(k for k in e if k.startswith('PYTEST')))"
    )
    mounts = [{"name": "run", "mountPath": "/etc/bricks"}, {"name": "scratch", "mountPath": "/scratch"}]
    container = {
        "args": ["/etc/bricks/run.yaml"],
        "env": env,
        "envFrom": [{"secretRef": {"name": "keys"}}],
        "volumeMounts": mounts,
    }
    volumes = [{"name": "run", "configMap": {"name": "run"}}, {"name": "scratch", "emptyDir": {}}]
    cluster.create(pod("p", program, container=container, volumes=volumes))
    assert ended(cluster, "p")["exitCode"] == 0, kubelet.said("p")
    assert list(cluster.logs("p", "main")) == [
        "node-1 b o value o-value-$(ONE)-$(NOBODY) k yes",
        "steps: 3",
        "['file']",
        "[]",
    ]


def test_a_pod_whose_secret_is_missing_waits_for_it(double: Double, kubelet: Kubelet, cluster: Cluster) -> None:
    cluster.create(pod("p", "print(1)", container={"envFrom": [{"secretRef": {"name": "late"}}]}))

    def waits() -> bool:
        statuses = cluster.get("Pod", "p")["status"].get("containerStatuses") or [{"state": {}}]
        return statuses[0]["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError"

    eventually(waits)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"A": "b"}}
    double.api().post(f"{PATH}/secrets", secret)
    assert ended(cluster, "p")["exitCode"] == 0


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (78, "Failed")])
def test_the_exit_code_is_the_programs_own(kubelet: Kubelet, cluster: Cluster, code: int, phase: str) -> None:
    container = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    cluster.create(pod("p", f"print('last words'); raise SystemExit({code})", container=container))
    end = ended(cluster, "p")
    assert end["exitCode"] == code
    assert end["message"] == ("last words" if code else "")
    assert cluster.get("Pod", "p")["status"]["phase"] == phase


def test_kill_9_is_137(kubelet: Kubelet, cluster: Cluster) -> None:
    cluster.create(pod("p", NAPS))
    eventually(lambda: ready(cluster, "p"))
    kubelet.kill("p")
    assert ended(cluster, "p")["exitCode"] == 128 + signal.SIGKILL


def test_a_container_that_fails_is_started_again_where_its_policy_says_so(kubelet: Kubelet, cluster: Cluster) -> None:
    program = "import os, pathlib; f = pathlib.Path('tries'); n = len(f.read_text()) if f.exists() else 0;"
    program += "f.write_text('x' * (n + 1)); raise SystemExit(0 if n == 2 else 1)"
    cluster.create(pod("p", program, restart="OnFailure"))
    assert ended(cluster, "p")["exitCode"] == 0
    assert cluster.get("Pod", "p")["status"]["containerStatuses"][0]["restartCount"] == 2


def test_a_drained_pod_may_end_well_and_is_told_as_disrupted(
    double: Double, kubelet: Kubelet, cluster: Cluster
) -> None:
    api = double.api()
    start = api.get(f"{PATH}/pods")["metadata"]["resourceVersion"]
    cluster.create(pod("p", NAPS))
    eventually(lambda: ready(cluster, "p"))
    kubelet.drain("p")
    eventually(lambda: not cluster.list("Pod"))
    *_, last = (event["object"] for event in until_deleted(api.watch(f"{PATH}/pods", resourceVersion=start)))
    assert last["status"]["phase"] == "Failed"
    assert last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143
    assert ("DisruptionTarget", "True") in [(each["type"], each["status"]) for each in last["status"]["conditions"]]


def until_deleted(events: Iterator[Object]) -> Iterator[Object]:
    for event in events:
        yield event
        if event["type"] == "DELETED":
            return


def test_who_does_not_hear_is_killed_when_the_grace_is_over(kubelet: Kubelet, cluster: Cluster) -> None:
    cluster.create(pod("p", DEAF, grace_s=1))
    eventually(lambda: ready(cluster, "p"))
    (pid,) = kubelet.processes("p")
    cluster.delete("Pod", "p")
    eventually(lambda: not cluster.list("Pod"))
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_what_is_removed_by_force_is_killed(double: Double, kubelet: Kubelet, cluster: Cluster) -> None:
    cluster.create(pod("p", DEAF))
    eventually(lambda: ready(cluster, "p"))
    (pid,) = kubelet.processes("p")
    double.api().delete(f"{PATH}/pods/p", gracePeriodSeconds=0)
    eventually(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("by", ["label", "name"])
def test_a_pod_goes_where_it_may(kubelet: Kubelet, cluster: Cluster, by: str) -> None:
    def away(*nodes: str) -> Object:
        labels = [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(nodes)}]
        fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
        terms = [{"matchExpressions": labels} if by == "label" else {"matchFields": fields}]
        return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}

    cluster.create(pod("p", "pass", affinity=away("node-1")))
    ended(cluster, "p")
    assert cluster.get("Pod", "p")["spec"]["nodeName"] == "node-2"
    cluster.create(pod("q", "pass", affinity=away("node-1", "node-2")))
    reasons: Callable[[], list[str]] = lambda: [  # noqa: E731
        each.get("reason", "") for each in cluster.get("Pod", "q")["status"].get("conditions", [])
    ]
    assert eventually(reasons) == ["Unschedulable"]


def test_nothing_runs_on_when_it_is_stopped(double: Double, tmp_path: Path, cluster: Cluster) -> None:
    with Kubelet(double, "bricks", tmp_path) as kubelet:
        cluster.create(pod("p", DEAF))
        eventually(lambda: ready(cluster, "p"))
        (pid,) = kubelet.processes("p")
    assert not Path(f"/proc/{pid}").exists()


# Paths and names


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("/etc/bricks/run.yaml", "/here/config/run.yaml"),
        ("--run=/etc/bricks/run.yaml", "--run=/here/config/run.yaml"),
        ("file:///store/artifacts", "file:///here/store/artifacts"),
        ("/tmp", "/here/tmp"),
        ("/scratch:/tmp", "/here/scratch:/here/tmp"),
        ("/etc/bricks2/x", "/etc/bricks2/x"),
        ("/var/tmp/x", "/var/tmp/x"),
        ("s3://store/x", "s3://store/x"),
        ("/storeroom", "/storeroom"),
    ],
)
def test_paths_of_mounts_lead_to_their_folders(text: str, moved: str) -> None:
    names = {"/etc/bricks": "config", "/store": "store", "/tmp": "tmp", "/scratch": "scratch"}
    assert pods.moved(text, {path: Path("/here") / name for path, name in names.items()}) == moved


def test_pods_of_a_job_meet_on_this_machine() -> None:
    meeting = pods.Meeting()
    pod = {"metadata": {"labels": {"training.kubeflow.org/job-name": "demo-train-a1"}}}
    address = meeting.local("demo-train-a1-worker-0:29400", pod)
    assert address.startswith("127.0.0.1:")
    assert meeting.local("demo-train-a1-worker-0:29400", pod) == address
    assert meeting.local("demo-train-a1-worker-0:29401", pod) != address
    assert meeting.local("demo-train-a1-worker-1", pod) == "127.0.0.1"
    assert meeting.local("demo-train-a1", pod) == "demo-train-a1"
    plain = {"metadata": {"labels": {"batch.kubernetes.io/job-name": "demo-train-a1"}}}
    assert meeting.local("demo-train-a1-0.demo-train-a1.bricks.svc", plain) == "127.0.0.1"
    assert meeting.local("demo-train-a1-0.demo-train-a1:29400", plain).startswith("127.0.0.1:")
    assert meeting.local("demo-train-a10:29400", plain) == "demo-train-a10:29400"
