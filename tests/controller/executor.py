"""Plays scheduler and kubelet of a small cluster, one step at a time, for a controller under test.

A pod that ends well leaves what the stage would: tables and a manifest, written by the storage code that the
real stages use. Nothing happens by itself, so a test decides what comes when, and what went wrong.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from bricks_core.cluster.launcher import ATTEMPT_LABEL, STAGE_LABEL
from bricks_core.errors import DataError
from bricks_core.pipeline.points import point
from bricks_core.pipeline.resolve import Address, address_alone
from bricks_core.progress import Progress
from bricks_core.spec.run import BrickRun, run_of
from bricks_core.storage.artifacts import find_manifest, open_artifact
from bricks_core.storage.store import Store
from bricks_core.storage.work import Joined, Work
from tests.kubernetes.double import Double

Object = dict[str, Any]
SUCCEEDS = 0


@dataclass
class Executor:
    """`ends` says with which exit code the next pod of a stage's try ends; None leaves it running."""

    server: Double
    store: Store
    ends: Callable[[str, int], int | None] = lambda stage, attempt: SUCCEEDS
    namespace: str = "bricks"
    num_commits: Counter[str] = field(default_factory=Counter)
    """Manifests written, by stage and digest."""
    done_at: dict[str, int] = field(default_factory=dict)
    """The server's version when a stage's manifest was written."""

    def step(self) -> None:
        """Every pod that waits runs, every one that runs ends, every one that is being deleted is gone."""
        with self.server.storage.lock:
            for pod in self.all("pods"):
                self._work_on(copy.deepcopy(pod))
            self.server.settle()

    def _work_on(self, pod: Object) -> None:
        name, phase = pod["metadata"]["name"], (pod.get("status") or {}).get("phase")
        if pod["metadata"].get("deletionTimestamp"):
            self.server.storage.delete(self._kind("pods"), self.namespace, name, {"gracePeriodSeconds": 0})
        elif phase == "Running":
            labels = pod["metadata"]["labels"]
            code = self.ends(labels[STAGE_LABEL], int(labels[ATTEMPT_LABEL]))
            if code == SUCCEEDS:
                code = self._leave_artifact(pod)
            if code is not None:
                ended = {"exitCode": code, "finishedAt": self.server.clock.stamp(), "message": f"ended with {code}"}
                self._tell(name, "Failed" if code else "Succeeded", {"terminated": ended})
        elif phase not in ("Succeeded", "Failed"):
            bound = pod | {"spec": pod["spec"] | {"nodeName": "node-1"}}
            self.server.storage.update(self._kind("pods"), self.namespace, name, lambda _: bound)
            self._tell(name, "Running", {"running": {"startedAt": self.server.clock.stamp()}})

    def _leave_artifact(self, pod: Object) -> int:
        """What `run_alone` does, with empty tables; returns the pod's exit code."""
        stage = pod["metadata"]["labels"][STAGE_LABEL]
        run = self._run_of(pod)
        try:
            self._make(run, address_alone(run, self.store, stage))
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
            work.commit(Joined({table: [] for table in stage.tables}, counts={"items": 2}))
            self.num_commits[f"{stage.name}/{address.digest}"] += 1
            self.done_at[f"{stage.name}/{address.digest}"] = self.server.storage.version
        point(run.name, self.store, address.pointer())

    def _run_of(self, pod: Object) -> BrickRun:
        """From the ConfigMap that it mounts, as the stage reads it."""
        name = next(each["configMap"]["name"] for each in pod["spec"]["volumes"] if "configMap" in each)
        config = self.server.storage.get(self._kind("configmaps"), self.namespace, name)
        return run_of(yaml.safe_load(config["data"]["run.yaml"]))

    def _tell(self, name: str, phase: str, state: Object) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}

        def change(pod: Object) -> Object:
            return pod | {"status": (pod.get("status") or {}) | status}

        self.server.storage.update(self._kind("pods"), self.namespace, name, change, "status")

    def _kind(self, plural: str, group: str = "") -> Any:
        found = self.server.storage.resource(group, plural)
        assert found is not None
        return found

    def all(self, plural: str, group: str = "") -> list[Object]:
        return self.server.storage.all(self._kind(plural, group), self.namespace)
