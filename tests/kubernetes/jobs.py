"""The Job controller of the double: plain and Indexed Jobs, as kube-controller-manager 1.33 runs them.

Known from: KEP-2214 (Indexed), KEP-3850 (backoffLimitPerIndex), KEP-3329 (podFailurePolicy), KEP-3939
(podReplacementPolicy), KEP-2232 (suspend), KEP-3998 (SuccessCriteriaMet, FailureTarget), KEP-2307 (the tracking
finalizer). Not here: the wait between two tries of a pod (10 s and more), successPolicy, elastic Jobs, managedBy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.failures import Object, Resource
from tests.kubernetes.storage import Storage, seconds

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
UNLIMITED = 2147483647


@dataclass
class Ledger:
    """What became of the pods of a Job, also of those that are gone."""

    counted: set[str] = field(default_factory=set)
    """Uids."""
    num_succeeded: int = 0
    num_failed: int = 0
    succeeded: set[int] = field(default_factory=set)
    """Indexes."""
    failures: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    """Indexes that are given up."""
    verdict: tuple[str, str, str] | None = None
    """(condition, reason, message): the end that is decided, while pods may still be going."""


class Jobs:
    """Works on every Job, and on pods of Jobs that are no more."""

    def __init__(self) -> None:
        self._ledgers: dict[str, Ledger] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}
        """What each Job and its pods were like when they were looked at last."""

    def work(self, storage: Storage) -> None:
        jobs, pods = storage.kind("batch/v1", "Job"), storage.kind("v1", "Pod")
        assert jobs is not None
        assert pods is not None
        by_job: dict[str, list[Object]] = {}
        for pod in storage.all(pods):
            owner = _controller(pod)
            if owner and owner["kind"] == "Job":
                by_job.setdefault(owner["uid"], []).append(pod)
        alive = set()
        for job in storage.all(jobs):
            uid, mine = job["metadata"]["uid"], by_job.get(job["metadata"]["uid"], [])
            if job["metadata"].get("deletionTimestamp"):
                continue
            alive.add(uid)
            seen = self._now(storage, job, mine)
            if self._seen.get(uid) != seen:
                self._seen[uid] = seen
                _Sync(storage, jobs, pods, job, mine, self._ledgers.setdefault(uid, Ledger())).run()
        for uid, orphans in by_job.items():
            if uid not in alive:  # nobody counts them any more
                for pod in orphans:
                    untrack(storage, pods, pod)

    def _now(self, storage: Storage, job: Object, mine: list[Object]) -> tuple[Any, ...]:
        timed = "activeDeadlineSeconds" in job["spec"] or "ttlSecondsAfterFinished" in job["spec"]
        versions = [each["metadata"]["resourceVersion"] for each in (job, *mine)]
        return (*versions, int(storage.clock.now()) if timed else 0)


class _Sync:
    """One look at one Job."""

    def __init__(
        self, storage: Storage, jobs: Resource, pods: Resource, job: Object, mine: list[Object], ledger: Ledger
    ) -> None:
        self.storage, self.jobs, self.pods, self.job, self.ledger = storage, jobs, pods, job, ledger
        self.mine = mine
        self.spec, self.status = job["spec"], copy.deepcopy(job.get("status") or {})
        self.name, self.namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        self.indexed = self.spec["completionMode"] == "Indexed"
        self.now = storage.clock.now()

    def run(self) -> None:
        if self._over():
            self._expire()
            return
        self._count()
        suspended = bool(self.spec.get("suspend"))
        self.ledger.verdict = self.ledger.verdict or self._verdict(suspended)
        if self.ledger.verdict:
            self._finish()
        elif suspended:
            self._stop(self._active())
            self._condition("Suspended", "True", "JobSuspended", "Job suspended")
            self.status.pop("startTime", None)
        else:
            if self._has("Suspended"):
                self._condition("Suspended", "False", "JobResumed", "Job resumed")
            self.status.setdefault("startTime", self.storage.clock.stamp())
            self._scale()
        self._report()

    # What came of its pods

    def _count(self) -> None:
        for pod in self.mine:
            uid = pod["metadata"]["uid"]
            if uid in self.ledger.counted or not self._ended(pod):
                continue
            self.ledger.counted.add(uid)
            index = _index(pod)
            if pod["status"].get("phase") == "Succeeded":
                self.ledger.num_succeeded += 1
                self.ledger.succeeded.add(index)
            else:
                self._count_failure(pod, index)
        for pod in self.mine:
            if pod["metadata"]["uid"] in self.ledger.counted:
                untrack(self.storage, self.pods, pod)
        self.mine = [
            now
            for pod in self.mine
            if (now := self.storage.find(self.pods, self.namespace, pod["metadata"]["name"])) is not None
            and now["metadata"]["uid"] == pod["metadata"]["uid"]
        ]

    def _ended(self, pod: Object) -> bool:
        """Whether a pod counts as over. One that is being deleted does, unless only failed ones are replaced."""
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return True
        meta = pod["metadata"]
        going = bool(meta.get("deletionTimestamp"))
        if self.spec["podReplacementPolicy"] == "Failed":
            return going and not meta.get("deletionGracePeriodSeconds")  # removed before it ran, or by force
        return going

    def _count_failure(self, pod: Object, index: int) -> None:
        action, message = self._policy(pod)
        if action == "Ignore":
            return
        self.ledger.num_failed += 1
        self.ledger.failures[index] = self.ledger.failures.get(index, 0) + 1
        if action == "FailJob":
            self.ledger.verdict = ("Failed", "PodFailurePolicy", message)
        limit = self.spec.get("backoffLimitPerIndex")
        if action == "FailIndex" or (limit is not None and self.ledger.failures[index] > limit):
            self.ledger.failed.add(index)

    def _policy(self, pod: Object) -> tuple[str, str]:
        """The action of the first rule that matches a pod in phase Failed; deleted ones just count."""
        if pod["status"].get("phase") != "Failed":
            return "Count", ""
        where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for i, rule in enumerate((self.spec.get("podFailurePolicy") or {}).get("rules", [])):
            end = f"matching {rule['action']} rule at index {i}"
            for wanted in rule.get("onPodConditions") or []:
                for each in pod["status"].get("conditions") or []:
                    if each["type"] == wanted["type"] and each["status"] == wanted["status"]:
                        return rule["action"], f"Pod {where} has condition {each['type']} {end}"
            codes = rule.get("onExitCodes")
            for name, code in _exit_codes(pod) if codes else ():
                if codes.get("containerName", name) == name and (code in codes["values"]) == (
                    codes["operator"] == "In"
                ):
                    return rule["action"], f"Container {name} for pod {where} failed with exit code {code} {end}"
        return "Count", ""

    # Its end

    def _verdict(self, suspended: bool) -> tuple[str, str, str] | None:
        ledger, completions = self.ledger, self.spec.get("completions")
        deadline, started = self.spec.get("activeDeadlineSeconds"), self.status.get("startTime")
        if deadline is not None and started and not suspended and self.now >= seconds(started) + deadline:
            return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
        if self.spec.get("backoffLimitPerIndex") is None or self.spec["backoffLimit"] < UNLIMITED:
            restarts = self._restarts() if self.spec["template"]["spec"]["restartPolicy"] == "OnFailure" else 0
            if ledger.num_failed > self.spec["backoffLimit"] or (restarts and restarts >= self.spec["backoffLimit"]):
                return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        given_up, most = len(ledger.failed - ledger.succeeded), self.spec.get("maxFailedIndexes")
        if most is not None and given_up > most:
            message = "Job has exceeded the specified maximal number of failed indexes"
            return "Failed", "MaxFailedIndexesExceeded", message
        if self.indexed and len(ledger.succeeded | ledger.failed) >= completions:
            if given_up:
                return "Failed", "FailedIndexes", "Job has failed indexes"
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        if not self.indexed and completions is not None and ledger.num_succeeded >= completions:
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        if not self.indexed and completions is None and ledger.num_succeeded and not self._active():
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        return None

    def _restarts(self) -> int:
        statuses = [each for pod in self.mine for each in pod.get("status", {}).get("containerStatuses", [])]
        return sum(each.get("restartCount", 0) for each in statuses)

    def _finish(self) -> None:
        """Say how it ends, end what still runs, and only when nothing does say that it has ended."""
        assert self.ledger.verdict is not None
        kind, reason, message = self.ledger.verdict
        self._condition("FailureTarget" if kind == "Failed" else "SuccessCriteriaMet", "True", reason, message)
        self._stop(self._active())
        if not any(not _terminal(pod) for pod in self._now()):
            self._condition(kind, "True", reason, message)
            if kind == "Complete":
                self.status["completionTime"] = self.storage.clock.stamp()

    def _over(self) -> bool:
        return self._has("Complete") or self._has("Failed")

    def _expire(self) -> None:
        ttl = self.spec.get("ttlSecondsAfterFinished")
        ended = next(each for each in self.status["conditions"] if each["type"] in ("Complete", "Failed"))
        for pod in self.mine:
            untrack(self.storage, self.pods, pod)
        if ttl is not None and self.now >= seconds(ended["lastTransitionTime"]) + ttl:
            self.storage.delete(self.jobs, self.namespace, self.name, {"propagationPolicy": "Foreground"})

    # Its pods

    def _now(self) -> list[Object]:
        names = [(self.namespace, pod["metadata"]["name"]) for pod in self.mine]
        found = [self.storage.find(self.pods, *name) for name in names]
        return [pod for pod in found if pod is not None]

    def _active(self) -> list[Object]:
        return [pod for pod in self._now() if not _terminal(pod) and not pod["metadata"].get("deletionTimestamp")]

    def _going(self) -> list[Object]:
        return [pod for pod in self._now() if not _terminal(pod) and pod["metadata"].get("deletionTimestamp")]

    def _stop(self, pods: Iterable[Object]) -> None:
        """Delete pods that it does not want any more; they are not counted as failed."""
        for pod in pods:
            self.ledger.counted.add(pod["metadata"]["uid"])
            untrack(self.storage, self.pods, pod)
            self.storage.delete(self.pods, self.namespace, pod["metadata"]["name"])

    def _scale(self) -> None:
        active, going, wanted = self._active(), self._going(), self.spec["parallelism"]
        taken = len(active) + (len(going) if self.spec["podReplacementPolicy"] == "Failed" else 0)
        if len(active) > wanted:
            self._stop(active[wanted:])
            return
        if self.indexed:
            busy = {_index(pod) for pod in (active + going if taken > len(active) else active)}
            done = self.ledger.succeeded | self.ledger.failed | busy
            free = [index for index in range(self.spec["completions"]) if index not in done]
            for index in free[: max(wanted - taken, 0)]:
                self._make(index)
            return
        completions = self.spec.get("completions")
        if completions is not None:
            wanted = min(wanted, completions - self.ledger.num_succeeded)
        elif self.ledger.num_succeeded:
            wanted = 0  # a queue of work: once one has succeeded, no more are made
        for _ in range(wanted - taken):
            self._make(None)

    def _make(self, index: int | None) -> None:
        template = copy.deepcopy(self.spec["template"])
        meta, spec = dict(template.get("metadata") or {}), template["spec"]
        pod_meta: Object = {
            "labels": dict(meta.get("labels") or {}),
            "annotations": dict(meta.get("annotations") or {}),
            "finalizers": [TRACKING],
            "ownerReferences": [owner_of(self.job)],
            "namespace": self.namespace,
            "generateName": f"{self.name}-" if index is None else f"{self.name}-{index}-",
        }
        if index is not None:
            pod_meta["labels"][INDEX] = pod_meta["annotations"][INDEX] = str(index)
            spec.setdefault("hostname", f"{self.name}-{index}")
            from_field = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}}
            for container in [*spec["containers"], *spec.get("initContainers", [])]:
                container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "valueFrom": from_field})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": pod_meta, "spec": spec}
        self.mine.append(self.storage.create(self.pods, self.namespace, pod))

    # Its status

    def _report(self) -> None:
        active, going = self._active(), self._going()
        new = self.status | {"ready": sum(_ready(pod) for pod in active), "terminating": len(going)}
        counts = (("active", len(active)), ("succeeded", self.ledger.num_succeeded), ("failed", self.ledger.num_failed))
        for key, value in counts:
            new.pop(key, None)
            if value:
                new[key] = value
        if self.indexed:
            new["succeeded"] = len(self.ledger.succeeded)
            new["completedIndexes"] = ranges(self.ledger.succeeded)
            if self.spec.get("backoffLimitPerIndex") is not None:
                new["failedIndexes"] = ranges(self.ledger.failed)
        new["uncountedTerminatedPods"] = {}
        set_status(self.storage, self.jobs, self.job, new)

    def _has(self, kind: str) -> bool:
        return any(each["type"] == kind and each["status"] == "True" for each in self.status.get("conditions", []))

    def _condition(self, kind: str, status: str, reason: str, message: str) -> None:
        set_condition(self.status, self.storage, kind, status, reason, message)


def set_condition(status: Object, storage: Storage, kind: str, value: str, reason: str, message: str) -> None:
    """Set a condition; its transition time moves only when its status does."""
    conditions = status.setdefault("conditions", [])
    there = next((each for each in conditions if each["type"] == kind), None)
    if there is not None and there["status"] == value:
        return
    now = storage.clock.stamp()
    made = {"type": kind, "status": value, "reason": reason, "message": message}
    made |= {"lastProbeTime": now, "lastTransitionTime": now}
    if there is None:
        conditions.append(made)
    else:
        there.update(made)


def set_status(storage: Storage, resource: Resource, obj: Object, status: Object) -> None:
    if status == obj.get("status"):
        return

    def change(now: Object) -> Object:
        now["status"] = status
        return now

    meta = obj["metadata"]
    storage.update(resource, meta["namespace"], meta["name"], change, "status")


def untrack(storage: Storage, pods: Resource, pod: Object) -> None:
    """Let a pod go, as far as its Job is concerned."""
    meta = pod["metadata"]
    there = storage.find(pods, meta["namespace"], meta["name"])
    if there is None or TRACKING not in there["metadata"].get("finalizers", []):
        return

    def change(now: Object) -> Object:
        now["metadata"]["finalizers"].remove(TRACKING)
        return now

    storage.update(pods, meta["namespace"], meta["name"], change)


def owner_of(obj: Object) -> Object:
    """A reference by which what is made for an object goes with it."""
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def ranges(numbers: set[int]) -> str:
    """1,3-5,7: as completedIndexes is written."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts)


def _controller(obj: Object) -> Object | None:
    return next((each for each in obj["metadata"].get("ownerReferences", []) if each.get("controller")), None)


def _index(pod: Object) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(INDEX, -1))


def _terminal(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _ready(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") == "Running"


def _exit_codes(pod: Object) -> list[tuple[str, int]]:
    """Of containers that failed, as (name, code)."""
    status = pod["status"]
    found = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
    codes = [(each["name"], (each.get("state", {}).get("terminated") or {}).get("exitCode", 0)) for each in found]
    return [(name, code) for name, code in codes if code]
