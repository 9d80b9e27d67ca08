"""bricks doctor: every thing that may be missing, looked at and told with the way to mend it."""

from pathlib import Path

import pytest
import yaml

from bricks_core.cluster.doctor import CONTROLLERS_RIGHTS, USERS_RIGHTS
from bricks_core.controller.crd import crd
from tests.cluster.command_line import NAMESPACE, at
from tests.kubernetes.access import service_account
from tests.kubernetes.double import Double

PROFILE = {
    "store": {"uri": "s3://somewhere/bricks", "secret": "bricks-s3"},
    "secrets": {"caption": "bricks-caption"},
    "queues": {"gpu": "bricks-gpu"},
    "train": {
        "nodes": 2,
        "gpusPerNode": 8,
        "launcher": "pytorchjob",
        "rdma": {"resources": {"rdma/shared": 1}, "memlock": "root"},
    },
}


@pytest.fixture
def profile(tmp_path):
    def write(**changes):
        file = tmp_path / "profile.yaml"
        file.write_text(yaml.safe_dump(PROFILE | changes), encoding="utf-8")
        return file

    return write


def make(server, kind, name, *, api_version="v1", namespace=NAMESPACE, **rest):
    server.make(
        {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace} | rest.pop("metadata", {}),
        }
        | rest
    )


def custom(kind, plural, group, version="v1"):
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }


def node(server, name, **allocatable):
    have = {key.replace("__", "/"): value for key, value in allocatable.items()}
    server.make({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    with server.storage.lock:  # a status is its kubelet's to write
        server.storage.find(server.storage.resource("", "nodes"), "", name)["status"] = {"allocatable": have}


def controller_pod(server, *, ready=True):
    labels = {"app.kubernetes.io/name": "bricks", "app.kubernetes.io/component": "controller"}
    make(
        server,
        "Pod",
        "bricks-controller-1",
        metadata={"labels": labels},
        spec={"containers": [{"name": "controller", "image": "i"}]},
    )
    cluster = server.cluster(NAMESPACE)
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-11-24T12:00:00Z"}]
    cluster.write_status(cluster.get("Pod", "bricks-controller-1") | {"status": {"conditions": conditions}})


def everything(server):
    """All that the profile asks for."""
    controller_pod(server)
    for kind, plural, group, version in (
        ("PyTorchJob", "pytorchjobs", "kubeflow.org", "v1"),
        ("Workload", "workloads", "kueue.x-k8s.io", "v1beta2"),
        ("LocalQueue", "localqueues", "kueue.x-k8s.io", "v1beta2"),
    ):
        server.make(custom(kind, plural, group, version))
    make(server, "LocalQueue", "bricks-gpu", api_version="kueue.x-k8s.io/v1beta2")
    for secret in ("bricks-s3", "bricks-caption"):
        make(server, "Secret", secret, data={"KEY": "dmFsdWU="})
    make(server, "ServiceAccount", "bricks-stage")
    for name in ("one", "two"):
        node(server, name, **{"nvidia.com__gpu": "8", "rdma__shared": "1000"})
    server.cluster(NAMESPACE)
    with server.storage.lock:
        namespaces = server.storage.resource("", "namespaces")
        namespace = server.storage.find(namespaces, "", NAMESPACE)
        namespace["metadata"].setdefault("labels", {})["pod-security.kubernetes.io/enforce"] = "privileged"


def line(said, what):
    """The lines of one look."""
    return [each for each in said.out.splitlines() if each[2:].startswith(f"{what} ")]


def test_a_cluster_that_has_everything_passes(bricks, double, profile):
    everything(double)
    said = bricks("doctor", "--profile", profile(), "--store", "store")
    assert said.out.splitlines()[-1].startswith("Nothing is wrong in ")
    assert not [each for each in said.out.splitlines() if each.startswith(("✗", "?"))]


def test_each_thing_that_is_missing_is_told_with_the_way_to_mend_it(bricks, double, profile):
    said = bricks("doctor", "--profile", profile(), "--store", "store", code=69)
    wrong = {each.split()[1] for each in said.out.splitlines() if each.startswith("✗")}
    assert wrong == {"controller", "launcher", "queues", "secrets", "account", "gpus", "rdma"}
    lines = said.out.splitlines()
    assert all("→" in lines[place + 1] for place, each in enumerate(lines) if each.startswith("✗"))
    assert "the lines above say how to mend it" in said.error


def test_what_is_wrong_but_not_away_ends_with_78(bricks, double, profile):
    everything(double)
    said = bricks("doctor", "--profile", profile(secrets={"caption": "another"}), "--store", "store", code=78)
    assert "another" in line(said, "secrets")[0]
    assert "--from-env-file" in said.out, "no secret in the history of a shell"


def test_a_secret_is_looked_for_without_reading_it(bricks, double, profile):
    everything(double)
    double.requests.clear()
    bricks("doctor", "--profile", profile(), "--store", "store")
    asked = [request for request in double.requests if request.resource == "secrets"]
    assert {(request.verb, request.name) for request in asked} == {("get", "bricks-s3"), ("get", "bricks-caption")}


def test_what_we_may_not_see_is_unknown_and_not_wrong(double, tmp_path, monkeypatch, profile):
    everything(double)
    allow(double, "user", USERS_RIGHTS)
    said = at(double, tmp_path, monkeypatch, service_account(NAMESPACE, "user"))(
        "doctor", "--profile", profile(), "--store", "store"
    )
    unknown = {each[2:15].strip() for each in said.out.splitlines() if each.startswith("?")}
    assert unknown == {"queues", "secrets", "account", "gpus", "rdma", "pod security"}
    assert line(said, "rights")[0].startswith("✓")


def test_a_right_that_is_missing_is_named(double, tmp_path, monkeypatch, profile):
    everything(double)
    allow(double, "user", [(group, what, verbs) for group, what, verbs in USERS_RIGHTS if what != "pods/log"])
    terminal = at(double, tmp_path, monkeypatch, service_account(NAMESPACE, "user"))
    said = terminal("doctor", "--profile", profile(), "--store", "store", code=78)
    assert "we may not get pods/log in namespace bricks" in line(said, "rights")[0]


def test_inside_a_pod_the_controllers_rights_are_what_counts(double, tmp_path, monkeypatch, profile):
    everything(double)
    allow(double, "controller", CONTROLLERS_RIGHTS)
    terminal = at(double, tmp_path, monkeypatch, service_account(NAMESPACE, "controller"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    said = terminal("doctor", "--profile", profile(), "--store", "store")
    assert "all of the controller's" in line(said, "rights")[0]


def test_the_chart_gives_the_controller_the_rights_that_are_looked_for():
    rules = granted(Path(__file__).parents[2] / "helm/bricks/templates/rbac.yaml")
    for group, resource, verbs in CONTROLLERS_RIGHTS:
        assert set(verbs) <= rules[group, resource], (group, resource)


def test_the_profile_that_the_chart_installed_is_found(bricks, double):
    labels = {"app.kubernetes.io/name": "bricks", "app.kubernetes.io/component": "profile"}
    data = {"profile.yaml": yaml.safe_dump(PROFILE)}
    make(double, "ConfigMap", "bricks-profile", metadata={"labels": labels}, data=data)
    everything(double)
    said = bricks("doctor", "--store", "store")
    assert "the one that the chart installed" in line(said, "profile")[0]
    assert line(said, "launcher")[0].startswith("✓")


def test_a_controller_that_is_not_ready_is_told(bricks, double, profile):
    controller_pod(double, ready=False)
    assert "bricks-controller-1 is not ready" in bricks("doctor", "--store", "store", code=69).out


def test_a_controller_that_does_not_look_is_told(bricks, double):
    controller_pod(double)
    bricks("submit", bricks.run_file())
    assert not [each for each in line(bricks("doctor", "--store", "store"), "controller") if each.startswith("✗")]
    created = double.cluster(NAMESPACE).get("BrickRun", "small")["metadata"]["creationTimestamp"]
    with double.storage.lock:
        found = double.storage.find(double.storage.resource("bricks.dev", "brickruns"), NAMESPACE, "small")
        found["metadata"]["creationTimestamp"] = created.replace("202", "201", 1)
    assert "has not looked at small" in bricks("doctor", "--store", "store", code=69).out


def test_runs_under_way_are_listed_before_an_upgrade(bricks, double):
    assert "no run is under way" in line(bricks("doctor", "--store", "store", code=None), "live runs")[0]
    for name, finished in (("wide", "False"), ("done", "True")):
        bricks("submit", bricks.run_file(name))
        stage = {"name": "train", "state": "Running", "attempt": 2, "startedAt": "2026-11-28T04:10:00Z"}
        meta = {"type": "Finished", "status": finished, "reason": "So", "message": ""}
        told = meta | {"lastTransitionTime": "2026-11-28T04:10:00Z"}
        run = double.cluster(NAMESPACE).get("BrickRun", name)
        status = {"phase": "Running", "currentStage": "train", "stages": [stage], "conditions": [told]}
        double.cluster(NAMESPACE).write_status(run | {"status": status})
    bricks("submit", bricks.run_file("young"))
    labels = {"bricks.dev/run": "wide", "bricks.dev/stage": "train"}
    pod = {"containers": [{"name": "main", "image": "example.org/bricks-train:1"}]}
    make(double, "Pod", "wide-train-a2-0", metadata={"labels": labels}, spec=pod)
    wide = "wide: train running since 2026-11-28T04:10:00Z, try 2, image example.org/bricks-train:1"
    assert line(bricks("doctor", "--store", "store", code=None), "live runs") == [
        f"✓ live runs     {wide}; it goes on so after an upgrade",
        "✓ live runs     young: nothing of it has begun",
    ]


def test_a_namespace_that_refuses_the_profiles_pods_is_told(bricks, double, profile):
    everything(double)
    with double.storage.lock:
        namespace = double.storage.find(double.storage.resource("", "namespaces"), "", NAMESPACE)
        namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted"
    said = bricks("doctor", "--profile", profile(), "--store", "store", code=78)
    assert "enforces restricted, and train.rdma.memlock: root needs privileged" in line(said, "pod security")[0]


def test_an_older_kind_is_told_with_the_fields_that_it_loses(tmp_path, monkeypatch):
    older = crd()
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["gates"]
    with Double(crds=[older]) as server:
        said = at(server, tmp_path, monkeypatch)("doctor", "--store", "store", code=None)
    assert "loses spec.gates" in line(said, "kind")[0]


def test_a_cluster_without_the_kind_is_told_what_brings_it(tmp_path, monkeypatch):
    with Double() as server:
        said = at(server, tmp_path, monkeypatch)("doctor", "--store", "store", code=None)
    assert "does not know BrickRun" in line(said, "kind")[0]


def test_a_store_that_cannot_be_written_is_told(bricks, tmp_path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert line(bricks("doctor", "--store", "file", code=None), "store")[0].startswith("✗")


def test_a_store_inside_the_cluster_is_not_asked_from_outside(bricks, double, profile):
    everything(double)
    inside = {"uri": "s3://bricks/a", "endpoint": "http://gateway.storage.svc:8080", "secret": "bricks-s3"}
    said = bricks("doctor", "--profile", profile(store=inside))
    assert line(said, "store")[0].startswith("?")
    assert "helm test" in said.out


def test_a_key_in_a_stores_address_is_not_shown(bricks):
    said = bricks("doctor", "--store", "s3://AKIA:hush@bucket/bricks", code=None)
    assert "must not hold keys" in line(said, "store")[0]
    assert "hush" not in said.out + said.error


def test_a_namespace_that_is_not_there_is_told(bricks):
    said = bricks("doctor", "--store", "store", "-n", "nowhere", code=None)
    assert line(said, "namespace")[0].startswith("✗")
    assert "nowhere" in line(said, "namespace")[0]


def test_the_probe_of_a_store_leaves_nothing_there(bricks, tmp_path):
    bricks("doctor", "--store", "store", code=None)
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file() and not file.name.startswith(".")] == []


def allow(server, name, rights):
    """Give a service account some rights in the namespace."""
    rules = [{"apiGroups": [group], "resources": [resource], "verbs": list(verbs)} for group, resource, verbs in rights]
    rbac = "rbac.authorization.k8s.io/v1"
    make(server, "Role", name, api_version=rbac, rules=rules)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    make(server, "RoleBinding", name, api_version=rbac, subjects=[subject], roleRef=role)


def granted(template):
    """The rules of the first Role of a chart's template: they are written there as plain YAML."""
    rules, block = {}, []
    for row in template.read_text(encoding="utf-8").partition("rules:\n")[2].splitlines():
        if row.startswith("---"):
            break
        block.append(row)
    for rule in yaml.safe_load("\n".join(block)):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                rules[group, resource] = set(rule["verbs"])
    return rules
