"""Waiting for what happens in a cluster, from outside it: by asking again and again.

A watch would be told sooner, but it breaks with every proxy, token and laptop lid on the way, and then has to be asked
anew all the same. Whoever waits here survives hiccups of the API server and tokens that run out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bricks_core.cluster.api import Cluster, NotThere
from bricks_core.cluster.launcher import CACHE_KEY_ANNOTATION, Object, Observation
from bricks_core.cluster.launchers import launcher_of
from bricks_core.cluster.metadata import JOB_UID_LABEL, QUEUE_LABEL
from bricks_core.errors import ClusterDenied, ClusterUnavailable, DataError, TryLater

T = TypeVar("T")
Tell = Callable[[str], None]

EVERY_S = 5.0
PATIENCE_S = 600.0
"""A server that has answered once may be silent, or refuse us, for so long before that counts as an answer."""
NOT_YET_S = 30.0
"""What was just created may not be seen for so long (another API server, a cache)."""


def poll(
    connect: Callable[[], Cluster],
    look: Callable[[Cluster], T | None],
    *,
    timeout_s: float,
    too_late: str,
    tell: Tell,
    every_s: float = EVERY_S,
) -> T:
    """What `look` finds, once it is something.

    `connect` is called again after every refusal: that reads the kubeconfig, and the token it leads to, anew.

    Raises:
        TryLater: nothing was found in time; `too_late` says what that means.
        ClusterUnavailable, ClusterDenied: at the first look; later ones only after ten minutes of nothing else.
    """
    deadline = time.monotonic() + timeout_s
    cluster, failing_since = connect(), None
    answered = False
    while True:
        try:
            found = look(cluster)
            answered, failing_since = True, None
            if found is not None:
                return found
        except (ClusterUnavailable, ClusterDenied) as error:
            if not answered:
                raise
            if failing_since is None:
                failing_since = time.monotonic()
                tell(f"{error} Trying again for {PATIENCE_S / 60:.0f} minutes.")
            elif time.monotonic() - failing_since > PATIENCE_S:
                raise
            cluster = _connected_again(connect, cluster)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TryLater(too_late)
        time.sleep(min(every_s, left))


@dataclass(frozen=True)
class Ended:
    """A workload at its end."""

    workload: Object
    observation: Observation


def wait_for_workload(
    connect: Callable[[], Cluster],
    asked: Object,
    *,
    timeout_s: float,
    tell: Tell,
    every_s: float = EVERY_S,
    seen: Callable[[Object], None] = lambda workload: None,
) -> Ended:
    """The workload `asked` names, once it has succeeded or failed. Tells why it waits, whenever that changes.

    `seen` hears of the workload when it is there for the first time.

    Raises:
        DataError: there is none of that name, or one that is for other work.
        TryLater: it was deleted meanwhile, or is not at its end in time.
    """
    kind, name = asked["kind"], asked["metadata"]["name"]
    begun = time.monotonic()
    uid = told = ""

    def look(cluster: Cluster) -> Ended | None:
        nonlocal uid, told
        try:
            workload = cluster.get(kind, name)
        except NotThere as error:
            if uid:
                raise TryLater(f"{kind} {name} was deleted before it was at its end.") from None
            if time.monotonic() - begun > NOT_YET_S or timeout_s < NOT_YET_S:
                raise DataError(f"{error} Create it first: kubectl create -f FILE.") from None
            return None
        if uid and workload["metadata"]["uid"] != uid:
            raise TryLater(f"{kind} {name} was deleted before it was at its end, and another one has its name.")
        if not uid:
            _check_same_work(workload, asked)
            uid = workload["metadata"]["uid"]
            seen(workload)
        now = observe(cluster, workload)
        words = _words(f"{kind} {name}", now)
        if words != told:
            told = words
            tell(words)
        return Ended(workload, now) if now.state in ("succeeded", "failed") else None

    too_late = f"{kind} {name} is not at its end after {minutes(timeout_s)}; it goes on in the cluster."
    return poll(connect, look, timeout_s=timeout_s, too_late=too_late, tell=tell, every_s=every_s)


def observe(cluster: Cluster, workload: Object) -> Observation:
    """What a workload has come to, by the controller's own rules."""
    meta = workload["metadata"]
    labels = {key: value for key, value in meta.get("labels", {}).items() if key.startswith("bricks.dev/")}
    pods = [pod for pod in cluster.list("Pod", labels=labels) if _belongs(pod, workload)]
    return launcher_of(workload).observe(workload, pods, admission_of(cluster, workload))


def admission_of(cluster: Cluster, workload: Object) -> Object | None:
    """Kueue's Workload of a job that is in a queue, which says why it waits; None where we may not see it."""
    meta = workload["metadata"]
    if QUEUE_LABEL not in meta.get("labels", {}):
        return None
    try:
        found = cluster.list("Workload", labels={JOB_UID_LABEL: meta["uid"]})
    except ClusterDenied:
        return None
    return found[0] if found else None


def minutes(seconds: float) -> str:
    """110 minutes; 45 seconds."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


_STATES = {"waiting": "waits", "running": "runs", "failed": "has failed"}


def _words(what: str, now: Observation) -> str:
    if now.state == "succeeded":
        return f"{what} is complete."
    # Some messages name the workload themselves.
    return now.message if what in now.message else f"{what} {_STATES[now.state]}: {now.message}"


def _belongs(pod: Object, workload: Object) -> bool:
    """Pods of an earlier workload of the same name may still be on their way out; those without an owner are taken."""
    owners = pod["metadata"].get("ownerReferences") or []
    uids = {owner["uid"] for owner in owners if owner.get("kind") == workload["kind"]}
    return not uids or workload["metadata"]["uid"] in uids


def _check_same_work(found: Object, asked: Object) -> None:
    wanted = asked["metadata"].get("annotations", {}).get(CACHE_KEY_ANNOTATION)
    there = found["metadata"].get("annotations", {}).get(CACHE_KEY_ANNOTATION)
    if wanted != there:
        raise DataError(
            f"{found['kind']} {found['metadata']['name']} in the cluster is for other work than the file (another "
            "run file under the same name): delete it, or render with another --suite or --attempt."
        )


def _connected_again(connect: Callable[[], Cluster], cluster: Cluster) -> Cluster:
    try:
        return connect()
    except (ClusterUnavailable, ClusterDenied):  # told already; the next look fails again, and counts
        return cluster
