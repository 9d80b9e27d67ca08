"""Plain manifests, applied to an API server with nobody but Kubernetes there: their pods' commands run for real."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bricks_core.cluster.launchers import launcher_of
from bricks_core.cluster.manifests import objects, plain_task
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import BrickRun
from bricks_core.storage.artifacts import find_manifest
from bricks_core.storage.places import open_store
from tests.journey.tiny_run import TINY
from tests.kubernetes.double import Double
from tests.kubernetes.kubelet import Kubelet

ROOT = Path(__file__).parents[2]
PROFILE = ClusterProfile.model_validate({"store": {"uri": "file:///store/bricks", "claim": "films"}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The tiny run, of two generated films, with two shards a stage."""
    films = tmp_path_factory.mktemp("films")
    settings = ["--films", "2", "--scenes", "2", "--height", "96", "--photos", "16", "16"]
    subprocess.run([sys.executable, "examples/make_films.py", films, *settings], cwd=ROOT, check=True)
    document = json.loads(json.dumps(TINY).replace("FILMS", str(films)))
    document["spec"]["cluster"] = {"stages": {name: {"shards": 2} for name in ("ingest", "clip")}}
    return BrickRun.model_validate(document)


@pytest.fixture(scope="module")
def folder():
    """A short path: sockets of a pod's processes are in its scratch, and a socket's path has at most 107 letters."""
    with tempfile.TemporaryDirectory(prefix="b") as name:
        (Path(name) / "store").mkdir()
        yield Path(name)


@pytest.fixture(scope="module")
def applied(run, folder):
    """applied("ingest"): the stage's manifest is applied; returns what its launcher says when it is over."""
    with Double() as server, Kubelet(server, "bricks", folder / "pods", mounts={"/store": folder / "store"}) as kubelet:
        cluster = server.cluster("bricks")

        def apply(stage, name=""):
            for each in objects(plain_task(run, stage, PROFILE, name=name)):
                if each["kind"] != "ConfigMap" or not cluster.list("ConfigMap"):
                    workload = cluster.create(each)
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                workload = cluster.get(workload["kind"], workload["metadata"]["name"])
                pods = cluster.list("Pod", labels={"bricks.dev/stage": stage})
                pods = [pod for pod in pods if pod["metadata"]["name"].startswith(workload["metadata"]["name"])]
                seen = launcher_of(workload).observe(workload, pods)
                if seen.state in ("succeeded", "failed"):
                    return seen
                time.sleep(0.1)
            said = "".join(kubelet.said(pod["metadata"]["name"]) for pod in cluster.list("Pod"))
            raise AssertionError(f"{seen}\n{said}")

        apply.store = open_store(f"file://{folder / 'store' / 'bricks'}")
        yield apply


def test_stages_share_their_work_in_order_and_one_before_its_turn_says_what_is_missing(applied, run):
    early = applied("clip", name="too-early")
    assert early.state == "failed"
    assert (early.failure.exit_code, early.failure.disrupted) == (65, False)
    assert "ended with 65. Its last line: clip:" in early.message
    assert "has not ingested these sources" in early.message
    for stage in ("ingest", "clip"):
        seen = applied(stage)
        assert seen.state == "succeeded", seen.message
        assert seen.num_succeeded == 2
        pointer = read_pointer(applied.store, run.name, stage)
        assert find_manifest(applied.store, stage, pointer.digest)
