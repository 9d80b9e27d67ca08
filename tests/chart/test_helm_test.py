"""`helm test` after `helm install`: the chart's own pods run as processes, with the rights that the chart gives."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import helm_python as helm
import pytest

from tests.chart.chart import CHART, Object
from tests.kubernetes.access import service_account
from tests.kubernetes.double import Double
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.raw import eventually

VALUES: Object = {
    "storage": {"mode": "pvc", "pvc": {"existingClaim": "films"}},
    "train": {"launcher": "job", "gpusPerNode": 0},
    "crds": {"keep": False},
}


@dataclass(frozen=True)
class Installed:
    config: helm.Config
    server: Double
    kubelet: Kubelet


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """The chart on the double, its controller running as the Deployment says."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = VALUES | {"controller": {"extraArgs": [f"--health-port={port}"]}}  # of two, the last one counts
    (tmp_path / "store").mkdir()
    with Double() as server:
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        names = {"name": "films", "namespace": "bricks"}
        server.make({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": names, "spec": claim})
        account = service_account("bricks", "bricks-controller")
        inside = {
            "KUBECONFIG": str(server.kubeconfig(tmp_path / "account", namespace="bricks", user=account)),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        }
        with (
            helm.Config(
                kubeconfig_path=server.kubeconfig(tmp_path / "admin"), namespace="bricks", storage_driver="memory"
            ) as config,
            Kubelet(
                server, "bricks", tmp_path / "pods", environment=inside, mounts={"/store": tmp_path / "store"}
            ) as kubelet,
        ):
            config.install(str(CHART), "bricks", values)
            start_controller(server)
            yield Installed(config, server, kubelet)


def start_controller(server: Double) -> None:
    """What a cluster's own controllers do with a Deployment; the double has none for them."""
    api = server.api()
    (deployment,) = api.get("/apis/apps/v1/namespaces/bricks/deployments")["items"]
    template = deployment["spec"]["template"]
    metadata = {"name": "bricks-controller-0", "labels": template["metadata"]["labels"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    api.post("/api/v1/namespaces/bricks/pods", pod)

    def ready() -> bool:
        pod = api.get("/api/v1/namespaces/bricks/pods/bricks-controller-0")
        return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])

    eventually(ready)


def test_it_tells_whether_all_is_well(installed: Installed) -> None:
    api = installed.server.api()
    said = installed.config.test("bricks", timeout=120, logs=True)["logs"]
    assert "all of the controller's, in namespace bricks" in said
    assert "can be written and read" in said
    left = [each["metadata"]["name"] for each in api.get("/api/v1/namespaces/bricks/pods")["items"]]
    assert left == ["bricks-controller-0"], "a test that went well is taken away"

    api.delete("/apis/rbac.authorization.k8s.io/v1/namespaces/bricks/rolebindings/bricks-controller")
    with pytest.raises(helm.HelmError):
        installed.config.test("bricks", timeout=120)
    pod = api.get("/api/v1/namespaces/bricks/pods/bricks-test")
    assert pod["status"]["phase"] == "Failed", "one that did not stays, to be read"
    assert "looks found something wrong" in installed.kubelet.said("bricks-test")
