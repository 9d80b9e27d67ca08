"""The command line against a real API server: what the double says of conflicts, patches and rights is so."""

import time

import pytest
import yaml

from bricks_core.controller.crd import crd
from tests.cluster.command_line import Terminal, without_cluster
from tests.kubernetes.real import namespace_of, real_server

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def server():
    """The real server while it knows BrickRun; Helm's tests bring their own."""
    server = real_server()
    server.api().post(CRDS, crd())
    yield server
    server.api().delete(f"{CRDS}/{crd()['metadata']['name']}")
    _until(lambda: not server.cluster("default").knows("BrickRun"))


def test_runs_are_handed_in_changed_and_stopped_on_a_real_server(server, tmp_path, monkeypatch):
    api = server.api()
    with namespace_of(api) as namespace:
        bricks = without_cluster(tmp_path, monkeypatch)
        config = server.kubeconfig(tmp_path / "kubeconfig", namespace=namespace)
        monkeypatch.setenv("KUBECONFIG", str(config))
        cluster = server.cluster(namespace)
        _until(lambda: cluster.knows("BrickRun"))
        hand_in_change_and_stop(bricks, cluster)
        look_around(bricks, api, cluster, namespace)


def hand_in_change_and_stop(bricks: Terminal, cluster):
    _until(lambda: bricks("submit", bricks.run_file(), code=None).code == 0)
    assert "nothing is different" in bricks("submit", bricks.run_file()).out
    said = bricks("submit", bricks.run_file(clip={"min_frames": 40}))
    assert "clip.min_frames: 15 → 40" in said.out
    bricks("submit", bricks.run_file(clip={"crf": 20}))
    assert cluster.get("BrickRun", "small")["spec"]["clip"] == {"crf": 20}, "what the file no longer says is gone"
    bricks("suspend", "small")
    bricks("cancel", "small", "--yes")
    spec = cluster.get("BrickRun", "small")["spec"]
    assert (spec["suspend"], spec["cancel"]) == (True, True)
    assert "cancelled, for good" in bricks("submit", bricks.run_file(), code=65).error
    assert "clip of run small has not begun" in bricks("logs", "small", "clip", code=65).error
    assert 'did you mean "small"?' in bricks("status", "smal", code=65).error


def look_around(bricks: Terminal, api, cluster, namespace):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bricks-s3"}, "data": {"KEY": "dmFsdWU="}}
    path = f"/api/v1/namespaces/{namespace}/secrets"
    api.post(path, secret)
    assert "data" not in cluster.ask(f"{path}/bricks-s3", metadata_only=True), "values are not sent"
    profile = bricks.folder / "profile.yaml"
    profile.write_text(
        yaml.safe_dump({"store": {"secret": "bricks-s3"}, "train": {"gpusPerNode": 0}}), encoding="utf-8"
    )
    said = bricks("doctor", "--profile", profile, "--store", "store", code=69)
    wrong = {line.split()[1] for line in said.out.splitlines() if line.startswith("✗")}
    assert wrong == {"cluster", "controller", "account"}
    assert "too old" in said.out


def _until(so):
    """Poll; a CRD is served a moment after it is there."""
    for _ in range(300):
        if so():
            return
        time.sleep(0.1)
    raise AssertionError("it never became so")
