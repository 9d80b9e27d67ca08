"""A whole run on a cluster: the chart installed by Helm, the controller with the rights that the chart gives it, the
pods' real commands as processes, artifacts in S3. On the double with shards and two nodes that train together; on
Kubernetes 1.20.2, which drops what it does not know of a Job, with one pod a stage."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.pipeline.plan import differences
from tests.chart.chart import CHART
from tests.chart.test_install import Helm4, for_old_kubernetes, without_the_kind
from tests.journey.tiny_run import STAGES, Runner, artifacts, timeless
from tests.kubernetes.crds import kubeflow
from tests.kubernetes.double import Double
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.pods import BIN
from tests.kubernetes.raw import Answered, Api, eventually
from tests.kubernetes.real import RealServer, namespace_of, real_server, token_of
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.slow

WHOLE_RUN_S = 600


@dataclass(frozen=True)
class Town:
    """A cluster with Bricks in it, and what a user has to reach it."""

    is_double: bool
    api: Api
    namespace: str
    kubeconfig: Path
    kubelet: Kubelet
    prefix: str
    num_nodes: int

    def children(self, run: str) -> list[str]:
        """The run's workloads, by kind and name."""
        found = []
        for group, plural in (("batch/v1", "jobs"), ("kubeflow.org/v1", "pytorchjobs")):
            with suppress(Answered):  # this server does not have the kind
                items = self.api.get(f"/apis/{group}/namespaces/{self.namespace}/{plural}")["items"]
                ours = (each["metadata"] for each in items if each["metadata"]["labels"]["bricks.dev/run"] == run)
                found += [f"{plural}/{each['name']}" for each in ours]
        return sorted(found)


@pytest.fixture(scope="module", params=["the double", "1.20.2"])
def town(
    request: pytest.FixtureRequest, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    if request.param == "the double":
        with Double(crds=kubeflow("PyTorchJob")) as double:
            helm = Helm4(double.kubeconfig(folder / "admin"), "bricks", CHART, storage="memory")
            with _settled(double, "bricks", helm, folder, s3_server, num_nodes=2, num_shards=2) as town:
                yield town
        return
    server = real_server()
    with namespace_of(server.api()) as namespace, without_the_kind(server.api()):
        chart = for_old_kubernetes(folder / "bricks")
        helm = Helm4(server.kubeconfig(folder / "admin", namespace=namespace), namespace, chart)
        with _settled(server, namespace, helm, folder, s3_server, num_nodes=1, num_shards=1) as town:
            yield town


@contextmanager
def _settled(
    server: Double | RealServer,
    namespace: str,
    helm: Helm4,
    folder: Path,
    s3: S3Server,
    *,
    num_nodes: int,
    num_shards: int,
) -> Iterator[Town]:
    """Install the chart, start the controller that it describes, and play kubelet."""
    api, prefix = server.api(), f"town-{num_nodes}"
    keys = {name: s3.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": keys}
    api.post(f"/api/v1/namespaces/{namespace}/secrets", secret)
    stages = {name: {"shards": num_shards, "parallelism": 1, "gpus": 0} for name in STAGES if name != "train"}
    helm.install(
        {
            "storage": {
                "s3": {
                    "bucket": BUCKET,
                    "prefix": prefix,
                    "endpoint": s3.endpoint,
                    "region": "us-east-1",
                    "existingSecret": "s3",
                }
            },
            "stages": stages,
            "train": {"nodes": num_nodes, "gpusPerNode": 0},
            "preflight": {"freeDiskBytes": 1 << 20, "shmBytes": 1 << 20, "maxBytes": 1 << 20},
        }
    )
    # The controller runs here, as a process, with the account and the profile that the chart made for its pod.
    deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    (deployment,) = api.get(deployments)["items"]
    api.delete(f"{deployments}/{deployment['metadata']['name']}")
    configs = api.get(f"/api/v1/namespaces/{namespace}/configmaps")["items"]
    (profile,) = [each["data"]["profile.yaml"] for each in configs if "profile.yaml" in each.get("data", {})]
    (folder / "profile.yaml").write_text(profile, encoding="utf-8")
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    token = token_of(api, namespace, account)
    if isinstance(server, Double):
        from tests.kubernetes.access import service_account

        token = server.token(service_account(namespace, account))
        kubeconfig = server.kubeconfig(folder / "controller", namespace=namespace, user=server.user(token))
    else:
        kubeconfig = server.kubeconfig(folder / "controller", namespace=namespace, token=token)
    environment = {"OMP_NUM_THREADS": "1", "BRICKS_COMMIT": "tested", "XDG_CACHE_HOME": str(folder / "cache")}
    environment |= {name: s3.environment[name] for name in ("AWS_EC2_METADATA_DISABLED", "AWS_CONFIG_FILE")}
    controller = subprocess.Popen(
        [str(BIN / "bricks-controller"), "--profile", str(folder / "profile.yaml"), "--resync-s", "5"],
        env=os.environ | s3.environment | {"KUBECONFIG": str(kubeconfig), "BRICKS_NAMESPACE": namespace},
        stdout=(folder / "controller.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        # A short path: the sockets that a stage's processes meet at lie in it, and a socket's may have 107 characters.
        with (
            tempfile.TemporaryDirectory(prefix="pods-") as pods,
            Kubelet(server, namespace, Path(pods), environment=environment, nodes=["one", "two"]) as kubelet,
        ):
            yield Town(isinstance(server, Double), api, namespace, folder / "admin", kubelet, prefix, num_nodes)
    finally:
        controller.terminate()
        assert controller.wait(30) == 0, (folder / "controller.log").read_text(encoding="utf-8")[-3000:]


@pytest.fixture(scope="module")
def user(town: Town, new_runner: Callable[..., Runner]) -> Callable[..., Any]:
    """bricks(...) as somebody calls it who has the run's file and a kubeconfig."""
    runner = new_runner()

    def bricks(*arguments: str, code: int | None = 0) -> Any:
        return runner.bricks(*arguments, "--namespace", town.namespace, code=code, KUBECONFIG=str(town.kubeconfig))

    return bricks


@pytest.fixture(scope="module")
def submitted(town: Town, user: Callable[..., Any]) -> Any:
    """The tiny run, handed in and waited for."""
    return user("submit", "tiny.yaml", "--wait", "--timeout", f"{WHOLE_RUN_S}s")


def test_a_run_that_is_handed_in_goes_through_all_stages(town, submitted):
    run = town.api.get(f"/apis/bricks.dev/v1alpha1/namespaces/{town.namespace}/brickruns/tiny")
    assert run["status"]["phase"] == "Succeeded"
    conditions = {each["type"]: each["status"] for each in run["status"]["conditions"]}
    assert conditions["Finished"] == conditions["Succeeded"] == "True"
    assert [(each["name"], each["state"], each["attempt"]) for each in run["status"]["stages"]] == [
        (stage, "Done", 1) for stage in STAGES
    ]
    assert run["metadata"].get("finalizers") is None


def test_each_stage_was_one_workload_and_training_one_of_all_its_nodes(town, submitted):
    kinds = dict.fromkeys(STAGES, "jobs") | {"train": "pytorchjobs" if town.num_nodes > 1 else "jobs"}
    assert town.children("tiny") == sorted(f"{kind}/tiny-{stage}-a1" for stage, kind in kinds.items())


def test_it_leaves_what_one_process_leaves_in_a_folder(town, submitted, finished, s3_server):
    stored = s3_server.objects(f"{town.prefix}/artifacts/")
    here = timeless(content for key, content in stored.items() if key.endswith("/manifest.json"))
    there = artifacts(finished.folder / "bricks-store")
    assert here.keys() == there.keys()
    # Two processes that train add up in another order than one: from there on only the addresses are the same.
    same = [key for key in there if town.num_nodes == 1 or key.partition("/")[0] in STAGES[:5]]
    assert list(differences({key: here[key] for key in same}, {key: there[key] for key in same})) == []


def test_the_nodes_showed_that_they_are_fit_before_they_trained(town, submitted, s3_server):
    (found,) = s3_server.objects(f"{town.prefix}/runs/tiny/preflight/preflight.json").values()
    report = json.loads(found)
    assert len(report["nodes"]) == town.num_nodes
    assert "failed" not in json.dumps(report)


def test_status_and_logs_tell_what_was_done(town, submitted, user):
    screen = user("status", "tiny", "--cluster").out
    assert "Succeeded" in screen
    assert all(stage in screen for stage in STAGES)
    if town.is_double:  # the real one would ask a kubelet that is none
        assert "train: 9/9 steps" in user("logs", "tiny", "train").out


def test_another_run_that_asks_the_same_only_looks_at_its_sources(town, submitted, user):
    user("submit", "tiny.yaml", "--set", "metadata.name=again", "--wait", "--timeout", f"{WHOLE_RUN_S}s")
    assert town.children("again") == ["jobs/again-ingest-a1"]


def test_a_run_that_cannot_be_is_told_and_starts_nothing(town, tiny):
    document = yaml.safe_load(tiny())
    document["metadata"]["name"] = "wrong"
    document["spec"]["evaluate"]["resolution"] = "720p"
    path = f"/apis/bricks.dev/v1alpha1/namespaces/{town.namespace}/brickruns"
    town.api.post(path, document)

    def refused() -> bool:
        conditions = town.api.get(f"{path}/wrong").get("status", {}).get("conditions", [])
        return any(each["type"] == "Accepted" and each["status"] == "False" for each in conditions)

    eventually(refused)
    told = json.dumps(town.api.get(f"{path}/wrong")["status"])
    assert "evaluate.resolution is 720p" in told
    assert town.children("wrong") == []


def test_with_the_run_go_its_workloads_and_nothing_of_the_store(town, submitted, s3_server):
    before = s3_server.keys(f"{town.prefix}/artifacts/")
    town.api.delete(f"/apis/bricks.dev/v1alpha1/namespaces/{town.namespace}/brickruns/tiny")
    eventually(lambda: town.children("tiny") == [])
    assert s3_server.keys(f"{town.prefix}/artifacts/") == before
