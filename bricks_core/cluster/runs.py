"""BrickRuns in a cluster: handed in, changed, stopped, and waited for."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from bricks_core.cluster.api import AlreadyThere, Changed, Cluster, NotThere
from bricks_core.cluster.launcher import Object
from bricks_core.cluster.pin import RENEW_ANNOTATION, RETRY_ANNOTATION
from bricks_core.cluster.wait import EVERY_S, Tell, minutes, poll
from bricks_core.errors import DataError, TryLater, UsageError, nearest
from bricks_core.pipeline.plan import differences
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import what_of

KIND = "BrickRun"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class Submitted:
    """What came of handing in a run."""

    what: Literal["created", "changed", "unchanged"]
    changes: list[str]
    """Fields that are different now, as "train.precision: float32 → bfloat16"."""
    reruns: list[str]
    """Stages whose answers may be others now: finished ones too run again, unless the store has what is asked for."""


def left_out(run: BrickRun) -> str:
    """What is said of a run file that holds more than may be sent to a cluster; empty: it does not."""
    if run.spec.notify is None:
        return ""
    return (
        "spec.notify is left out, as a cluster would show it to all who read runs: put the address into a Secret, and "
        "name that in the chart's notify.existingSecret. The controller then tells of every run's end."
    )


def submit(cluster: Cluster, run: BrickRun) -> Submitted:
    """Create the run's BrickRun, or bring the one that is there to what the file says. See `left_out`.

    Raises:
        DataError: the run was cancelled.
        Refused: the cluster does not take it.
    """
    document = run.model_dump(mode="json", exclude_unset=True)
    for _ in range(3):
        try:
            cluster.create(document)
            return Submitted("created", [], [])
        except AlreadyThere:
            pass
        try:
            return _change(cluster, cluster.get(KIND, run.name), run, document)
        except (Changed, NotThere):  # by somebody else, between our reading and our writing
            continue
    raise TryLater(f"BrickRun {run.name} is being changed by others at the same time: try again.")


def get(cluster: Cluster, name: str) -> Object:
    """The BrickRun of that name.

    Raises:
        UsageError: it cannot be one.
        DataError: there is none; the nearest right name is said.
    """
    try:
        return cluster.get(KIND, checked(name))
    except NotThere:
        there = names(cluster)
        known = f": there are {', '.join(there)}." if there else ", and no other: bricks submit FILE makes one."
        raise DataError(
            f"There is no BrickRun {name} in namespace {cluster.namespace}{nearest(name, there)}{known}"
        ) from None


def checked(name: str, what: str = "run") -> str:
    """A name as Kubernetes takes it.

    Raises:
        UsageError: it is none.
    """
    if not _NAME.fullmatch(name) or len(name) > 63:
        raise UsageError(f'"{name}" cannot be the name of a {what}: at most 63 of a-z, 0-9 and -, no - at an end.')
    return name


def names(cluster: Cluster) -> list[str]:
    """Of all BrickRuns of the namespace."""
    return sorted(each["metadata"]["name"] for each in cluster.list(KIND))


def set_field(cluster: Cluster, name: str, field: Literal["suspend", "cancel"], value: bool) -> bool:
    """Set one of the stop buttons of a run. False: it was so already.

    Raises:
        DataError: there is no such run, or it is at its end.
    """
    found = get(cluster, name)
    if field == "suspend" and found["spec"].get("cancel"):
        raise DataError(
            f"BrickRun {name} was cancelled, for good: there is nothing to {'stop' if value else 'resume'}. "
            f"bricks retry {name} begins it again: what is finished is found."
        )
    if bool(found["spec"].get(field, False)) == value:
        return False
    finished = condition(found, "Finished")
    if finished.get("status") == "True":
        raise DataError(
            f"BrickRun {name} is at its end already ({finished.get('reason', 'Finished')}): there is nothing to "
            f"{'stop' if value else 'resume'}. "
            f"kubectl delete brickrun {name} removes it and its Jobs; artifacts stay in the store."
        )
    cluster.patch(KIND, name, {"spec": {field: value}})
    return True


def retry(cluster: Cluster, name: str, *, renew: bool = False) -> str:
    """Let a run that failed for good, or was cancelled, begin again: once, with the images of now.

    `renew`: let any run do again what the installed version of Bricks makes otherwise. Returns the phase it was in.

    Raises:
        DataError: there is no such run, or nothing of it to begin again.
    """
    found = get(cluster, name)
    finished = condition(found, "Finished")
    phase = str((found.get("status") or {}).get("phase") or "Pending")
    reason = finished.get("reason") if finished.get("status") == "True" else ""
    if reason == "SpecInvalid":
        raise DataError(f"The run file of BrickRun {name} cannot be used: mend it, and submit it. {why_so(found)}")
    if not renew and reason == "Succeeded":
        raise DataError(
            f"BrickRun {name} has succeeded: there is nothing to try again. bricks retry {name} --renew does again "
            "what the installed version makes otherwise."
        )
    if not renew and not reason:
        how = "bricks resume goes on with it" if phase == "Suspended" else "it is tried again by itself"
        raise DataError(f"BrickRun {name} is not at its end ({phase}): {how}. bricks status {name} says where it is.")
    value = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    annotations = {RETRY_ANNOTATION: value} | ({RENEW_ANNOTATION: value} if renew else {})
    change: Object = {"metadata": {"annotations": annotations}}
    if found["spec"].get("cancel"):
        change["spec"] = {"cancel": False}
    cluster.patch(KIND, name, change)
    return phase


def wait_for_run(
    connect: Callable[[], Cluster], name: str, *, timeout_s: float, tell: Tell, every_s: float = EVERY_S
) -> Object:
    """The run, once it is Finished. Tells whenever its stage, phase or reason changes.

    Raises:
        TryLater: not in time.
    """
    told = ""

    def look(cluster: Cluster) -> Object | None:
        nonlocal told
        run = get(cluster, name)
        words = one_line(run)
        if words != told:
            told = words
            tell(words)
        return run if condition(run, "Finished").get("status") == "True" else None

    too_late = f"Run {name} is not at its end after {minutes(timeout_s)}; it goes on in the cluster."
    return poll(connect, look, timeout_s=timeout_s, too_late=too_late, tell=tell, every_s=every_s)


def one_line(run: Object) -> str:
    """Where a run is and why, without what changes with every clip: for whoever watches."""
    status = run.get("status") or {}
    stage = current_stage(run)
    phase = status.get("phase") or "waits for the controller"
    where = f"{stage['name']} {str(stage.get('state', '')).lower()}" if stage else ""
    why = str((stage or {}).get("message") or why_so(run))
    return ": ".join(filter(None, (", ".join(filter(None, (str(phase), where))), why)))


def current_stage(run: Object) -> Object | None:
    """The stage that runs, waits or failed, as the status has it."""
    status = run.get("status") or {}
    return next((each for each in status.get("stages") or [] if each.get("name") == status.get("currentStage")), None)


def condition(run: Object, kind: str) -> Object:
    """A condition of the status; empty when it was not written yet."""
    conditions = (run.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def why_so(run: Object) -> str:
    """The message of the condition that says most: what is wrong before what is right."""
    for kind, status in (("Accepted", "False"), ("Degraded", "True"), ("Finished", "True"), ("Running", "False")):
        found = condition(run, kind)
        if found.get("status") == status and found.get("message"):
            return str(found["message"])
    return ""


def _change(cluster: Cluster, found: Object, run: BrickRun, document: Object) -> Submitted:
    if found["spec"].get("cancel") and not run.spec.cancel:
        raise DataError(
            f"BrickRun {run.name} was cancelled, for good. bricks retry {run.name} begins it again, then submit; or "
            f"kubectl delete brickrun {run.name}, then submit. What is finished is found in the store."
        )
    before = _readable(found, run)
    was = before.spec.model_dump(mode="json") if before else found["spec"]
    changes = list(differences(was, run.spec.model_dump(mode="json")))
    if not changes:
        return Submitted("unchanged", [], [])
    change = merge_patch(found["spec"], document["spec"])
    # Only what was read is changed: whoever was faster than us is read again.
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
    cluster.patch(KIND, run.name, {"metadata": version, "spec": change})
    return Submitted("changed", changes, list(_reruns(before, run)))


def _readable(found: Object, run: BrickRun) -> BrickRun | None:
    """The run that is there; None where this version cannot read it."""
    document = {"apiVersion": run.apiVersion, "kind": run.kind, "metadata": {"name": run.name}, "spec": found["spec"]}
    try:
        return BrickRun.model_validate(document)
    except ValidationError:
        return None


def _reruns(before: BrickRun | None, after: BrickRun) -> Iterator[str]:
    moved: set[str] = set()
    for stage in STAGES.values():
        now = getattr(after.spec, stage.name)
        if now is None:
            continue
        was = getattr(before.spec, stage.name) if before else None
        is_another = was is None or what_of(was) != what_of(now)
        if is_another or moved.intersection(stage.key_inputs):
            moved.add(stage.name)
            yield stage.name


def merge_patch(before: Any, after: Any) -> Any:
    """The RFC 7386 patch that makes `before` what `after` is: what `after` does not have is taken away."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    change: dict[str, Any] = dict.fromkeys(before.keys() - after.keys())
    for name, value in after.items():
        if name not in before:
            change[name] = value
        elif before[name] != value:
            change[name] = merge_patch(before[name], value)
    return change
