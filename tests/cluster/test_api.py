"""Asking a cluster: how it is found, what is said when it cannot be, and what goes over the wire."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.cluster.api import AlreadyThere, Changed, NotThere, Refused, connect
from bricks_core.errors import BricksError, ClusterDenied, ClusterUnavailable
from tests.kubernetes.access import ADMIN, service_account
from tests.kubernetes.double import Double, Fault, Request
from tests.kubernetes.raw import Api

Object = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Double]:
    with Double() as server:
        yield server


@pytest.fixture(scope="module")
def admin(server: Double) -> Api:
    return server.api()


@pytest.fixture(autouse=True)
def _clean(server: Double, admin: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No kubeconfig of whoever runs this, and no faults of another test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    server.requests.clear()
    yield
    server.faults.clear()
    for plural in ("configmaps", "pods", "events"):
        admin.call("DELETE", f"/api/v1/namespaces/bricks/{plural}", gracePeriodSeconds=0)


def config_map(name: str, **meta: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}, "data": {"a": "1"}}


def asked(server: Double) -> list[tuple[str, str, str]]:
    return [(each.verb, each.resource, each.name) for each in server.requests]


# How it is found


def test_it_is_found_by_the_kubeconfig_with_its_context_and_namespace(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config", namespace="bricks")))
    cluster = connect()
    assert cluster.namespace == "bricks"
    assert cluster.address == server.url
    cluster.create(config_map("a"))
    assert connect("test", "default").namespace == "default"
    assert [each["metadata"]["name"] for each in connect("test").list("ConfigMap")] == ["a"]


def test_it_is_found_in_the_usual_place(server: Double, tmp_path: Path) -> None:
    server.kubeconfig(tmp_path / "home/.kube/config")
    assert connect().namespace == "default"


def test_several_kubeconfigs_are_one(server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = server.kubeconfig(tmp_path / "first", namespace="bricks")
    second = yaml.safe_load(first.read_text(encoding="utf-8"))
    second["contexts"][0] |= {"name": "other"}
    second["contexts"][0]["context"] |= {"namespace": "elsewhere"}
    (tmp_path / "second").write_text(yaml.safe_dump(second), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'missing'}:{tmp_path / 'second'}")
    assert connect("other").namespace == "elsewhere"


def test_without_any_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ClusterUnavailable, match=r"No cluster is configured: there is no ~/\.kube/config"):
        connect()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(ClusterUnavailable, match=r"KUBECONFIG names .*missing, which is not there"):
        connect()


@pytest.mark.parametrize(
    "text", ["", "a: [", "- 1", "contexts: 3", "current-context: x\nclusters: []\ncontexts: []\nusers: []"]
)
def test_a_kubeconfig_that_is_none_is_told(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(text, encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ClusterUnavailable, match=f"{tmp_path / 'config'} ") as raised:
        connect()
    assert "\n" not in str(raised.value)


def test_a_context_that_is_not_there_is_told_with_those_that_are(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
    with pytest.raises(ClusterUnavailable, match="has no context tset: it has test"):
        connect("tset")


def test_a_login_program_is_asked_for_the_token(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "admin"},
    }
    monkeypatch.setenv("KUBECONFIG", str(with_login(server, tmp_path, f"print({json.dumps(credential)!r})")))
    assert connect().list("ConfigMap") == []


def test_a_login_program_that_fails_is_told_with_its_words(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = with_login(server, tmp_path, "raise SystemExit('session expired: run cloud login')")
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(ClusterDenied, match=r"login of context test failed .*session expired: run cloud login"):
        connect()
    assert capfd.readouterr() == ("", "")


def with_login(server: Double, folder: Path, program: str) -> Path:
    file = server.kubeconfig(folder / "config")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable, "args": ["-c", program]}
    config["users"][0]["user"] = {"exec": {**command, "interactiveMode": "Never"}}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def test_a_cluster_that_is_away_is_told_with_its_address(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = server.kubeconfig(tmp_path / "config")
    file.write_text(file.read_text(encoding="utf-8").replace(server.url, "https://127.0.0.1:1"), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(
        ClusterUnavailable, match=r"cluster at https://127.0.0.1:1 does not answer \(connection refused\)"
    ):
        connect().list("Pod")


def test_a_certificate_that_is_not_trusted_is_told(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = server.kubeconfig(tmp_path / "config")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(ClusterUnavailable, match="is not one that the kubeconfig trusts"):
        connect().list("Pod")


def test_a_token_that_has_run_out_is_told_and_never_shown(
    server: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = server.kubeconfig(tmp_path / "config")
    file.write_text(file.read_text(encoding="utf-8").replace("token: admin", "token: s3cr3t-and-old"), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(ClusterDenied, match="does not know who we are") as raised:
        connect().list("Pod")
    assert "s3cr3t" not in str(raised.value)


def test_importing_it_loads_no_client() -> None:
    program = "import sys, bricks_core.cluster.api; print([m for m in ('kubernetes', 'urllib3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


# What goes over the wire


def test_a_long_list_comes_in_pages_and_each_object_says_what_it_is(
    server: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bricks_core.cluster.api._PAGE", 2)
    cluster = server.cluster()
    for name in "abcde":
        cluster.create(config_map(name, labels={"t": "1"}))
    cluster.create(config_map("other"))
    server.requests.clear()
    found = cluster.list("ConfigMap", labels={"t": "1"})
    assert [each["metadata"]["name"] for each in found] == list("abcde")
    assert {(each["apiVersion"], each["kind"]) for each in found} == {("v1", "ConfigMap")}
    assert len(server.requests) == 3


def test_a_list_may_leave_out_by_field(server: Double) -> None:
    here = server.cluster("bricks")
    for name in ("a", "b"):
        here.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
    assert [each["metadata"]["name"] for each in here.list("ConfigMap", fields="metadata.name!=a")] == ["b"]


def test_a_list_whose_place_was_forgotten_begins_again(server: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bricks_core.cluster.api._PAGE", 2)
    cluster = server.cluster()
    for name in "abc":
        cluster.create(config_map(name))

    forgotten: list[int] = []

    def forget(request: Request) -> None:
        if request.query.get("continue") and not forgotten:
            forgotten.append(1)
            server.compact()

    server.faults.append(forget)
    assert [each["metadata"]["name"] for each in cluster.list("ConfigMap")] == list("abc")
    assert forgotten


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (409, Changed, "was changed by somebody else"),
        (429, ClusterUnavailable, "is too busy"),
        (500, ClusterUnavailable, r"fails \(500\)"),
        (503, ClusterUnavailable, r"fails \(503\)"),
        (410, ClusterUnavailable, "has forgotten"),
        (418, Refused, "refuses to patch ConfigMap a"),
    ],
)
def test_a_server_that_fails_is_told_and_not_asked_again(
    server: Double, status: int, error: type[BricksError], says: str
) -> None:
    cluster = server.cluster()
    cluster.create(config_map("a"))
    server.requests.clear()
    server.faults.append(lambda _: Fault(status=status))
    with pytest.raises(error, match=says):
        cluster.patch("ConfigMap", "a", {"data": {}})
    assert len(server.requests) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_whose_answer_is_lost_is_not_sent_again(server: Double, when: Any) -> None:
    cluster = server.cluster()
    server.faults.append(lambda request: Fault(drop=when) if request.verb == "create" else None)
    with pytest.raises(ClusterUnavailable, match="the connection broke"):
        cluster.create(config_map("a"))
    server.faults.clear()
    assert asked(server).count(("create", "configmaps", "")) == 1
    assert len(cluster.list("ConfigMap")) == (when == "after")


def test_a_reading_whose_connection_is_cut_once_is_done_again(server: Double) -> None:
    cluster = server.cluster()
    cuts = iter([Fault(drop="before")])
    server.faults.append(lambda _: next(cuts, None))
    assert cluster.list("ConfigMap") == []


def test_an_answer_that_does_not_come_is_not_waited_for(server: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bricks_core.cluster.api._TIMEOUT_S", (1.0, 0.2))
    server.faults.append(lambda _: Fault(delay_s=1))
    with pytest.raises(ClusterUnavailable, match="not in time"):
        server.cluster().list("ConfigMap")


def test_what_is_deleted_goes_with_what_is_its_own_and_only_if_it_is_meant(server: Double) -> None:
    cluster = server.cluster()
    made = cluster.create(config_map("a"))
    cluster.delete("ConfigMap", "a", uid="another")
    cluster.delete("ConfigMap", "a", uid=made["metadata"]["uid"])
    bodies = [each.body for each in server.requests if each.verb == "delete"]
    assert [body["propagationPolicy"] for body in bodies] == ["Foreground", "Foreground"]
    assert bodies[1]["preconditions"] == {"uid": made["metadata"]["uid"]}
    cluster.delete("ConfigMap", "a", foreground=False)
    assert server.requests[-1].body["propagationPolicy"] == "Background"


def test_who_lacks_a_right_is_told_which_and_how_to_see_it(server: Double) -> None:
    cluster = server.cluster("bricks", user=service_account("bricks", "stage"))
    with pytest.raises(ClusterDenied) as raised:
        cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {}})
    assert str(raised.value) == (
        "system:serviceaccount:bricks:stage may not create Job a in namespace bricks: it needs the verb "
        '"create" on "jobs.batch" in a Role bound to it there (kubectl auth can-i create jobs.batch -n bricks).'
    )


def test_a_namespace_that_is_not_there_is_told(server: Double) -> None:
    with pytest.raises(ClusterDenied, match="There is no namespace nowhere: kubectl create namespace nowhere"):
        server.cluster("nowhere").create(config_map("a"))


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("BrickRun", "install the chart's CRD"),
        ("PyTorchJob", "install Kubeflow's Training Operator"),
        ("TrainJob", "install Kubeflow's Trainer"),
        ("Workload", "install Kueue"),
    ],
)
def test_a_kind_that_the_cluster_does_not_know_is_told_with_who_brings_it(server: Double, kind: str, hint: str) -> None:
    cluster = server.cluster()
    assert not cluster.knows(kind)
    for ask in (lambda: cluster.list(kind), lambda: cluster.get(kind, "a")):
        with pytest.raises(ClusterDenied, match=hint):
            ask()


def test_a_kind_that_is_served_is_known(server: Double) -> None:
    assert server.cluster().knows("Job")
    assert server.cluster().knows("ConfigMap")


# Logs


@pytest.fixture
def pod(server: Double, admin: Api) -> str:
    container = {"name": "main", "image": "x"}
    server.cluster().create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}}
    )
    target = {"apiVersion": "v1", "kind": "Node", "name": "n"}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": target}
    admin.post("/api/v1/namespaces/bricks/pods/p/binding", binding)
    return "p"


def test_a_container_that_has_not_started_has_no_log(server: Double, pod: str) -> None:
    with pytest.raises(NotThere, match=r"Pod p has no log yet: .*waiting to start"):
        list(server.cluster().logs(pod, "main"))
    with pytest.raises(NotThere, match="There is no Pod q"):
        list(server.cluster().logs("q", "main"))


def test_lines_are_as_they_were_written(server: Double, pod: str) -> None:
    lines = ["one", "", "three with  two spaces", "ünïcode"]
    server.logs.begin("bricks", pod, "main")
    for line in lines:
        server.logs.write("bricks", pod, "main", line)
    assert list(server.cluster().logs(pod, "main")) == lines
    assert list(server.cluster().logs(pod, "main", tail_lines=2)) == lines[-2:]


def test_a_log_that_is_followed_comes_line_by_line_and_ends_with_its_container(server: Double, pod: str) -> None:
    server.logs.begin("bricks", pod, "main")
    server.logs.write("bricks", pod, "main", "first")
    follow = server.cluster().logs(pod, "main", follow=True)
    assert next(follow) == "first"
    server.logs.write("bricks", pod, "main", "second")
    assert next(follow) == "second"
    server.logs.end("bricks", pod, "main")
    assert list(follow) == []


def test_a_log_that_is_cut_goes_on_where_it_broke(server: Double, pod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bricks_core.cluster.api._SILENCE_S", 0.3)
    monkeypatch.setattr("bricks_core.cluster.api._AGAIN_S", 0.1)
    server.logs.begin("bricks", pod, "main")
    for line in ("first", "second"):
        server.logs.write("bricks", pod, "main", line)
    follow = server.cluster().logs(pod, "main", follow=True)
    assert [next(follow), next(follow)] == ["first", "second"]
    again = threading.Event()

    def watch(request: Request) -> None:
        if request.subresource == "log" and "sinceTime" in request.query:
            again.set()

    server.faults.append(watch)

    def go_on() -> None:
        again.wait(30)
        server.logs.write("bricks", pod, "main", "third")
        server.logs.end("bricks", pod, "main")

    threading.Thread(target=go_on).start()
    assert list(follow) == ["third"]
    assert again.is_set()


def test_the_same_name_twice_is_told(server: Double) -> None:
    cluster = server.cluster("bricks", user=ADMIN)
    cluster.create(config_map("a"))
    with pytest.raises(AlreadyThere):
        cluster.create(config_map("a"))
