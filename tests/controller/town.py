"""A cluster with one run, a store, and controllers that may die at any call.

The API server is the double, over HTTP; pods are played by an executor that writes with the real storage code. Calls of
the controller are counted, so that a test says what strikes at which of them: before it took effect, after, or instead.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bricks_core.cluster.launcher import ATTEMPT_LABEL, RUN_LABEL, STAGE_LABEL
from bricks_core.controller.crd import crd
from bricks_core.controller.notices import Notices
from bricks_core.controller.reconcile import Reconciler
from bricks_core.errors import StoreUnavailable, TryLater
from bricks_core.pipeline.resolve import finished
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.run import run_of
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from tests.controller.executor import Executor
from tests.journey.tiny_run import artifacts
from tests.kubernetes.access import ADMIN, User
from tests.kubernetes.double import Double

Object = dict[str, Any]
STAGES = ("ingest", "clip", "score", "caption", "latents")
ATTEMPTS = 3
MAX_LOOKS = 150
PROFILE = ClusterProfile.model_validate({"stages": {stage: {"shards": 1} for stage in STAGES}})
TRAIN = {
    "phases": [
        {
            "name": "one",
            "steps": 3,
            "buckets": [{"num_frames": 1, "resolution": "144p", "batch_size": 1}],
            "schedule": {"kind": "constant", "lr": 1e-4},
        }
    ]
}
"""Settings of a training that is never run."""


class Killed(BaseException):
    """SIGKILL, as far as the code that it strikes can tell."""


class Broken(BaseException):
    """Something that must hold at any moment does not."""


class Struck:
    """An object whose every call is announced first."""

    def __init__(self, target: Any, strike: Callable[[], str]):
        self._target = target
        self._strike = strike

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._target, name)
        if not callable(there):
            return there

        def call(*args: Any, **kwargs: Any) -> Any:
            effect = self._strike()
            if effect == "kill before":
                raise Killed
            if effect == "store away" and isinstance(self._target, Store):
                raise StoreUnavailable("The store does not answer.")
            if effect == "store busy" and isinstance(self._target, Store):
                raise TryLater("The store is too busy.")
            answer = there(*args, **kwargs)
            if effect == "kill after":
                raise Killed
            return answer

        return call


@dataclass
class Town:
    """A cluster with one run, a store, and controllers that may die."""

    server: Double
    folder: Path
    codes: list[int]
    """How the pods end, in turn; then they all end well."""
    executor: Executor = field(init=False)
    store: Store = field(init=False)
    strikes: dict[int, str] = field(default_factory=dict)
    """What happens at which call of the look that is under way."""
    num_calls: int = 0
    user: User = ADMIN
    """As whom the controllers come."""
    address: str = ""
    """Where they tell of the run's end, at once."""

    def __post_init__(self) -> None:
        self.store = open_store(str(self.folder / "store"))
        self.executor = Executor(self.server, self.store, lambda stage, attempt: self.codes.pop(0) if self.codes else 0)
        self.run: Object = self.server.make(run_object())

    def controller(self) -> Reconciler:
        """A new process, that remembers nothing."""
        cluster: Any = Struck(self.server.cluster(user=self.user), self.strike)
        store: Any = Struck(self.store, self.strike)
        return Reconciler(
            cluster,
            store,
            PROFILE,
            untold=Notices(cluster, store, self.address).tell if self.address else None,
            now=lambda: datetime.fromtimestamp(self.server.clock.now(), UTC),
        )

    def strike(self) -> str:
        self.num_calls += 1
        self.check()
        effect = self.strikes.pop(self.num_calls, "")
        if effect == "another controller":
            num_calls, strikes = self.num_calls, self.strikes
            self.strikes = {}
            self.controller().reconcile("tiny")
            self.num_calls, self.strikes = num_calls, strikes
        elif effect == "pods go on":
            self.executor.step()
            self.executor.step()
        elif effect == "time passes":
            self.server.advance(700)
        return effect

    def look(self, controller: Reconciler, strikes: dict[int, str]) -> Reconciler:
        """One look, struck; returns the controller that looks next time."""
        self.strikes, self.num_calls = dict(strikes), 0
        try:
            controller.reconcile("tiny")
        except Killed:
            return self.controller()
        finally:
            self.strikes = {}
        return controller

    def look_away(self, controller: Reconciler) -> float:
        """One look while the store does not answer; returns how long the controller wants to wait."""
        self.strikes, self.num_calls = dict.fromkeys(range(1, 100), "store away"), 0
        wait_s = controller.reconcile("tiny")
        self.strikes = {}
        assert wait_s is not None
        return wait_s

    def jobs(self) -> list[Object]:
        return self.server.cluster().list("Job")

    def status(self) -> Object:
        found: Object = self.server.cluster().get("BrickRun", "tiny").get("status") or {}
        return found

    def condition(self, kind: str) -> Object:
        return next((each for each in self.status().get("conditions", ()) if each["type"] == kind), {})

    def ask(self, **spec: Any) -> None:
        """Somebody changes the run file."""
        self.server.cluster().patch("BrickRun", "tiny", {"spec": spec})

    def lose_status(self) -> None:
        """Somebody deletes the run's status."""
        storage = self.server.storage
        kind = storage.resource("bricks.dev", "brickruns")
        assert kind is not None
        with storage.lock:
            storage.update(kind, "bricks", "tiny", lambda run: run | {"status": {}}, "status")

    def check(self) -> None:
        """What holds at any moment: one live child of a run's stage at most, all of them the run's."""
        with self.server.storage.lock:
            jobs = [
                job for job in self.executor.all("jobs", "batch") if STAGE_LABEL in job["metadata"].get("labels", {})
            ]
            live = [job for job in jobs if not is_over(job)]  # also those that are being deleted, with their pods
            at_once = Counter(
                (job["metadata"]["labels"][RUN_LABEL], job["metadata"]["labels"][STAGE_LABEL]) for job in live
            )
            owners = [[owner["kind"] for owner in job["metadata"].get("ownerReferences", ())] for job in jobs]
            # Not an assertion: the controller would take it for a fault of its own, and go on.
            if max(at_once.values(), default=0) > 1 or any(each != ["BrickRun"] for each in owners):
                raise Broken(f"{at_once} live at once, of {owners}")

    def come_to_rest(self, controller: Reconciler) -> None:
        """Nothing strikes any more: look, and let pods and time go on, until the run is finished."""
        self.strikes = {}
        self.server.faults.clear()
        for _ in range(MAX_LOOKS):
            controller.reconcile("tiny")
            if self.condition("Finished").get("status") == "True":
                return
            self.executor.step()
            self.server.advance(200)
        raise AssertionError(f"the run never ends: {self.status()}")

    def check_end(self) -> None:
        """The end is the one that its tries deserve, whatever happened on the way."""
        failures: dict[str, list[int]] = {}
        for job in self.jobs():
            failures.setdefault(job["metadata"]["labels"][STAGE_LABEL], []).append(exit_code(self.server, job))
        deserved = "Succeeded"
        for codes in failures.values():
            counted = [code for code in codes if code not in (0, 143)]
            assert len(counted) <= ATTEMPTS
            if len(counted) == ATTEMPTS or codes.count(70) > 1 or {64, 65, 78} & set(codes):
                deserved = "Failed"
        status = self.status()
        assert status["phase"] == deserved, status
        assert self.condition("Succeeded")["status"] == str(deserved == "Succeeded")
        assert self.condition("Degraded")["status"] == "False"
        assert all(count == 1 for count in self.executor.num_commits.values())
        if deserved == "Succeeded":
            assert artifacts(self.folder / "store") == undisturbed()
            assert list(finished(run_of(self.run), self.store)) == list(STAGES)
            assert [stage["state"] for stage in status["stages"]] == ["Done"] * len(STAGES)
        self._check_no_stage_twice()
        self._check_nothing_is_left()

    def _check_no_stage_twice(self) -> None:
        """No child was made for a stage whose artifact was there."""
        for change in self.server.storage.history:
            if change.type == "ADDED" and change.resource.plural == "jobs":
                stage = change.object["metadata"]["labels"][STAGE_LABEL]
                for made, version in self.executor.done_at.items():
                    assert not made.startswith(f"{stage}/") or change.version < version, f"{stage} was done"

    def _check_nothing_is_left(self) -> None:
        """What the controller made goes with the run."""
        cluster = self.server.cluster()
        cluster.delete("BrickRun", "tiny", foreground=False)
        self.executor.step()
        self.server.settle()
        assert not cluster.list("Job")
        assert not cluster.list("Pod")
        assert not cluster.list("ConfigMap")


def run_object(**spec: Any) -> Object:
    return {
        "apiVersion": "bricks.dev/v1alpha1",
        "kind": "BrickRun",
        "metadata": {"name": "tiny", "namespace": "bricks"},
        "spec": {"ingest": {"sources": [{"path": str(films())}]}, "cluster": {"attempts": ATTEMPTS}} | spec,
    }


def is_over(job: Object) -> bool:
    told = (job.get("status") or {}).get("conditions") or ()
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in told)


def exit_code(server: Double, job: Object) -> int:
    """Of a job's pod; 0 while it has none."""
    mine = {key: job["metadata"]["labels"][key] for key in (STAGE_LABEL, ATTEMPT_LABEL)}
    states = [
        status["state"]
        for pod in server.cluster().list("Pod", labels=mine)
        for status in pod["status"].get("containerStatuses", ())
    ]
    return next((int(state["terminated"]["exitCode"]) for state in states if "terminated" in state), 0)


@contextmanager
def town(codes: list[int] | None = None) -> Iterator[Town]:
    """A town that was never seen before, with the same films as all others."""
    with tempfile.TemporaryDirectory() as folder, Double(crds=[crd()]) as server:
        yield Town(server, Path(folder), codes or [])


@cache
def films() -> Path:
    """Where every run's sources are: artifacts are only the same if their sources are."""
    folder = Path(tempfile.mkdtemp(prefix="bricks-films-"))
    (folder / "a.mp4").write_bytes(b"never opened here")
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def undisturbed() -> Any:
    """What a run leaves to which nothing happens."""
    with town() as calm:
        calm.come_to_rest(calm.controller())
        return artifacts(calm.folder / "store")
