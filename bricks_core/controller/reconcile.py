"""One look at one run: what is there is gathered, what is next is planned, done, and told.

It can be left at any line and begun again by anybody: each action is one call that says itself whether it was done
before, and the status is written last.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from pydantic import ValidationError

from bricks_core.cluster.api import AlreadyThere, Changed, Cluster, NotThere
from bricks_core.cluster.launcher import (
    ATTEMPT_LABEL,
    RUN_LABEL,
    STAGE_LABEL,
    WORK_ANNOTATION,
    Object,
    Task,
)
from bricks_core.cluster.launchers import launcher_for, launcher_of
from bricks_core.cluster.metadata import JOB_UID_LABEL, QUEUE_LABEL
from bricks_core.cluster.observe import NOT_DONE, has_ended
from bricks_core.cluster.pin import RENEW_ANNOTATION, STOPS, Pin, asked, pin_name_of
from bricks_core.controller.heartbeats import Heartbeat, read_heartbeats
from bricks_core.controller.notices import ending
from bricks_core.controller.plan import (
    ENDED_ANNOTATION,
    Child,
    Create,
    Delete,
    Forget,
    Keep,
    Note,
    Plan,
    Point,
    Trouble,
    World,
    annotation,
    child_place,
    noted_image,
    plan,
    time_of,
)
from bricks_core.controller.report import events, report, told_time
from bricks_core.controller.same_work import OtherChild
from bricks_core.controller.status import RunStatus, read_status
from bricks_core.errors import BricksError, ClusterDenied, CorruptManifest, SpecError
from bricks_core.pipeline.points import Pointer, forget, point, read_pointer
from bricks_core.pipeline.resolve import Address, finished
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun, run_of
from bricks_core.spec.strict import what_of
from bricks_core.storage.artifacts import MANIFEST, artifact_prefix, find_manifest
from bricks_core.storage.code_version import code_version
from bricks_core.storage.store import Store

log = logging.getLogger("bricks.controller")

WORKLOADS = ("Job", "PyTorchJob", "TrainJob")
"""Kinds of objects that run a stage."""
MAX_CREATES = 4
"""At the same time, over all runs."""
NUM_LOCKS = 64
"""For work that runs have in common; more would only let more runs that have nothing to do with each other look at the
same moment."""
MAX_ROUNDS = 6
MAX_KEPT = 4096
MAX_EDITS = 32
"""Of a run file, that are gone through for what the run began with, where its status does not say where that is."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 300.0
HEARTBEATS_KEPT_S = 10.0
KINDS_KEPT_S = 60.0
MANY_PODS = 256
"""Of a Job with more, those that ended well are not read: ten thousand would be 350 MB here, at every look."""
LOST_AFTER_S = 60.0
"""A pod that is still there so long after it was to be gone is not waited for: its node is lost."""


class Reconciler:
    """Brings the runs of one namespace on, each when it is asked to. Safe to use from many threads, not for one run.

    What it keeps in memory saves calls, and nothing is decided from it.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        profile: ClusterProfile,
        *,
        untold: Callable[[str], object] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        """`untold` is called with the name of a run whose end somebody is to be told of; None: nobody ever is."""
        self.cluster = cluster
        self.store = store
        self.profile = profile
        self._untold = untold
        self._now = now
        self._creating = threading.BoundedSemaphore(MAX_CREATES)
        self._failures: dict[str, int] = {}
        self._pointed: dict[str, dict[str, Pointer]] = {}
        self._asked: dict[str, tuple[str, datetime]] = {}
        self._same_work = [threading.Lock() for _ in range(NUM_LOCKS)]
        self._manifests: dict[str, tuple[str, Manifest]] = {}
        self._kinds: dict[str, tuple[bool, float]] = {}
        self._pins: dict[str, tuple[str, Pin | None]] = {}
        """By uid: where what the run begins with is looked for, and that, or what it went by before; None: neither."""
        self._beats: dict[tuple[str, str], tuple[float, list[Heartbeat]]] = {}

    def runs(self) -> list[str]:
        """Names of the runs that anything may be left to do for."""
        return [run["metadata"]["name"] for run in self.cluster.list("BrickRun") if not is_settled(run)]

    def workload_kinds(self) -> list[str]:
        """Kinds of workloads that this cluster has now."""
        return [kind for kind in WORKLOADS if self._knows(kind)]

    def reconcile(self, name: str) -> float | None:
        """Look at a run once. Returns seconds until the next look; None: when something happens.

        Never raises what passes by itself: that is told in the run's condition Degraded, and asked for again, later and
        later.
        """
        try:
            trouble, again_s = self._passes(name)
        except Changed:  # somebody else is at it, too
            return self._backoff_s(name)
        except NotThere:
            self._failures.pop(name, None)
            return None
        except Exception as error:
            if isinstance(error, ClusterDenied):  # perhaps a kind is gone that was there
                self._kinds.clear()
            trouble, again_s = _trouble(error), None
            self._tell_trouble(name, trouble)
        if trouble is None:
            self._failures.pop(name, None)
            return again_s
        log.warning("%s: %s", trouble.reason, trouble.message, extra={"run": name})
        return self._backoff_s(name)

    def _passes(self, name: str) -> tuple[Trouble | None, float | None]:
        """Plan and act until nothing is left to do, then tell."""
        trouble: Trouble | None = None
        for _ in range(MAX_ROUNDS):
            raw = self.cluster.get("BrickRun", name)
            world = self._gather(raw, trouble)
            planned = plan(world, launcher_for)
            if planned.asks is None:
                trouble, is_over = self._act_if_any(world, planned, trouble)
            else:
                # Nobody else may create the same between our looking for it and our creating it.
                with self._same_work[int(planned.asks.work, 16) % NUM_LOCKS]:
                    others, asked_at = self._others(raw, planned.asks), self._asked_at(raw, planned.asks)
                    world = replace(world, others=others, asked_at=asked_at)
                    planned = plan(world, launcher_for)
                    trouble, is_over = self._act_if_any(world, planned, trouble)
            if is_over:
                break
        else:
            return None, FIRST_BACKOFF_S
        self._tell(world, planned)
        return world.trouble, planned.again_s

    def _act_if_any(self, world: World, planned: Plan, trouble: Trouble | None) -> tuple[Trouble | None, bool]:
        """Do what is planned, unless something was in the way before. The second: whether nothing was to do."""
        if not planned.actions or trouble is not None:
            return trouble, True
        return self._act(world, planned), False

    def _others(self, raw: Object, task: Task) -> list[OtherChild]:
        """Other runs' children that do the same work, or have done it well."""
        found = []
        for kind in self.workload_kinds():
            for workload in self.cluster.list(kind, labels={STAGE_LABEL: task.stage}):
                owner = _run_that_owns(workload)
                is_same = annotation(workload, WORK_ANNOTATION) == task.work
                # One of an earlier run of this name is about to go with it.
                if not is_same or owner is None or owner == raw["metadata"]["name"]:
                    continue
                place = child_place(owner, workload)
                if place is None:
                    continue
                child = Child(workload, *place, launcher_of(workload).observe(workload, []))
                if child.is_live:
                    found.append(OtherChild(owner, child.name, child.created_at, "live"))
                elif child.observation.state == "succeeded":
                    left = self._left_by(owner, task.stage)
                    found.append(OtherChild(owner, child.name, child.created_at, "succeeded", left))
        return found

    def _left_by(self, run: str, stage: str) -> tuple[Pointer, Manifest] | None:
        """What a run points to for a stage, if it is there."""
        pointer = read_pointer(self.store, run, stage)
        if pointer is None:
            return None
        try:
            manifest = self._find(self.store, stage, pointer.digest)
        except CorruptManifest:
            return None
        return None if manifest is None else (pointer, manifest)

    def _asked_at(self, raw: Object, task: Task) -> datetime:
        """Since when a run asks for some work: since it is there, if it was never changed; else since this process has
        first seen it ask."""
        meta = raw["metadata"]
        created_at = time_of(meta.get("creationTimestamp"))
        if created_at is not None and int(meta.get("generation") or 0) <= 1:
            return created_at
        work, since = self._asked.get(meta["uid"], ("", self._now()))
        if work != task.work:
            if len(self._asked) >= MAX_KEPT:
                self._asked.clear()
            since = self._now()
            self._asked[meta["uid"]] = task.work, since
        return since

    def _gather(self, raw: Object, trouble: Trouble | None) -> World:
        """What there is. The store is asked after the cluster, see World.finished."""
        name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
        run: BrickRun | None = None
        mistakes = ""
        try:
            run = run_of(raw)
        except SpecError as error:
            mistakes = str(error)
        children = self._children(name, uid)
        pin, spec = None, None
        if run is not None:
            pin = self._pin(raw, run, children)
            run, spec = pin.run_of(raw)
        done: Mapping[str, tuple[Address, Manifest]] | None = {}
        beats: list[Heartbeat] = []
        try:
            if run is not None:
                done = finished(run, self.store, self._find)
                beats = self._heartbeats(name, uid, [child for child in children if child.stage not in done])
        except BricksError as error:
            done, trouble = None, trouble or _trouble(error)
        return World(
            raw=raw,
            now=self._now(),
            profile=self.profile,
            run=run,
            mistakes=mistakes,
            pin=pin,
            spec=spec,
            children=children,
            finished=done,
            heartbeats=beats,
            pointed=dict(self._pointed.get(uid, {})),
            kinds=frozenset(self.workload_kinds()),
            trouble=trouble,
        )

    def _pin(self, raw: Object, run: BrickRun, children: Sequence[Child]) -> Pin:
        """What a run began with; what it would begin with now, if it never did."""
        uid = raw["metadata"]["uid"]
        place = pin_name_of(raw)
        found_at, kept = self._pins.get(uid, ("", None))
        if found_at != place:
            kept = self._kept_pin(place, uid) or self._pin_before(raw)
            if len(self._pins) >= MAX_KEPT:
                self._pins.clear()
            self._pins[uid] = place, kept
        if kept is not None and kept.config == place:
            return kept
        now, before = Pin.of_now(raw, run, self.profile, told_time(self._now())), kept
        if before is not None:
            return before.followed(now, raw)
        unmarked = [child for child in children if child.is_unmarked]
        return now.adopted(self._spec_of(unmarked[-1])) if unmarked else now

    def _pin_before(self, raw: Object) -> Pin | None:
        """What the run went by before its file was edited, or before it was begun again."""
        hint = read_status(raw.get("status")).pinned
        now = int(raw["metadata"].get("generation") or 0)
        earlier = range(now - 1, max(0, now - MAX_EDITS), -1)
        places = [hint.config] if hint else []
        places += [pin_name_of(raw, each) for each in earlier]
        return next(filter(None, (self._kept_pin(each, raw["metadata"]["uid"]) for each in places)), None)

    def _kept_pin(self, place: str, uid: str) -> Pin | None:
        try:
            config = self.cluster.get("ConfigMap", place)
        except NotThere:
            return None
        return Pin.read(config) if _owned_by(config, uid) else None

    def _spec_of(self, child: Child) -> Object | None:
        """The spec that a child's pods read; None: it cannot be found any more."""
        try:
            config = self.cluster.get("ConfigMap", _first(child.workload, "configMap")["name"])
            spec = yaml.safe_load(config["data"]["run.yaml"])["spec"]
        except (NotThere, KeyError, TypeError, yaml.YAMLError):
            return None
        return spec if isinstance(spec, dict) else None

    def _children(self, name: str, uid: str) -> list[Child]:
        workloads = [
            (workload, place)
            for kind in self.workload_kinds()
            for workload in self.cluster.list(kind, labels={RUN_LABEL: name})
            if _owned_by(workload, uid) and (place := child_place(name, workload))
        ]
        many = any((workload.get("spec") or {}).get("completions", 1) > MANY_PODS for workload, _ in workloads)
        fields = NOT_DONE if many else ""
        pods = self.cluster.list("Pod", labels={RUN_LABEL: name}, fields=fields) if workloads else []
        children = []
        for workload, (stage, attempt) in workloads:
            own = [pod for pod in pods if _is_pod_of(pod, workload, stage, attempt)]
            seen = launcher_of(workload).observe(workload, own, self._admission(workload))
            child = Child(workload, stage, attempt, seen, _image_of(workload, own))
            is_over = seen.state in ("failed", "succeeded")
            children.append(replace(child, pods_until=_pods_until(child, own)) if is_over else child)
        return children

    def _admission(self, workload: Object) -> Object | None:
        """Kueue's Workload of a workload that waits in one of its queues."""
        if not (workload["metadata"].get("labels") or {}).get(QUEUE_LABEL) or not self._knows("Workload"):
            return None
        found = self.cluster.list("Workload", labels={JOB_UID_LABEL: workload["metadata"]["uid"]})
        return found[0] if found else None

    def _knows(self, kind: str) -> bool:
        known, until_s = self._kinds.get(kind, (False, 0.0))
        if time.monotonic() >= until_s:
            known = self.cluster.knows(kind)
            self._kinds[kind] = known, time.monotonic() + KINDS_KEPT_S
        return known

    def _find(self, store: Store, stage: str, digest: str) -> Manifest | None:
        """As find_manifest, without the list of objects; read once for as long as it is the same."""
        entry = store.head(artifact_prefix(stage, digest) + MANIFEST)
        if entry is None:
            return None
        etag, kept = self._manifests.get(digest, ("", None))
        if kept is not None and etag == entry.etag:
            return kept
        manifest = find_manifest(store, stage, digest)
        if manifest is None:
            return None
        if len(self._manifests) >= MAX_KEPT:
            self._manifests.clear()
        kept = manifest.model_copy(update={"objects": []})
        self._manifests[digest] = entry.etag, kept
        return kept

    def _heartbeats(self, name: str, uid: str, children: list[Child]) -> list[Heartbeat]:
        running = [child for child in children if child.is_live and child.observation.state == "running"]
        if not running:
            self._beats = {key: beats for key, beats in self._beats.items() if key[0] != uid}
            return []
        key = uid, running[-1].stage
        read_s, beats = self._beats.get(key, (float("-inf"), []))
        if time.monotonic() - read_s >= HEARTBEATS_KEPT_S:
            beats = read_heartbeats(self.store, name, running[-1].stage)
            self._beats[key] = time.monotonic(), beats
        return beats

    def _act(self, world: World, planned: Plan) -> Trouble | None:
        """Do what is planned, in order; stops at what cannot be done."""
        name, uid = world.raw["metadata"]["name"], world.raw["metadata"]["uid"]
        for action in planned.actions:
            try:
                match action:
                    case Keep(config):
                        self._pins.pop(uid, None)
                        trouble = self._create([config], uid, _fields(name))
                        if trouble is not None:
                            return trouble
                    case Forget(stages):
                        log.info("to be done again: %s", ", ".join(stages), extra=_fields(name))
                        forget(name, self.store, stages)
                        self._pointed.pop(uid, None)
                    case Point(address):
                        self._point(world, address)
                        if uid not in self._pointed and len(self._pointed) >= MAX_KEPT:
                            self._pointed.clear()
                        self._pointed.setdefault(uid, {})[address.stage.name] = address.pointer()
                    case Delete():
                        log.info("%s: deleting %s", action.reason, action.name, extra=_fields(name, action.name))
                        self.cluster.delete(action.kind, action.name, uid=action.uid)
                    case Note():
                        # With the uid: one made anew under that name answers 409.
                        change = {"uid": action.uid, "annotations": {ENDED_ANNOTATION: action.text}}
                        self.cluster.patch(action.kind, action.name, {"metadata": change})
                    case Create(task, objects):
                        with self._creating:
                            trouble = self._create(objects, uid, _fields(name, task.workload_name))
                        if trouble is not None:
                            return trouble
            except (Changed, NotThere) as error:  # what the plan was made from is not so any more
                raise Changed(str(error)) from None
            except BricksError as error:
                return _trouble(error)
        return None

    def _point(self, world: World, address: Address) -> None:
        """Let the run point to an artifact, with settings as the version that the run began with knows them: its pods
        read them."""
        name, pointer = world.raw["metadata"]["name"], address.pointer()
        there = read_pointer(self.store, name, pointer.stage)
        if there is not None and there.model_copy(update={"spec": pointer.spec}) == pointer:
            try:
                if what_of(type(address.spec).model_validate(there.spec)) == what_of(address.spec):
                    return
            except ValidationError:  # of a version that is no more
                pass
        settings = (world.spec or {}).get(pointer.stage)
        point(name, self.store, pointer.model_copy(update={"spec": settings}) if settings else pointer)

    def _create(self, objects: Sequence[Object], uid: str, fields: Mapping[str, object]) -> Trouble | None:
        for obj in objects:
            try:
                self.cluster.create(obj)
                log.info("created %s %s", obj["kind"], obj["metadata"]["name"], extra=fields)
            except AlreadyThere:
                trouble = self._compare(obj, uid)
                if trouble is not None:
                    return trouble
                if _is_pin(obj):  # whoever kept it first has said what the run begins with
                    raise Changed(f"ConfigMap {obj['metadata']['name']} is there already.") from None
        return None

    def _compare(self, obj: Object, uid: str) -> Trouble | None:
        """What is there under a name of ours: ours as well, or somebody else's, which is never touched."""
        kind, name = obj["kind"], obj["metadata"]["name"]
        try:
            there = self.cluster.get(kind, name)
        except NotThere:
            raise Changed(f"{kind} {name} was there, and is gone.") from None
        if not _owned_by(there, uid):
            return Trouble(
                "NameTaken",
                f"There is a {kind} {name} that is not this run's: it is left alone. Delete it (kubectl delete "
                f"{kind.lower()} {name}), or give the run another name.",
            )
        if there["metadata"].get("deletionTimestamp"):
            return Trouble("Stopping", f"{kind} {name} is still being deleted.")
        if _is_altered(there, obj):
            return Trouble(
                "Altered",
                f"{kind} {name} is not as it was made: delete it (kubectl delete {kind.lower()} {name}), and it is "
                "made anew.",
            )
        return None

    def _tell(self, world: World, planned: Plan) -> None:
        """Write the status if it says something new, then the events that led to it."""
        if world.raw["metadata"].get("deletionTimestamp"):
            return
        before = read_status(world.raw.get("status"))
        status = report(world, planned, before)
        self._write(world.raw, before, status)

    def _write(self, raw: Object, before: RunStatus, status: RunStatus) -> None:
        if self._untold is not None:
            is_stopped = any((raw.get("spec") or {}).get(name) is True for name in STOPS)
            untold = ending(before, status, is_stopped=is_stopped) or before.untold
            status = status.model_copy(update={"untold": untold})
        if status != before or not raw.get("status"):
            self.cluster.write_status(raw | {"status": status.written()})
            for event in events(before, status):
                log.info("%s: %s", event.reason, event.message, extra=_fields(raw["metadata"]["name"], status=status))
                try:
                    self.cluster.tell(raw, event.reason, event.message, warning=event.is_warning)
                except BricksError as error:  # an event is for people who happen to look; the status says it, too
                    log.debug("no event: %s", error)
        if self._untold is not None and status.untold is not None:
            self._untold(raw["metadata"]["name"])

    def _tell_trouble(self, name: str, trouble: Trouble) -> None:
        """Say in the status that nothing can be done just now, if at least that can be."""
        if trouble.reason in _OUT_OF_REACH:
            return
        try:
            raw = self.cluster.get("BrickRun", name)
            before = read_status(raw.get("status"))
            said = before.condition("Degraded")
            if said is not None and (said.status, said.reason) == ("True", trouble.reason):
                return  # its words may differ each time, and each writing wakes the controller again
            world = World(
                raw, self._now(), self.profile, run_of(raw), knows_children=False, finished=None, trouble=trouble
            )
            self._write(raw, before, report(world, Plan([]), before))
        except BricksError as error:
            log.debug("no status: %s", error, extra={"run": name})

    def _backoff_s(self, name: str) -> float:
        num = self._failures[name] = self._failures.get(name, 0) + 1
        longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(num - 1, 9))
        return longest * random.uniform(0.5, 1.0)  # so that all runs do not ask at the same moment


_OUT_OF_REACH = ("ClusterUnavailable",)


def is_settled(run: Object) -> bool:
    """Whether a run has succeeded, as it is asked for now, and this version of the controller has said what there is to
    say of it: then nothing is left to do, whatever happens."""
    status = read_status(run.get("status"))
    succeeded = status.condition("Succeeded")
    return (
        succeeded is not None
        and succeeded.status == "True"
        and status.observed_generation == run["metadata"].get("generation")
        and status.controller == code_version()
        and status.untold is None
        and asked(run, RENEW_ANNOTATION) == (status.pinned.renewed if status.pinned else "")
    )


def _trouble(error: Exception) -> Trouble:
    if isinstance(error, BricksError):
        reason = next(kind.__name__ for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
        return Trouble(reason, str(error))
    log.error("a fault of ours", exc_info=error)
    return Trouble("ControllerFault", f"The controller has a fault: {type(error).__name__}: {error}. Please report it.")


def _owned_by(obj: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences") or ())


def _run_that_owns(obj: Object) -> str | None:
    """Name of the BrickRun that a child goes with."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((str(each["name"]) for each in owners if each.get("kind") == "BrickRun"), None)


def _is_altered(there: Object, wanted: Object) -> bool:
    """Whether an object of ours was changed in what we find it by, or work with. A workload with another cache key is
    not: it was made for what the run asked for then, and the next look takes it away."""
    if there["kind"] in WORKLOADS:
        return (there["metadata"].get("labels") or {}).get(RUN_LABEL) != wanted["metadata"]["labels"][RUN_LABEL]
    if _is_pin(wanted):  # of another moment, and as right
        return Pin.read(there) is None
    return there["kind"] == "ConfigMap" and there.get("data") != wanted.get("data")


def _is_pin(obj: Object) -> bool:
    """Whether an object of ours keeps what a run began with."""
    return obj["kind"] == "ConfigMap" and "binaryData" in obj


def _is_pod_of(pod: Object, workload: Object, stage: str, attempt: int) -> bool:
    labels = pod["metadata"].get("labels") or {}
    if (labels.get(STAGE_LABEL), labels.get(ATTEMPT_LABEL)) != (stage, str(attempt)):
        return False
    # One of an earlier run of that name may still be there; between a TrainJob and its pods there are other owners.
    owners = [each for each in pod["metadata"].get("ownerReferences") or () if each.get("kind") == workload["kind"]]
    return not owners or any(each.get("uid") == workload["metadata"]["uid"] for each in owners)


def _image_of(workload: Object, pods: Sequence[Object]) -> str:
    """With which image a child works: by the digest that a node has fetched, where one of its pods tells it."""
    noted = noted_image(annotation(workload, ENDED_ANNOTATION))
    if noted:
        return noted
    image = str((_first(workload, "containers") or [{}])[0].get("image") or "")
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
        container = (pod["spec"].get("containers") or [{}])[0]
        image = image or str(container.get("image") or "")
        for told in (pod.get("status") or {}).get("containerStatuses") or ():
            digest = re.search(r"@(sha256:[0-9a-f]{64})$", str(told.get("imageID") or ""))
            if told.get("name") == container.get("name") and digest and image and "@" not in image:
                folder, _, last = image.rpartition("/")
                return f"{folder}/{last.partition(':')[0]}@{digest[1]}".removeprefix("/")
    return image


def _first(value: Any, name: str) -> Any:
    """The first value of that name, at whatever depth; None: there is none."""
    if isinstance(value, dict):
        if name in value:
            return value[name]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for each in value if (found := _first(each, name)) is not None), None)
    return None


def _pods_until(child: Child, pods: Sequence[Object]) -> datetime | None:
    """When the last pods of a child that is over are gone at the latest. Training Operator and JobSet call a job failed
    first, and stop its other pods then: those still write their checkpoint."""
    # A deletionTimestamp is when the grace period ends.
    ends = [
        time_of(pod["metadata"].get("deletionTimestamp")) or child.finished_at for pod in pods if not has_ended(pod)
    ]
    return max(ends) + timedelta(seconds=LOST_AFTER_S) if ends else None


def _fields(run: str, child: str = "", *, status: RunStatus | None = None) -> dict[str, object]:
    """What a log line is about."""
    if status is not None:
        stage = next((each for each in status.stages if each.name == status.current_stage), None)
        return {"run": run, "stage": status.current_stage, "attempt": stage.attempt if stage else 0}
    place = child_place(run, {"metadata": {"name": child}})
    return {"run": run, "stage": place[0], "attempt": place[1]} if place else {"run": run}
