"""What has begun is kept: a newer controller, with another chart's values, comes to runs that are under way.

The controllers are real processes, killed as SIGKILL does; the newer one (newer.py) has raised the version of every
stage and of an item's function, and added two fields to a section. The API server is the double, and Kubernetes 1.20.2
where it can be started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from bricks_core.cluster.api import Cluster
from bricks_core.cluster.launcher import RUN_LABEL
from bricks_core.cluster.runs import retry
from bricks_core.controller.crd import crd
from bricks_core.errors import DataError
from bricks_core.pipeline.points import point
from bricks_core.pipeline.resolve import address_alone
from bricks_core.progress import Progress
from bricks_core.spec.run import run_of
from bricks_core.spec.stages import STAGES, until
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.work import Joined, Work
from tests.controller.town import TRAIN
from tests.kubernetes.double import Double
from tests.kubernetes.raw import Api, eventually
from tests.kubernetes.real import namespace_of, real_server

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LONG_S = 120.0
LIVE = {"cutting": "clip", "encoding": "latents", "training": "train"}
"""Runs under way, and their stage."""


@dataclass
class Site:
    """A namespace with runs, a store, and the process of a controller."""

    api: Api
    cluster: Cluster
    kubeconfig: Path
    folder: Path
    namespace: str
    program: subprocess.Popen[bytes] | None = None
    code: str = ""
    logs: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = open_store(str(self.folder / "store"))
        (self.folder / "films").mkdir()
        (self.folder / "films" / "a.mp4").write_bytes(b"never opened here")

    def start(self, module: str, tag: str, memory: str) -> None:
        """A controller of a version, with a chart's values."""
        self.kill()
        profile = {
            "images": {"registry": "example.org/bricks", "tag": tag},
            "stages": {"clip": {"memory": memory, "shards": 1}, "latents": {"memory": memory, "shards": 1}},
            "train": {"launcher": "job", "memory": memory},
            "store": {"uri": "s3://not-asked/here"},
        }
        file = self.folder / f"profile-{tag}.yaml"
        file.write_text(yaml.safe_dump(profile), encoding="utf-8")
        log = self.folder / f"controller-{len(self.logs)}.log"
        self.logs.append(log)
        self.code = f"+{tag}"
        with log.open("wb") as out:
            self.program = subprocess.Popen(
                [sys.executable, "-m", module, f"--profile={file}", "--resync-s=1"],
                cwd=ROOT,
                env=os.environ
                | {
                    "KUBECONFIG": str(self.kubeconfig),
                    "BRICKS_STORE": self.store.uri,
                    "BRICKS_NAMESPACE": self.namespace,
                    "BRICKS_COMMIT": tag,
                },
                stdout=out,
                stderr=out,
            )

    def kill(self) -> None:
        if self.program is not None:
            self.program.kill()
            self.program.wait()
            self.program = None

    def hand_in(self, name: str, done_before: str = "ingest", **spec: Any) -> None:
        """A run whose stages before one are done already, by code of before the upgrade."""
        raw = {
            "apiVersion": "bricks.dev/v1alpha1",
            "kind": "BrickRun",
            "metadata": {"name": name},
            # A licence of its own, so that no run waits for another one's work.
            "spec": {"ingest": {"sources": [{"path": str(self.folder / "films"), "licence": name}]}} | spec,
        }
        self.finish(raw, done_before)
        self.cluster.create(raw)

    def finish(self, raw: Object, done_before: str) -> None:
        run = run_of(raw)
        for stage in until(done_before)[:-1]:
            address = address_alone(run, self.store, stage.name)
            inputs = {need: open_artifact(self.store, need, address.inputs[need]) for need in stage.needs}
            work = Work(
                self.store, stage, address.spec, address.digest, address.inputs, inputs, Progress(stage.name), run=run
            )
            work.commit(Joined({table: [] for table in stage.tables}, counts={"items": 2}))
            point(run.name, self.store, address.pointer())

    def run(self, name: str) -> Object:
        found: Object = self.cluster.get("BrickRun", name)
        return found

    def condition(self, name: str, kind: str) -> Object:
        told = (self.run(name).get("status") or {}).get("conditions") or ()
        return next((each for each in told if each["type"] == kind), {})

    def phase(self, name: str) -> str:
        return str((self.run(name).get("status") or {}).get("phase"))

    def children(self, name: str) -> dict[str, str]:
        """Names of a run's Jobs, and their uids."""
        jobs = self.cluster.list("Job", labels={RUN_LABEL: name})
        return {job["metadata"]["name"]: job["metadata"]["uid"] for job in jobs}

    def job(self, name: str) -> Object:
        return self.cluster.get("Job", name)

    def container(self, job: str) -> Object:
        found: Object = self.job(job)["spec"]["template"]["spec"]["containers"][0]
        return found

    def config(self, job: str) -> str:
        volumes = self.job(job)["spec"]["template"]["spec"]["volumes"]
        return str(next(each["configMap"]["name"] for each in volumes if "configMap" in each))

    def fail(self, job: str) -> None:
        """As if its pod had ended badly, a while ago."""
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job}"
        then = "2026-01-01T00:00:00Z"
        told = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": then}
        self.api.patch(f"{path}/status", {"status": {"conditions": [told]}})
        for pod in self.cluster.list("Pod", labels={"job-name": job}):
            self.cluster.delete("Pod", pod["metadata"]["name"], foreground=False)

    def was_looked_at(self, *names: str) -> bool:
        """Whether the controller that runs now has looked at them all."""
        return all(str((self.run(name).get("status") or {}).get("controller")).endswith(self.code) for name in names)


@contextmanager
def site(api: Api, cluster: Cluster, kubeconfig: Path, folder: Path, namespace: str) -> Iterator[Site]:
    here = Site(api, cluster, kubeconfig, folder, namespace)
    try:
        yield here
    finally:
        here.kill()


@pytest.fixture(params=["double", "1.20.2"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "double":
        with Double(crds=[crd()]) as server:
            config = server.kubeconfig(tmp_path / "kubeconfig", namespace="bricks")
            with site(server.api(), server.cluster("bricks"), config, tmp_path, "bricks") as found:
                yield found
        return
    real = real_server()
    api = real.api()
    api.post(CRDS, crd())
    eventually(lambda: api.get("/apis/bricks.dev/v1alpha1"))
    with namespace_of(api) as namespace:
        config = real.kubeconfig(tmp_path / "kubeconfig", namespace=namespace)
        with site(api, real.cluster(namespace), config, tmp_path, namespace) as found:
            yield found
    api.delete(f"{CRDS}/{crd()['metadata']['name']}")
    eventually(lambda: not real.cluster("default").knows("BrickRun"))


def soon(so: Any) -> None:
    eventually(so, within_s=LONG_S, every_s=0.1)


def begin(here: Site) -> None:
    """Runs under way, one that failed for good and one that was cancelled, by the version of before."""
    here.start("jobs.controller", "1.0.0", "4Gi")
    latents = {"latents": {"resolutions": ["144p"]}}
    here.hand_in("cutting", "clip")
    here.hand_in("encoding", "latents", **latents)
    here.hand_in("training", "train", train=TRAIN, **latents)
    here.hand_in("failing", "clip", cluster={"attempts": 1})
    here.hand_in("stopping", "clip")
    names = (*LIVE, "failing", "stopping")
    soon(lambda: all(here.children(name) for name in names))
    here.fail("failing-clip-a1")
    here.cluster.patch("BrickRun", "stopping", {"spec": {"cancel": True}})
    soon(lambda: here.phase("failing") == "Failed" and here.phase("stopping") == "Cancelled")
    soon(lambda: not here.children("stopping"))


def upgrade(here: Site) -> None:
    """Killed, replaced, killed again as soon as it has said something, and started once more."""
    names = (*LIVE, "failing", "stopping")
    here.start("tests.controller.newer", "2.0.0", "8Gi")
    soon(lambda: any(here.was_looked_at(name) for name in names))
    here.start("tests.controller.newer", "2.0.0", "8Gi")
    soon(lambda: here.was_looked_at(*names))


def test_an_upgrade_stops_nothing_and_begins_nothing(here: Site) -> None:
    begin(here)
    before = {name: here.children(name) for name in (*LIVE, "failing", "stopping")}
    upgrade(here)
    assert {name: here.children(name) for name in before} == before
    assert (here.phase("failing"), here.phase("stopping")) == ("Failed", "Cancelled")
    for name, stage in LIVE.items():
        condition = here.condition(name, "UpToDate")
        assert (condition["status"], condition["reason"]) == ("False", "NewerVersion")
        assert f"{stage} {STAGES[stage].version} → {STAGES[stage].version + 1}" in condition["message"]
        assert f"bricks retry {name} --renew" in condition["message"]
        status = here.run(name)["status"]
        assert status["currentStage"] == stage
        assert status["pinned"]["codeVersion"].endswith("+1.0.0")
        pinned = next(each for each in status["pinned"]["stages"] if each["name"] == stage)
        assert pinned == {
            "name": stage,
            "version": STAGES[stage].version,
            "image": f"example.org/bricks/bricks-{stage}:1.0.0",
        }

        # Pods of before find what they read: nothing was written that they do not understand.
        assert address_alone(run_of(here.run(name)), here.store, stage).stage.name == stage

    # A stage goes on as it began, with what its pod is given now.
    for name, stage in LIVE.items():
        here.fail(f"{name}-{stage}-a1")
    for name, stage in LIVE.items():
        first, second = f"{name}-{stage}-a1", f"{name}-{stage}-a2"
        soon(lambda name=name, second=second: second in here.children(name))  # type: ignore[misc]
        container = here.container(second)
        assert container["image"] == f"example.org/bricks/bricks-{stage}:1.0.0"
        assert container["resources"]["limits"]["memory"] == "8Gi"
        assert here.config(second) == here.config(first)

    # What is over begins again once for each time that somebody asks for it.
    with pytest.raises(DataError, match="not at its end"):
        retry(here.cluster, "cutting")
    assert retry(here.cluster, "failing") == "Failed"
    assert retry(here.cluster, "stopping") == "Cancelled"
    soon(lambda: set(here.children("failing")) == {"failing-clip-a1", "failing-clip-a2"})
    soon(lambda: set(here.children("stopping")) == {"stopping-clip-a1"})
    for job in ("failing-clip-a2", "stopping-clip-a1"):
        assert here.container(job)["image"] == "example.org/bricks/bricks-clip:2.0.0"
    here.fail("failing-clip-a2")
    soon(lambda: here.phase("failing") == "Failed")
    again = {name: here.children(name) for name in before}
    here.start("tests.controller.newer", "3.0.0", "16Gi")
    soon(lambda: here.was_looked_at(*before))
    assert {name: here.children(name) for name in before} == again
    assert here.phase("failing") == "Failed"
