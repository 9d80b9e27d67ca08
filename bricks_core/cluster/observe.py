"""What a workload has come to, said in one sentence: read from its conditions, its pods and Kueue's Workload.

Whoever runs it has different words for the same things (research: kubeflow/trainer v1.9.4, kueue v0.19,
kubernetes v1.37), so each launcher reads its own status into a `Progress`, and the rest is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bricks_core.cluster.launcher import Failure, Object, Observation
from bricks_core.cluster.metadata import QUEUE_LABEL
from bricks_core.errors import OTHER_NODE, STOPPED, WRONG_DATA, WRONG_FOR_ALL

KILLED = 137
LONGEST_LINE = 300
DEADLINE = "DeadlineExceeded"
PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError")
NOT_DONE = "status.phase!=Succeeded"
"""A field selector: the pods that `observe` needs. Of a stage of thousands of shards the others are most."""
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True)
class Progress:
    """A workload's own status, in words that all kinds share."""

    succeeded: Object | None
    """The condition that says so, while it is True."""
    failed: Object | None
    suspended: bool
    noticed: bool
    """Somebody has begun to work on it."""
    operator: str
    """Who would."""
    num_wanted: int
    num_active: int
    num_succeeded: int
    num_failed: int


def _waiting(reason: str, message: str) -> Observation:
    return Observation("waiting", reason, message)


_STARTING = _waiting("Starting", "Pods are being started: images are fetched and volumes mounted.")


def condition(obj: Object, kind: str) -> Object | None:
    """The condition of an object, if it is True."""
    found = _condition(obj, kind)
    return found if found and found.get("status") == "True" else None


def observe(
    workload: Object,
    pods: Sequence[Object],
    admission: Object | None,
    progress: Progress,
    *,
    container: str,
    index_label: str,
    gang: bool = False,
) -> Observation:
    """What a workload has come to.

    Args:
        pods: The workload's own; those that ended well may be left out.
        admission: Kueue's Workload of it, if there is one.
        container: The pods' container that counts; others (a mesh's, a profiler's) may end as they like.
        index_label: Of the pods: which shard or node each is.
        gang: The pods are nothing without each other.
    """
    return replace(
        _observe(workload, pods, admission, progress, container, index_label, gang),
        num_active=progress.num_active,
        num_succeeded=progress.num_succeeded,
        num_failed=progress.num_failed,
    )


def _observe(
    workload: Object,
    pods: Sequence[Object],
    admission: Object | None,
    progress: Progress,
    container: str,
    index_label: str,
    gang: bool,
) -> Observation:
    if progress.succeeded:
        return Observation("succeeded", "Succeeded", f"{_what(workload)} is done.")
    if progress.failed:
        return _why_failed(workload, _ends(pods, container, index_label), progress.failed, gang)
    if progress.suspended:
        return _why_suspended(workload, admission)
    if not pods and not progress.num_succeeded:
        return _why_no_pods(workload, progress)
    return _how_it_runs(pods, progress, container, gang)


# --- it runs, or would


def _how_it_runs(pods: Sequence[Object], progress: Progress, container: str, gang: bool) -> Observation:
    live = [pod for pod in pods if not _is_over(pod)]
    running = [pod for pod in live if _is_running(pod, container)]
    waiting = next(filter(None, (_why_pod_waits(pod, container) for pod in live if pod not in running)), None)
    wanted = progress.num_wanted
    if all((pod.get("status") or {}).get("phase") == "Succeeded" for pod in pods):
        # Between the end of the last pod and the condition that says so.
        what = "nodes have ended well" if gang else "shards are done"
        return Observation("running", "Running", f"{max(progress.num_succeeded, len(pods))} of {wanted} {what}.")
    if running and (not gang or len(running) >= wanted):
        done = f"{progress.num_succeeded} of {wanted} shards are done, {len(running)} run."
        message = f"{len(running)} of {wanted} nodes run." if gang else done
        return Observation("running", "Running", f"{message} {waiting.message}" if waiting else message)
    if waiting is None:
        leaving = next((pod for pod in pods if _is_leaving(pod)), None)
        waiting = _why_it_leaves(leaving) if leaving and not live else _STARTING
    if running:
        before = f"{len(running)} of {wanted} nodes run and wait for the others."
        return replace(waiting, message=f"{before} {waiting.message}")
    return waiting


def _why_pod_waits(pod: Object, container: str) -> Observation | None:
    """What keeps a pod from running, if it says so."""
    name = pod["metadata"]["name"]
    scheduled = _condition(pod, "PodScheduled") or {}
    if scheduled.get("status") == "False":
        said = " ".join(str(scheduled.get("message") or "").split())
        if scheduled.get("reason") == "SchedulingGated":
            return _waiting(
                "SchedulingGated", f"Pod {name} is held back from the scheduler, most often by Kueue. {said}"
            )
        return _waiting("Unschedulable", f"No node fits pod {name}: {said} {_what_to_do(said)}")
    for each in _statuses(pod):
        state = (each.get("state") or {}).get("waiting") or {}
        reason, said = str(state.get("reason") or ""), " ".join(str(state.get("message") or "").split())
        if reason in PULL_REASONS:
            return _waiting(
                "ImagePull",
                f"Pod {name} cannot fetch its image ({reason}): {_end(said)} Look at images.registry, images.tag and "
                "images.pullSecrets of the cluster's profile.",
            )
        if reason in CONFIG_REASONS:
            return _waiting(
                reason,
                f"Pod {name} cannot be started: {_end(said)} If a Secret or ConfigMap is missing, create it in this "
                "namespace; the pod goes on by itself.",
            )
        if reason == "CrashLoopBackOff" and each.get("name") == container:
            code = _exit_code(each)
            return _waiting("Restarting", f"Pod {name} ended with {code} and is started again after a while.")
    return None


def _why_it_leaves(pod: Object) -> Observation:
    """A pod that is to go keeps its place until its node says that it has: for good, where the node is lost."""
    name, node = pod["metadata"]["name"], (pod.get("spec") or {}).get("nodeName") or "none"
    return _waiting(
        "Stopping",
        f"Pod {name} on node {node} is being stopped, and another one takes its place when it is gone. If that node is "
        f"lost, say so: kubectl delete node {node}, or kubectl delete pod {name} --force.",
    )


def _what_to_do(said: str) -> str:
    """Advice for what the scheduler says."""
    if "persistentvolumeclaim" in said.lower():
        return "Look whether the volume claim is there and bound: kubectl get pvc."
    if "taint" in said:
        return "If the pods may go there, add the taint to tolerations or gpuTolerations of the profile."
    if "affinity" in said or "selector" in said:
        return "Compare nodeSelector, gpuNodeSelector and the excluded hosts with the nodes' labels."
    return "It starts as soon as there is room: wait, add nodes, or ask for less in spec.cluster."


def _why_no_pods(workload: Object, progress: Progress) -> Observation:
    what = _what(workload)
    if not progress.noticed:
        hint = (
            ""
            if workload["kind"] == "Job"
            else " or set spec.cluster.launcher to job, which needs nobody but Kubernetes"
        )
        return _waiting(
            "NoOperator",
            f"{what} is created, and nobody has taken it up yet. If it stays so, {progress.operator} is not running: "
            f"start it{hint}.",
        )
    return _waiting(
        "NoPods",
        f"{what} has no pods yet. If it stays so, `kubectl describe {workload['kind'].lower()} "
        f"{workload['metadata']['name']}` says why: a quota, Pod Security, a missing service account.",
    )


def _why_suspended(workload: Object, admission: Object | None) -> Observation:
    """Kueue holds it back, or a person does."""
    what = _what(workload)
    queue = (workload["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if admission is None:
        if queue:
            return _waiting(
                "Queued",
                f"{what} is suspended for queue {queue}, and Kueue has not looked at it yet. If it stays so, Kueue is "
                f"not running, or does not handle {workload['kind']} (integrations.frameworks).",
            )
        name = workload["metadata"]["name"]
        return _waiting("Suspended", f"{what} is suspended: somebody set spec.suspend. Look at {name} and unset it.")
    if (admission.get("spec") or {}).get("active") is False:
        return _waiting("Deactivated", f"{what} was taken out of its queue: set active of its Workload to true again.")
    evicted, reserved = _condition(admission, "Evicted"), _condition(admission, "QuotaReserved")
    if reserved and reserved.get("status") == "True":
        checks = [
            f"{check.get('name')}: {check.get('message') or check.get('state')}"
            for check in (admission.get("status") or {}).get("admissionChecks") or []
            if check.get("state") != "Ready"
        ]
        said = "; ".join(checks) or "it is about to start."
        return _waiting("Queued", f"{what} has its quota in queue {queue}: {_end(said)}")
    said = str((reserved or {}).get("message") or "it is waiting for quota")
    before = ""
    if evicted and evicted.get("status") == "True":
        before = f" It had started and was stopped ({evicted.get('reason')}): {_end(str(evicted.get('message') or ''))}"
    return _waiting("Queued", f"{what} waits in queue {queue}: {_end(said)}{before}")


# --- it failed


@dataclass(frozen=True)
class _End:
    """How the container of a pod ended."""

    pod: str
    node: str
    code: int | None
    """None: it never ran."""
    finished_at: str
    disrupted: bool
    deleted: bool
    last_line: str

    @property
    def where(self) -> str:
        return f"pod {self.pod} on node {self.node}" if self.node else f"pod {self.pod}"

    @property
    def urgency(self) -> tuple[int, str]:
        """Whose end tells most: what no other try would mend first, what was only stopped last; then who was first,
        for the others fall because of it."""
        if self.disrupted or self.deleted:
            rank = 5
        elif self.code in STOPPED:
            rank = 4
        elif self.code is None:
            rank = 3
        else:
            definite = [WRONG_FOR_ALL, WRONG_DATA, OTHER_NODE]
            rank = next((place for place, codes in enumerate(definite) if self.code in codes), 3)
        return rank, self.finished_at


def _why_failed(workload: Object, ends: list[_End], failed: Object, gang: bool) -> Observation:
    reason, what = str(failed.get("reason") or "Failed"), _what(workload)
    said = _end(" ".join(str(failed.get("message") or "").split()))
    ends = sorted(ends, key=lambda end: end.urgency)
    bad_nodes = tuple(sorted({end.node for end in ends if end.code in OTHER_NODE and end.node}))
    if reason == DEADLINE or "specified deadline" in said:
        # Its pods were told to stop as if from outside; but it was the time that it may take which was up. The Training
        # Operator says so in its message alone.
        reason = DEADLINE
        message = f"{what} was not done in the time it may take. {said}".strip()
        return Observation("failed", reason, message, Failure(None, bad_nodes=bad_nodes))
    if not ends:
        gone = f"{what} failed ({reason}), and none of its pods is left to say why. {said}".strip()
        return Observation("failed", reason, gone, Failure(None))
    first = ends[0]
    stopped = [end for end in ends if end.disrupted]
    disrupted = first.urgency[0] >= 4 or (gang and bool(stopped) and first.urgency[0] == 3)
    failure = Failure(first.code, disrupted, bad_nodes)
    if disrupted:
        first = (stopped or ends)[0]
        message = f"{what} was stopped from outside: {first.where} was taken away."
    elif first.code is None:
        message = f"{what} failed: {first.where} never ran. {first.last_line}".strip()
    else:
        line = f" Its last line: {first.last_line}" if first.last_line else ""
        message = f"{what} failed: {first.where} ended with {first.code}.{line}"
    return Observation("failed", reason, message, failure)


def _ends(pods: Sequence[Object], container: str, index_label: str) -> list[_End]:
    """How the newest pod of every index ended, of those that ended badly."""
    newest: dict[str, Object] = {}
    for pod in sorted(pods, key=lambda pod: (str(pod["metadata"].get("creationTimestamp")), pod["metadata"]["name"])):
        newest[(pod["metadata"].get("labels") or {}).get(index_label, pod["metadata"]["name"])] = pod
    return [end for pod in newest.values() if (end := _end_of(pod, container))]


def _end_of(pod: Object, container: str) -> _End | None:
    status = pod.get("status") or {}
    disrupted = condition(pod, "DisruptionTarget") is not None
    mine = next((each for each in _statuses(pod) if each.get("name") == container), {})
    ended = (mine.get("state") or {}).get("terminated") or (mine.get("lastState") or {}).get("terminated") or {}
    code = ended.get("exitCode")
    # A pod that filled more disk than it may is evicted as well, but that is its own doing: it has no DisruptionTarget.
    # It was told to stop like any other, so what it left with then explains nothing.
    evicted = status.get("reason") == "Evicted"
    if evicted and not disrupted and code in (0, *STOPPED):
        code = KILLED
    if code == 0 or (code is None and not disrupted and status.get("phase") != "Failed"):
        return None
    said = str((status if evicted or not ended else ended).get("message") or "")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return _End(
        pod=pod["metadata"]["name"],
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
        code=code,
        finished_at=str(ended.get("finishedAt") or "9"),
        disrupted=disrupted,
        deleted=bool(pod["metadata"].get("deletionTimestamp")) and code in (*STOPPED, KILLED),
        last_line=lines[-1][:LONGEST_LINE] if lines else "",
    )


# --- reading objects


def _what(workload: Object) -> str:
    return f"{workload['kind']} {workload['metadata']['name']}"


def _condition(obj: Object, kind: str) -> Object | None:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), None)


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _exit_code(status: Object) -> int | str:
    ended = (status.get("lastState") or {}).get("terminated") or {}
    return ended.get("exitCode", "an error")


def has_ended(pod: Object) -> bool:
    """Whether none of its containers runs any more, or will."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _is_leaving(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp")) and not has_ended(pod)


def _is_over(pod: Object) -> bool:
    return has_ended(pod) or bool(pod["metadata"].get("deletionTimestamp"))


def _is_running(pod: Object, container: str) -> bool:
    return any(each.get("name") == container and "running" in (each.get("state") or {}) for each in _statuses(pod))


def _end(text: str) -> str:
    """A text with a full stop."""
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "!", "?", "`")) else f"{text}."
