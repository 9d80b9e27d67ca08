"""Plays the Job controller and the kubelets of a small cluster, one step at a time, for a controller under test.

A pod that ends well leaves what the stage would: parts, tables and a manifest, written by the storage code that the
real stages use. Nothing happens by itself, so a test decides what comes when, and what went wrong.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bricks_core.cluster.launcher import STAGE_LABEL
from bricks_core.errors import DataError
from bricks_core.pipeline.plan import Address, addresses, point
from bricks_core.progress import Progress
from bricks_core.spec.run import BrickRun, run_of
from bricks_core.storage.artifacts import find_manifest, open_artifact
from bricks_core.storage.store import Store
from bricks_core.storage.work import Work
from tests.kubernetes.double import Double

Object = dict[str, Any]
SUCCEEDS = 0


@dataclass
class Executor:
    """`ends` says with which exit code the next pod of a job ends; None leaves it running."""

    server: Double
    store: Store
    ends: Callable[[str, int], int | None] = lambda stage, attempt: SUCCEEDS
    namespace: str = "bricks"
    num_commits: Counter[str] = field(default_factory=Counter)
    """Manifests written, by stage and digest."""
    done_at: dict[str, int] = field(default_factory=dict)
    """The server's version when a stage's manifest was written."""

    def step(self) -> None:
        """Every job gets a pod, every pod that has one runs on to its end, every end is told to its job."""
        with self.server.storage.lock:
            for job in self.all("jobs", "batch"):
                self._work_on(copy.deepcopy(job))
            self.server.settle()

    def _work_on(self, job: Object) -> None:
        pods = [pod for pod in self.all("pods") if _owner(pod) == job["metadata"]["uid"]]
        going = job["metadata"].get("deletionTimestamp")
        for pod in pods:
            if pod["metadata"].get("deletionTimestamp"):
                self.server.storage.delete(self._kind("pods"), self.namespace, pod["metadata"]["name"], _AT_ONCE)
        if going or job["spec"].get("suspend") or _is_over(job):
            return
        if not pods:
            self._start(job)
            return
        code = self.ends(job["metadata"]["labels"][STAGE_LABEL], _attempt(job))
        if code is None:
            return
        if code == SUCCEEDS:
            code = self._leave_artifact(job)
        self._end(job, pods[0], code)

    def _start(self, job: Object) -> None:
        name = f"{job['metadata']['name']}-0-xxxxx"
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        labels = job["spec"]["template"]["metadata"]["labels"] | {"batch.kubernetes.io/job-completion-index": "0"}
        spec = copy.deepcopy(job["spec"]["template"]["spec"]) | {"nodeName": "node-1"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": labels,
                "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
            },
            "spec": spec,
        }
        self.server.storage.create(self._kind("pods"), self.namespace, pod)
        self._pod_status(name, "Running", {"running": {"startedAt": self.server.clock.stamp()}})
        self._job_status(job, {"active": 1, "startTime": self.server.clock.stamp()})

    def _end(self, job: Object, pod: Object, code: int) -> None:
        now = self.server.clock.stamp()
        ended = {"exitCode": code, "finishedAt": now, "message": f"ended with {code}"}
        self._pod_status(pod["metadata"]["name"], "Failed" if code else "Succeeded", {"terminated": ended})
        kind, reason = ("Failed", "BackoffLimitExceeded") if code else ("Complete", "CompletionsReached")
        told = {"type": kind, "status": "True", "reason": reason, "message": reason, "lastTransitionTime": now}
        counted = {"failed": 1} if code else {"succeeded": 1, "completionTime": now}
        self._job_status(job, {"active": 0, "conditions": [told], **counted})

    def _leave_artifact(self, job: Object) -> int:
        """What `run_alone` does, with two empty items; returns the pod's exit code."""
        stage = job["metadata"]["labels"][STAGE_LABEL]
        run = self._run_of(job)
        try:
            address = addresses(run, self.store, stage, frozen=stage != "ingest")[-1]
            self._make(run, address)
        except DataError as error:
            return error.exit_code
        return SUCCEEDS

    def _make(self, run: BrickRun, address: Address) -> None:
        stage = address.stage
        if find_manifest(self.store, stage.name, address.digest) is None:
            inputs = {name: open_artifact(self.store, name, address.inputs[name]) for name in stage.needs}
            work = Work(
                self.store, stage, address.spec, address.digest, address.inputs, inputs, Progress(stage.name), run=run
            )
            for item in ("00000001", "00000002"):
                work.done(item, {})
            work.commit({table: [] for table in stage.tables}, counts={"items": 2})
            self.num_commits[f"{stage.name}/{address.digest}"] += 1
            self.done_at[f"{stage.name}/{address.digest}"] = self.server.storage.version
        point(run.name, self.store, address)

    def _run_of(self, job: Object) -> BrickRun:
        """From the ConfigMap that its pods mount, as they read it."""
        import yaml

        volumes = job["spec"]["template"]["spec"]["volumes"]
        name = next(each["configMap"]["name"] for each in volumes if "configMap" in each)
        config = self.server.storage.get(self._kind("configmaps"), self.namespace, name)
        return run_of(yaml.safe_load(config["data"]["run.yaml"]))

    def _pod_status(self, name: str, phase: str, state: Object) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
        self._status("pods", name, status)

    def _job_status(self, job: Object, status: Object) -> None:
        self._status("jobs", job["metadata"]["name"], status, "batch")

    def _status(self, plural: str, name: str, status: Object, group: str = "") -> None:
        def change(obj: Object) -> Object:
            return obj | {"status": (obj.get("status") or {}) | status}

        self.server.storage.update(self._kind(plural, group), self.namespace, name, change, "status")

    def _kind(self, plural: str, group: str = "") -> Any:
        found = self.server.storage.resource(group, plural)
        assert found is not None
        return found

    def all(self, plural: str, group: str = "") -> list[Object]:
        return self.server.storage.all(self._kind(plural, group), self.namespace)


_AT_ONCE = {"gracePeriodSeconds": 0}


def _owner(pod: Object) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def _attempt(job: Object) -> int:
    return int(job["metadata"]["name"].rpartition("-a")[2])


def _is_over(job: Object) -> bool:
    ended = ("Complete", "Failed")
    return any(each["type"] in ended for each in (job.get("status") or {}).get("conditions") or ())
