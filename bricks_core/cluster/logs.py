"""The lines that the pods of a stage wrote, and how each of them ended."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bricks_core.cluster.api import Cluster, NotThere
from bricks_core.cluster.indexed_job import INDEX_LABEL
from bricks_core.cluster.launcher import ATTEMPT_LABEL, RUN_LABEL, STAGE_LABEL, Object
from bricks_core.cluster.launchers import launcher_of
from bricks_core.cluster.runs import KIND, condition, current_stage
from bricks_core.errors import BricksError, ClusterDenied, ClusterUnavailable, DataError, nearest

CONTAINERS = ("main", "pytorch", "node")
"""The container that counts, by launcher (see pod.py): what stands beside it (a mesh, a profiler) is not ours."""
INDEX_LABELS = (INDEX_LABEL, "training.kubeflow.org/replica-index")
WORKLOADS = ("Job", "PyTorchJob", "TrainJob")
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Wanted:
    """Whose lines."""

    run: str
    stage: str
    attempt: int | None = None
    """None: the last one that has pods."""
    index: int | None = None
    """One shard or node alone; None: all."""
    tail: int | None = None
    """The last so many lines of each pod; None: all."""

    @property
    def labels(self) -> dict[str, str]:
        chosen = {RUN_LABEL: self.run, STAGE_LABEL: self.stage}
        return chosen | ({ATTEMPT_LABEL: str(self.attempt)} if self.attempt is not None else {})

    @property
    def words(self) -> str:
        attempt = f", attempt {self.attempt}" if self.attempt is not None else ""
        index = f", index {self.index}" if self.index is not None else ""
        return f"{self.stage} of run {self.run}{attempt}{index}"


def read_logs(cluster: Cluster, wanted: Wanted) -> Iterator[str]:
    """What is there now, pod after pod, with a line after each that ended badly.

    Raises:
        DataError: there is no such pod, with the reason as far as the cluster still knows it.
    """
    pods = pods_of(cluster, wanted)
    if not pods:
        raise DataError(why_no_pods(cluster, wanted))
    prefixed = wanted.index is None and _num_wanted(cluster, wanted, pods) > 1
    for pod in pods:
        prefix = f"[{_short_name(pod)}] " if prefixed else ""
        if not _has_started(pod):
            yield f"{prefix}(has written nothing yet: {why_not_started(pod)})"
            continue
        try:
            for line in cluster.logs(pod["metadata"]["name"], container_of(pod), tail_lines=wanted.tail):
                yield prefix + line
        except NotThere as error:
            yield f"{prefix}({error})"
        if ended := how_it_ended(pod):
            yield prefix + ended


def follow_logs(cluster: Cluster, wanted: Wanted, *, every_s: float = LOOK_EVERY_S) -> Iterator[str]:
    """Lines as they come, of all pods at once, those that start later too, until the stage's workload is at its end.

    Waits for a pod that has not started. A pod that is made anew for the same shard is followed as well.

    Raises:
        DataError: the run is not there, or its stage has nothing that could still write.
    """
    following = _Following(cluster, wanted)
    told = ""
    while True:
        pods = pods_of(cluster, wanted)
        if not following.streams:
            following.prefixed = wanted.index is None and _num_wanted(cluster, wanted, pods) > 1
        for pod in pods:
            following.begin(pod)
        yield from following.lines_for(every_s)
        if following.all_ended:
            if _at_end(cluster, wanted, pods):
                last = pods_of(cluster, wanted) or pods
                came_since = [pod for pod in last if following.begin(pod)]
                if not came_since:
                    yield from following.ends(last)
                    return
                continue
            time.sleep(min(every_s, 1))
        if not following.streams:
            waits = _why_waiting(cluster, wanted, pods)
            if waits != told:
                told = waits
                yield f"({waits})"


def pods_of(cluster: Cluster, wanted: Wanted) -> list[Object]:
    """The pods that are meant, by index and age; of the newest attempt that has any."""
    pods = cluster.list("Pod", labels=wanted.labels)
    if wanted.index is not None:
        pods = [pod for pod in pods if index_of(pod) == wanted.index]
    if pods and wanted.attempt is None:
        newest = max(_attempt(pod) for pod in pods)
        pods = [pod for pod in pods if _attempt(pod) == newest]
    return sorted(pods, key=lambda pod: (index_of(pod) or 0, str(pod["metadata"].get("creationTimestamp")), _name(pod)))


def index_of(pod: Object) -> int | None:
    """Which shard or node a pod is."""
    meta = pod["metadata"]
    told = {**(meta.get("annotations") or {}), **(meta.get("labels") or {})}
    return next((int(told[name]) for name in INDEX_LABELS if str(told.get(name, "")).isdigit()), None)


def container_of(pod: Object) -> str:
    """The container whose lines count."""
    names = [each["name"] for each in pod["spec"]["containers"]]
    return next((name for name in CONTAINERS if name in names), names[0])


def how_it_ended(pod: Object) -> str:
    """The exit code of a pod that ended badly, and what it left to say; empty for one that did not."""
    state = _container_status(pod).get("state") or {}
    ended = state.get("terminated")
    if not ended:
        status = pod.get("status") or {}
        return f"(failed: {status.get('reason', '')} {status.get('message', '')})" if _phase(pod) == "Failed" else ""
    code = ended.get("exitCode")
    if code == 0:
        return ""
    reason = f", {ended['reason']}" if ended.get("reason") not in (None, "", "Error") else ""
    last = _last_line(ended.get("message"))
    return f"(ended with exit code {code}{reason}{': ' + last if last else ''})"


def why_not_started(pod: Object) -> str:
    """Why a pod's container does not run yet, in the words of Kubernetes."""
    waiting = (_container_status(pod).get("state") or {}).get("waiting") or {}
    conditions = (pod.get("status") or {}).get("conditions") or []
    scheduled: Object = next((each for each in conditions if each.get("type") == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        waiting = scheduled
    said = ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    return " ".join(said.split()) or f"it is {_phase(pod) or 'not started'}"


def why_no_pods(cluster: Cluster, wanted: Wanted) -> str:
    """What became of a stage that has no pods: as far as its workload and its run's status tell."""
    workload = workload_of(cluster, wanted)
    if workload is not None:
        seen = launcher_of(workload).observe(workload, [], None)
        return f"There is no pod of {wanted.words}. {seen.message}"
    try:
        run = cluster.get(KIND, wanted.run)
    except NotThere:
        there = sorted({pod["metadata"]["labels"][RUN_LABEL] for pod in _all_pods(cluster)} | set(_run_names(cluster)))
        known = f": there are {', '.join(there)}." if there else ", and no other."
        return f"There is no run {wanted.run} in namespace {cluster.namespace}{nearest(wanted.run, there)}{known}"
    except ClusterDenied:
        return f"There is no pod of {wanted.words}: it has not begun, or its Job was deleted, and its logs with it."
    stages = (run.get("status") or {}).get("stages") or []
    stage: Object = next((each for each in stages if each.get("name") == wanted.stage), {})
    last = int(stage.get("attempt") or 0)
    if wanted.attempt is not None and wanted.attempt > last > 0:
        return f"There is no attempt {wanted.attempt} of {wanted.stage} of run {wanted.run}: the last is {last}."
    if stages and not stage and wanted.stage != "preflight":
        return f"Run {wanted.run} has no {wanted.stage}: its file ends before that, with {stages[-1].get('name')}."
    said = f" {stage['message']}" if stage.get("message") else ""
    match stage.get("state"):
        case "Done":
            return (
                f"{wanted.stage} of run {wanted.run} is done, and its Job is gone, or was never needed: logs go with "
                f"their Job. bricks show {wanted.run}/{wanted.stage} shows what it left.{said}"
            )
        case "Failed":
            return f"The Job of {wanted.words} is gone, and its logs with it.{said}"
        case None | "Pending":
            now = current_stage(run)
            where = f" The run is at {now['name']}." if now else ""
            return f"{wanted.stage} of run {wanted.run} has not begun.{where}"
    return f"There is no pod of {wanted.words}.{said}"


def workload_of(cluster: Cluster, wanted: Wanted) -> Object | None:
    """The newest workload of the stage; None when there is none, or it may not be seen."""
    found: list[Object] = []
    for kind in WORKLOADS if wanted.stage == "train" else WORKLOADS[:1]:
        try:
            found += cluster.list(kind, labels=wanted.labels)
        except ClusterDenied:  # not our right, or a kind that this cluster does not have
            continue
    return max(found, key=lambda each: (_attempt(each), str(each["metadata"].get("creationTimestamp"))), default=None)


@dataclass
class _Stream:
    """The log of one pod, read by a thread of its own."""

    pod: Object
    thread: threading.Thread
    ended: bool = False


@dataclass
class _Following:
    """Several logs at once, their lines in one queue."""

    cluster: Cluster
    wanted: Wanted
    lines: queue.SimpleQueue[tuple[str, str]] = field(default_factory=queue.SimpleQueue)
    streams: dict[str, _Stream] = field(default_factory=dict)
    prefixed: bool = False
    """Each line begins with whose it is."""

    @property
    def all_ended(self) -> bool:
        return all(stream.ended for stream in self.streams.values()) and self.lines.empty()

    def begin(self, pod: Object) -> bool:
        """Follow a pod, once its container has started. False: it is followed already, or has not."""
        uid = pod["metadata"]["uid"]
        if uid in self.streams or not _has_started(pod):
            return False
        thread = threading.Thread(target=self._read, args=(uid, pod), daemon=True)
        self.streams[uid] = _Stream(pod, thread)
        thread.start()
        return True

    def lines_for(self, seconds: float) -> Iterator[str]:
        """What comes within a while; less when all logs have ended meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                uid, line = self.lines.get(timeout=min(left, 0.2))
            except queue.Empty:
                if self.streams and self.all_ended:
                    return
                continue
            yield self._prefix(self.streams[uid].pod) + line

    def ends(self, pods: list[Object]) -> Iterator[str]:
        for pod in pods:
            if ended := how_it_ended(pod):
                yield self._prefix(pod) + ended

    def _prefix(self, pod: Object) -> str:
        return f"[{_short_name(pod)}] " if self.prefixed else ""

    def _read(self, uid: str, pod: Object) -> None:
        try:
            name, container = _name(pod), container_of(pod)
            for line in self.cluster.logs(name, container, follow=True, tail_lines=self.wanted.tail):
                self.lines.put((uid, line))
        except NotThere:  # gone between our look and our reading
            pass
        except BricksError as error:
            self.lines.put((uid, f"({error})"))
        finally:
            self.streams[uid].ended = True


def _at_end(cluster: Cluster, wanted: Wanted, pods: list[Object]) -> bool:
    """Whether nothing more will be written.

    Raises:
        DataError: nothing was, and nothing will be.
    """
    workload = workload_of(cluster, wanted)
    if workload is not None:
        return launcher_of(workload).observe(workload, pods, None).state in ("succeeded", "failed")
    if pods:
        return all(_phase(pod) in ("Succeeded", "Failed") for pod in pods)
    if not _may_begin(cluster, wanted):
        raise DataError(why_no_pods(cluster, wanted))
    return False


def _may_begin(cluster: Cluster, wanted: Wanted) -> bool:
    """Whether the controller may still make the pods that are asked for."""
    try:
        run = cluster.get(KIND, wanted.run)
    except (NotThere, ClusterDenied):
        return False
    stages = (run.get("status") or {}).get("stages") or []
    state = next((each.get("state") for each in stages if each.get("name") == wanted.stage), "Pending")
    return state not in ("Done", "Failed") and condition(run, "Finished").get("status") != "True"


def _num_wanted(cluster: Cluster, wanted: Wanted, pods: list[Object]) -> int:
    """Pods that the stage has, or will have."""
    workload = workload_of(cluster, wanted)
    spec = (workload or {}).get("spec") or {}
    replicas = sum(each.get("replicas") or 1 for each in (spec.get("pytorchReplicaSpecs") or {}).values())
    nodes = (spec.get("trainer") or {}).get("numNodes") or 0
    return max(len({index_of(pod) for pod in pods}), int(spec.get("completions") or 0), replicas, nodes)


def _why_waiting(cluster: Cluster, wanted: Wanted, pods: list[Object]) -> str:
    if pods:
        return f"waiting for pod {_name(pods[0])}: {why_not_started(pods[0])}"
    workload = workload_of(cluster, wanted)
    if workload is not None:
        return f"waiting: {launcher_of(workload).observe(workload, [], None).message}"
    return f"waiting for {wanted.words} to begin"


def _all_pods(cluster: Cluster) -> list[Object]:
    pods = cluster.list("Pod", labels={"app.kubernetes.io/name": "bricks"})
    return [pod for pod in pods if RUN_LABEL in pod["metadata"]["labels"]]


def _run_names(cluster: Cluster) -> list[str]:
    try:
        return [run["metadata"]["name"] for run in cluster.list(KIND)]
    except (ClusterDenied, ClusterUnavailable):
        return []


def _short_name(pod: Object) -> str:
    """What tells a pod from its like: train-3; a second pod of the same shard has the same."""
    index = index_of(pod)
    stage = pod["metadata"].get("labels", {}).get(STAGE_LABEL, "pod")
    return _name(pod) if index is None else f"{stage}-{index}"


def _container_status(pod: Object) -> Object:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == container_of(pod)), {})


def _has_started(pod: Object) -> bool:
    # Presence is what counts: the object may be empty.
    state = _container_status(pod).get("state") or {}
    return "running" in state or "terminated" in state


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def _attempt(obj: Object) -> int:
    told = obj["metadata"].get("labels", {}).get(ATTEMPT_LABEL, "")
    return int(told) if str(told).isdigit() else 0


def _name(pod: Object) -> str:
    return str(pod["metadata"]["name"])
