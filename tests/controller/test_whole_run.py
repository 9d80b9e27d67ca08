"""A whole run under the controller: the pods' real commands as processes, and the chart's Role as its only rights.

On the double, and on Kubernetes 1.20.2 where its start script is at hand.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bricks_core.controller.crd import crd
from bricks_core.controller.handlers import Shell
from bricks_core.controller.reconcile import Reconciler
from bricks_core.pipeline.plan import finished
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import run_of
from bricks_core.storage.store import open_store
from tests.chart.chart import S3, of_kind, render
from tests.kubernetes.double import Double, client_of
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.raw import Answered, Api, eventually
from tests.kubernetes.real import RealServer, namespace_of, real_server, token_of

ROOT = Path(__file__).parents[2]
STAGES = ["ingest", "clip", "score", "caption", "latents"]
SMALL = {stage: {"shards": 1, "cpu": "1", "memory": "1Gi", "scratch": "1Gi", "gpus": 0} for stage in STAGES}
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LONG_S = 400.0
PROFILE = ClusterProfile.model_validate(
    {"store": {"uri": "file:///store", "claim": "artifacts"}, "stages": SMALL, "images": {"registry": "here"}}
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
Object = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),
]


@pytest.fixture(params=["double", "1.20.2"])
def server(request: pytest.FixtureRequest) -> Iterator[Double | RealServer]:
    """A server that knows BrickRuns."""
    if request.param == "double":
        with Double(crds=[crd()]) as double:
            yield double
        return
    real = real_server()
    try:
        real.api().post(CRDS, crd())
    except Answered as answer:
        assert answer.status == 409  # noqa: PT017 (another test of the same server brought it)
    eventually(lambda: real.api().get("/apis/bricks.dev/v1alpha1"))
    yield real


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    flags = ["--films", "3", "--scenes", "3", "--height", "96", "--photos", "16", "16"]
    command = [sys.executable, "examples/make_films.py", str(folder), *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def account(api: Api, namespace: str) -> str:
    """Give the chart's rights, and no other, to a service account; returns its token."""
    rendered = of_kind(render(S3, namespace=namespace), "Role")
    (role,) = [each for each in rendered if each["metadata"]["name"].endswith("-controller")]
    meta = {"name": "controller"}
    bound = {"kind": "ServiceAccount", "name": "controller", "namespace": namespace}
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    made: dict[str, Object] = {
        f"/api/v1/namespaces/{namespace}/serviceaccounts": {"apiVersion": "v1", "kind": "ServiceAccount"},
        f"{rbac}/roles": {"apiVersion": role["apiVersion"], "kind": "Role", "rules": role["rules"]},
        f"{rbac}/rolebindings": {
            "apiVersion": role["apiVersion"],
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "controller"},
            "subjects": [bound],
        },
    }
    for path, obj in made.items():
        api.post(path, obj | {"metadata": meta})
    # In whose name the stages' pods run.
    stage = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": PROFILE.service_account}}
    api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", stage)
    return token_of(api, namespace, "controller")


def test_a_run_comes_to_its_end_with_the_charts_rights(
    server: Double | RealServer, films: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    api = server.api()
    with ExitStack() as folders, namespace_of(api) as namespace:
        token = account(api, namespace)
        path = f"/apis/bricks.dev/v1alpha1/namespaces/{namespace}/brickruns"
        spec = {
            "ingest": {"sources": [{"path": str(films), "licence": "CC0-1.0"}]},
            "clip": {"preset": "ultrafast"},
            "latents": {"resolutions": ["48x80"]},
        }
        run = {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": "tiny"}, "spec": spec}
        api.post(path, run)
        cluster = client_of(server.url, token, namespace)
        shell = Shell(Reconciler(cluster, store, PROFILE), resync_s=10, workers=2)
        thread = threading.Thread(target=shell.serve, daemon=True)
        mounts = {"/store": tmp_path / "store"}
        # A socket's path has at most 107 bytes, and stages make some in their scratch folder.
        pods = Path(folders.enter_context(tempfile.TemporaryDirectory()))
        with Kubelet(server, namespace, pods, environment=ENVIRONMENT, mounts=mounts) as kubelet:
            thread.start()
            status = status_at_the_end(api, f"{path}/tiny", kubelet)
            shell.stop()
            thread.join(60)
        assert status["phase"] == "Succeeded", status["stages"]
        assert [stage["name"] for stage in status["stages"]] == STAGES
        assert list(finished(run_of(run), store)) == STAGES
        names = {job["metadata"]["name"] for job in api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs")["items"]}
        assert names == {f"tiny-{stage}-a1" for stage in STAGES}
        api.delete(f"{path}/tiny")
        eventually(lambda: not api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs")["items"])


def status_at_the_end(api: Api, path: str, kubelet: Kubelet) -> Object:
    end = time.monotonic() + LONG_S
    while True:
        status: Object = api.get(path).get("status") or {}
        if any(each["type"] == "Finished" and each["status"] == "True" for each in status.get("conditions", ())):
            return status
        assert time.monotonic() < end, (status, kubelet.error)
        time.sleep(0.3)
