"""What to do next about a run, and what to say about it: a pure function of what was found in the world.

Decided from the run file, the stages that the store has, and the children that live; never from the run's status, nor
from what this process remembers. So it does not matter how often it is asked, by how many at once, or after what.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

from bricks_core.cluster.launcher import (
    CACHE_KEY_ANNOTATION,
    CIRCUMSTANCES_ANNOTATION,
    Failure,
    Launcher,
    Object,
    Observation,
    Owner,
    Task,
)
from bricks_core.cluster.pin import GENERATION_ANNOTATION, RENEW_ANNOTATION, RETRY_ANNOTATION, VERSION_ANNOTATION, Pin
from bricks_core.cluster.run_file import pin_file
from bricks_core.controller.heartbeats import Heartbeat
from bricks_core.controller.retries import Decision, Try, decide
from bricks_core.controller.same_work import OtherChild, key_inputs, live_elsewhere, taken_over
from bricks_core.controller.status import StageState
from bricks_core.errors import SpecError
from bricks_core.pipeline.points import Pointer
from bricks_core.pipeline.resolve import Address
from bricks_core.spec.cluster import ClusterProfile
from bricks_core.spec.manifest import Manifest
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, Stage

ENDED_ANNOTATION = "bricks.dev/ended"
"""How a child ended, as it was when that was acted upon: its pods may go with their nodes, and their exit codes too."""
NOT_YET = datetime.max.replace(tzinfo=UTC)
SETTLING_S = 60.0
"""A child that has not begun gives way to another run's of the same work for so long after it was made."""
LOOK_AGAIN_S = 20.0
"""While something runs: its progress is told in the store, of which no event comes."""


@dataclass(frozen=True)
class Trouble:
    """Something that keeps the controller from going on, for now."""

    reason: str
    message: str


@dataclass(frozen=True)
class Child:
    """A workload that belongs to the run, and what it has come to."""

    workload: Object
    stage: str
    attempt: int
    observation: Observation
    image: str = ""
    """Of its pods, by digest where one of them tells it; empty: none is left to tell."""
    pods_until: datetime | None = None
    """It is over, and pods of it are still ending: by then they will be gone, or their node is. None: they are gone."""

    @property
    def kind(self) -> str:
        return str(self.workload["kind"])

    @property
    def name(self) -> str:
        return str(self.workload["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.workload["metadata"]["uid"])

    @property
    def cache_key(self) -> str:
        """Empty: a controller of an earlier version made it, which wrote none."""
        return annotation(self.workload, CACHE_KEY_ANNOTATION)

    @property
    def circumstances(self) -> str:
        return annotation(self.workload, CIRCUMSTANCES_ANNOTATION)

    @property
    def failure(self) -> Failure | None:
        """Why it ended badly: as was noted on it when its pods could still be asked, for those may go with their nodes;
        else as they tell now."""
        return noted(annotation(self.workload, ENDED_ANNOTATION)) or self.observation.failure

    @property
    def is_unmarked(self) -> bool:
        """A controller of an earlier version made it, which did not write for which generation."""
        return not annotation(self.workload, GENERATION_ANNOTATION)

    def was_begun_as(self, pin: Pin) -> bool:
        """Whether the run was not begun again since it was made (`bricks retry`)."""
        if self.is_unmarked:
            return not pin.retry and not pin.renew
        return self.told(RETRY_ANNOTATION) == pin.retry and self.told(RENEW_ANNOTATION) == pin.renew

    def told(self, name: str) -> str:
        """One of its annotations, or nothing."""
        return annotation(self.workload, name)

    @property
    def is_going(self) -> bool:
        """It is being deleted: its pods end, and then it is gone."""
        return bool(self.workload["metadata"].get("deletionTimestamp"))

    @property
    def is_live(self) -> bool:
        return not self.is_going and self.observation.state in ("waiting", "running")

    @property
    def created_at(self) -> datetime:
        return time_of(self.workload["metadata"].get("creationTimestamp")) or datetime.fromtimestamp(0, UTC)

    @property
    def finished_at(self) -> datetime:
        """When it ended, as far as it tells."""
        status = self.workload.get("status") or {}
        ends = [
            each.get("lastTransitionTime")
            for each in status.get("conditions") or ()
            if each.get("type") in ("Failed", "Complete", "Succeeded") and each.get("status") == "True"
        ]
        return time_of(ends[0] if ends else status.get("completionTime")) or self.created_at

    @property
    def num_shards(self) -> int:
        """Pods that each tell their own progress."""
        spec = self.workload.get("spec") or {}
        return int(spec.get("completions") or 1) if self.kind == "Job" and STAGES[self.stage].sharded else 1


@dataclass(frozen=True)
class World:
    """What there is, as it was found just now."""

    raw: Object
    """The BrickRun as the cluster has it."""
    now: datetime
    profile: ClusterProfile
    run: BrickRun | None = None
    """None: it cannot be used, and `mistakes` says why."""
    mistakes: str = ""
    pin: Pin | None = None
    """What the run began with, or begins with now. None: nobody keeps it."""
    spec: Object | None = None
    """The run file's spec with the defaults that it began with; `run` is made of it. None: as `run` has it."""
    children: Sequence[Child] = ()
    knows_children: bool = True
    """False: the cluster could not be asked for them."""
    finished: Mapping[str, tuple[Address, Manifest]] | None = field(default_factory=dict)
    """Asked for after the children were: a child that had ended well by then has left its artifact, or never will.
    None: the store cannot be asked."""
    heartbeats: Sequence[Heartbeat] = ()
    """Of the stage that runs."""
    pointed: Mapping[str, Pointer] = field(default_factory=dict)
    """What the run is known to point to, by stage."""
    others: Sequence[OtherChild] | None = None
    """Other runs' children that do, or did, the work of the first stage that is not done. None: nobody has looked for
    them; where it matters, the plan says so (`Plan.asks`)."""
    asked_at: datetime = NOT_YET
    """Since when the run asks for that work, as far as is known: never earlier than it did."""
    kinds: frozenset[str] = frozenset({"Job"})
    """Kinds of workloads that this cluster has."""
    trouble: Trouble | None = None

    @property
    def generation(self) -> int:
        return int(self.raw["metadata"].get("generation") or 0)

    def stage(self, name: str) -> Stage:
        """A stage in the version that the run began with."""
        return self.pin.stage(name) if self.pin else STAGES[name]


@dataclass(frozen=True)
class Keep:
    """Keep what the run begins with, in this ConfigMap, before anything of it is begun."""

    object: Object


@dataclass(frozen=True)
class Forget:
    """Let the run point no more to what these stages left: they are done again."""

    stages: tuple[str, ...]


@dataclass(frozen=True)
class Create:
    """Create these objects in order; the workload is the last one."""

    task: Task
    objects: list[Object]


@dataclass(frozen=True)
class Delete:
    """Stop a child and take it away; what it finished is in the store."""

    kind: str
    name: str
    uid: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Write on a child how it ended, for when its pods are gone."""

    kind: str
    name: str
    uid: str
    text: str


@dataclass(frozen=True)
class Point:
    """Let the run point to an artifact, so that it is found by the run's name and never taken for garbage."""

    address: Address


Action = Keep | Forget | Create | Delete | Note | Point


@dataclass
class Turn:
    """What the first stage that is not done has come to, and what is to be done about it."""

    stage: str
    state: StageState
    reason: str
    message: str
    actions: list[Action] = field(default_factory=list)
    child: Child | None = None
    decision: Decision | None = None
    has_failed: bool = False
    """For good."""
    is_over: bool = True
    """Nothing of it is left alive."""
    trouble: Trouble | None = None
    again_s: float | None = None
    asks: Task | None = None
    """See Plan.asks."""


@dataclass(frozen=True)
class Plan:
    """What to do, and what to say of the stages."""

    actions: list[Action]
    wanted: tuple[str, ...] = ()
    """The run's stages, in order."""
    turn: Turn | None = None
    """Of the first that is not done; None: all are, or nothing can be said."""
    again_s: float | None = None
    """Look again after so many seconds, whatever happens."""
    asks: Task | None = None
    """Whose work other runs' children may have under way: to be looked for, and planned again (World.others)."""


LauncherFor = Callable[[BrickRun, ClusterProfile, str], Launcher]


def plan(world: World, launcher_for: LauncherFor) -> Plan:
    """What to do next.

    `launcher_for` says who runs a stage; it is pure, as its launchers' `render` is.
    """
    if world.raw["metadata"].get("deletionTimestamp"):
        return Plan([])  # its children have it as their owner, and go with it
    if world.run is None:  # whatever else is wrong with it, it can be stopped
        spec = world.raw.get("spec") or {}
        stops = spec.get("cancel") is True or spec.get("suspend") is True
        return Plan([_delete(child, "Stopping") for child in world.children if child.is_live] if stops else [])
    wanted = stages_of(world.run)
    if world.finished is None:
        return _without_store(world, wanted)
    points: list[Action] = [
        Point(address) for name, (address, _) in world.finished.items() if world.pointed.get(name) != address.pointer()
    ]
    first = [*points, *_idle(world, tuple(world.finished))]
    stage = next((name for name in wanted if name not in world.finished), None)
    turn = _turn(world, stage, launcher_for) if stage else None
    if world.pin and world.pin.renews and not world.pin.config:
        # Nothing else, until what is to be done again is forgotten.
        return Plan(_keeping(world), wanted, turn, turn.again_s if turn else None)
    if turn is None:
        return Plan([*_keeping(world), *first], wanted)
    begins = any(isinstance(action, Create) for action in turn.actions)
    return Plan([*_keeping(world, begins=begins), *first, *turn.actions], wanted, turn, turn.again_s, turn.asks)


def outdated(world: World) -> tuple[str, ...]:
    """Finished stages of the run that this version of Bricks would make otherwise."""
    finished = (world.finished or {}).items()
    return tuple(name for name, (address, manifest) in finished if address.made_by or manifest.item_versions)


def _keeping(world: World, *, begins: bool = False) -> list[Action]:
    """What the run begins with is kept as soon as something of it is there or is about to be."""
    pin = world.pin
    if pin is None or pin.config or world.run is None:
        return []
    if not (begins or pin.renews or world.children):
        return []
    forgotten = outdated(world) if pin.renews else ()
    try:
        keep = Keep(pin_file(_task(world, next(iter(STAGES)), [])))
    except SpecError:  # told when its pods' own run file is made
        return []
    return [*([Forget(forgotten)] if forgotten else []), keep]


def stages_of(run: BrickRun) -> tuple[str, ...]:
    """The stages that a run has: all up to the first one without a section."""
    wanted: list[str] = []
    for name in STAGES:
        if getattr(run.spec, name) is None:
            break
        wanted.append(name)
    return tuple(wanted)


def note(failure: Failure, image: str) -> str:
    """How a try ended and with which image, as its child's annotation has it."""
    return json.dumps(asdict(failure) | {"image": image})


def noted_image(text: str) -> str:
    """The image of a note; empty: there is none."""
    try:
        return str(json.loads(text)["image"])
    except (ValueError, TypeError, KeyError):
        return ""


def noted(text: str) -> Failure | None:
    """The same, read; None: nothing was noted, or what nobody understands."""
    try:
        told = json.loads(text)
        code = told["exit_code"]
        nodes = tuple(str(node) for node in told["bad_nodes"])
        return Failure(None if code is None else int(code), bool(told["disrupted"]), nodes)
    except (ValueError, TypeError, KeyError):
        return None


def annotation(obj: Object, name: str) -> str:
    """One of an object's annotations, or nothing."""
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def time_of(text: object) -> datetime | None:
    """A time as Kubernetes writes it."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None
    except ValueError:
        return None


def child_place(run: str, workload: Object) -> tuple[str, int] | None:
    """Stage and attempt of a child, by its name, which nobody can change; None: it is not named as ours are."""
    match = re.fullmatch(rf"{re.escape(run)}-([a-z]+)-a([1-9][0-9]*)", workload["metadata"]["name"])
    return (match[1], int(match[2])) if match and match[1] in STAGES else None


def _turn(world: World, stage: str, launcher_for: LauncherFor) -> Turn:
    assert world.run is not None
    if world.run.spec.cancel or world.run.spec.suspend:
        return _stopping(world, stage)
    mine = sorted((child for child in world.children if child.stage == stage), key=lambda child: child.attempt)
    ahead = next((child for child in world.children if child.stage != stage and _goes_on(world, stage, child)), None)
    if ahead is not None:
        return _living(ahead, world.now)
    task = _task(world, stage, mine)
    stale = _stale(world, stage, task)
    if stale:
        return Turn(
            stage,
            "Waiting",
            stale[0].reason,
            f"{stage}: {stale[0].name} works on what nobody asks for any more, and is stopped first.",
            [*stale],
        )
    live = next((child for child in reversed(mine) if child.is_live), None)
    if live is not None:
        if _may_give_way(live, world.now):
            if world.others is None:
                return Turn(stage, "Waiting", "Created", "", child=live, is_over=False, asks=task)
            first = live_elsewhere(world.others)
            if first is not None and first.age_order < (live.created_at, live.name):
                return _same_work(stage, first, [_delete(live, "SameWork")])
        return _living(live, world.now)
    going = next((child for child in world.children if child.is_going), None)
    if going is not None:
        message = f"{stage}: {going.name} is being deleted; the next try begins when its pods have ended."
        return Turn(stage, "Waiting", "Stopping", message, child=going, is_over=False, again_s=LOOK_AGAIN_S)
    lingering = next((child for child in mine if child.pods_until and child.pods_until > world.now), None)
    if lingering is not None:
        message = f"{stage}: pods of {lingering.name} are still ending; the next try begins when they have."
        # Nothing is noted yet: what ends last may tell most.
        return Turn(stage, "Waiting", "Stopping", message, child=lingering, is_over=False, again_s=LOOK_AGAIN_S)
    tries = [_try(child) for child in mine if _counts(world, child, task)]
    if tries:
        decision = decide(tries, world.run.spec.cluster.attempts)
        if decision.again_at is None or decision.again_at > world.now:
            return _after(world, stage, mine, decision)
        return _creating(world, task, launcher_for, mine, decision)
    return _creating(world, task, launcher_for, mine, None)


def _living(live: Child, now: datetime) -> Turn:
    """Of a stage that has a live child."""
    state: StageState = "Running" if live.observation.state == "running" else "Waiting"
    reason, message = live.observation.reason, live.observation.message
    again_s = LOOK_AGAIN_S if state == "Running" else None
    if reason in _AT_FIRST and now - live.created_at < timedelta(seconds=LOOK_AGAIN_S):
        reason, message, again_s = "Created", f"{live.kind} {live.name} is created.", LOOK_AGAIN_S
    return Turn(live.stage, state, reason, message, child=live, is_over=False, again_s=again_s)


def _is_of_now(world: World, child: Child) -> bool:
    """Whether a child was made for the run as it is asked for now: whatever this version of Bricks would ask for
    instead, it is not touched. Of one that does not say for which generation, its cache key tells."""
    pin = world.pin
    if pin is None or not child.was_begun_as(pin):
        return False
    if child.is_unmarked:
        return pin.first == world.generation and child.cache_key in ("", _task(world, child.stage, []).cache_key)
    return child.told(GENERATION_ANNOTATION) == str(world.generation)


def _goes_on(world: World, stage: str, child: Child) -> bool:
    """Whether a child of a later stage is at work for what the run asks for now, although an earlier stage is not found
    done any more: it began when that one was."""
    names = list(STAGES)
    return child.is_live and names.index(child.stage) > names.index(stage) and _is_of_now(world, child)


def _counts(world: World, child: Child, task: Task) -> bool:
    """Whether a child is one of the tries that its stage has."""
    if world.pin is None or not child.is_unmarked:
        return _is_of_now(world, child) or child.circumstances == task.circumstances
    return _is_of_now(world, child)


def _image(world: World, stage: str, mine: Sequence[Child]) -> str:
    """The image that a stage goes on with: as it began. Empty: as the profile has it."""
    if world.pin is None:
        return ""
    before = [child.image for child in mine if child.image and child.was_begun_as(world.pin)]
    return before[-1] if before else world.pin.images.get(stage, "")


def _task(world: World, stage: str, mine: Sequence[Child]) -> Task:
    assert world.run is not None
    metadata = world.raw["metadata"]
    bad_nodes = {node for child in world.children if child.failure is not None for node in child.failure.bad_nodes}
    return Task(
        run=world.run,
        stage=stage,
        profile=world.profile,
        attempt=1 + max((child.attempt for child in mine), default=0),
        owner=Owner(metadata["name"], metadata["uid"]),
        excluded_nodes=tuple(sorted(bad_nodes)),
        inputs=key_inputs(STAGES[stage], world.finished or {}),
        image=_image(world, stage, mine),
        pin=world.pin,
        spec=world.spec,
    )


def _may_give_way(child: Child, now: datetime) -> bool:
    """Whether a child may leave its work to another run's that was there before it: two controllers, or two looks, may
    have made both at the same moment."""
    seen = child.observation
    has_begun = seen.state != "waiting" or seen.num_active or seen.num_succeeded or seen.num_failed
    return not has_begun and now - child.created_at < timedelta(seconds=SETTLING_S)


def _same_work(stage: str, other: OtherChild, actions: list[Action]) -> Turn:
    message = (
        f"{stage}: run {other.run} has the same work under way ({other.name}); what comes of it is taken when it is "
        "there."
    )
    return Turn(stage, "Waiting", "SameWork", message, actions, again_s=LOOK_AGAIN_S)


def _stale(world: World, stage: str, task: Task) -> list[Delete]:
    """Live children that must not be: of a later stage, with another cache key, or a second one of the stage.

    One without a cache key is of an earlier version's controller: it is left to come to its end.
    """
    later = list(STAGES)[list(STAGES).index(stage) + 1 :]
    newest = max((child.attempt for child in world.children if child.stage == stage and child.is_live), default=0)
    stale = []
    for child in world.children:
        if not child.is_live or (child.stage != stage and child.stage not in later):
            continue
        if _is_renewed(world, child):
            stale.append(_delete(child, "Renewed"))
        elif child.stage in later or (child.cache_key not in ("", task.cache_key) and not _is_of_now(world, child)):
            stale.append(_delete(child, "SettingsChanged"))
        elif child.attempt < newest:
            stale.append(_delete(child, "Duplicate"))
    return stale


def _is_renewed(world: World, child: Child) -> bool:
    """Whether somebody has asked for what a child makes to be made by a newer version (`bricks retry --renew`)."""
    if world.pin is None or not world.pin.renew or child.told(RENEW_ANNOTATION) == world.pin.renew:
        return False
    return child.told(VERSION_ANNOTATION) != str(world.stage(child.stage).version)


def _notes(mine: Sequence[Child]) -> list[Action]:
    """What is about to be acted upon, and could not be found out again once the pods are gone."""
    return [
        Note(child.kind, child.name, child.uid, note(failure, child.image))
        for child in mine
        if (failure := child.observation.failure) is not None
        and failure != Failure(exit_code=None)
        and not child.is_going
        and not annotation(child.workload, ENDED_ANNOTATION)
    ]


def _idle(world: World, done: Sequence[str]) -> list[Delete]:
    """Children that still wait to begin what is done already: they would only take a place in a queue."""
    return [
        _delete(child, "AlreadyDone")
        for child in world.children
        if child.stage in done
        and child.is_live
        and child.observation.state == "waiting"
        and not child.observation.num_active
        and not child.observation.num_succeeded
    ]


def _stopping(world: World, stage: str) -> Turn:
    """Suspended or cancelled: every child that lives is stopped, and nothing new is begun."""
    assert world.run is not None
    actions: list[Action] = [_delete(child, "Stopping") for child in world.children if child.is_live]
    left = [child for child in world.children if child.is_live or child.is_going]
    if left:
        message = f"{stage}: {left[0].name} is being stopped; what it has finished is kept."
        return Turn(stage, "Waiting", "Stopping", message, actions, left[0], is_over=False, again_s=LOOK_AGAIN_S)
    if world.run.spec.cancel:
        message = (
            "The run was cancelled (spec.cancel). What is finished is kept; a run that asks for the same finds it."
        )
        return Turn(stage, "Waiting", "Cancelled", message)
    return Turn(stage, "Waiting", "Suspended", "The run is suspended: set spec.suspend to false to go on from here.")


def _without_store(world: World, wanted: tuple[str, ...]) -> Plan:
    """The store cannot be asked: nothing is begun, but what is to stop is stopped."""
    assert world.run is not None
    if not (world.run.spec.cancel or world.run.spec.suspend):
        return Plan([], wanted)
    return Plan([_delete(child, "Stopping") for child in world.children if child.is_live], wanted)


def _after(world: World, stage: str, mine: Sequence[Child], decision: Decision) -> Turn:
    """Between two tries, or after the last one."""
    assert world.run is not None
    child = next(each for each in reversed(mine) if each.attempt == decision.attempt)
    said = child.observation.message if child.failure is not None else ""
    what = f"{stage}, try {decision.attempt}: {decision.rule.what}."
    hint = decision.rule.hint.replace("<stage>", stage)
    budget = world.run.spec.cluster.attempts
    if decision.again_at is None:
        spent = f"All {budget} tries are spent (spec.cluster.attempts)." if decision.num_used >= budget else ""
        words = " ".join(each for each in (what, said, spent, hint) if each)
        notes = _notes(mine)
        return Turn(stage, "Failed", decision.rule.reason, words, notes, child, decision, has_failed=True)
    left = f"{decision.num_used} of {budget} tries are spent; the next begins at {decision.again_at:%H:%M:%S} UTC."
    words = " ".join(each for each in (what, said, left, hint) if each)
    again_s = max(0.1, (decision.again_at - world.now).total_seconds())
    return Turn(stage, "Waiting", decision.rule.reason, words, child=child, decision=decision, again_s=again_s)


def _creating(
    world: World, task: Task, launcher_for: LauncherFor, mine: Sequence[Child], decision: Decision | None
) -> Turn:
    stage = task.stage
    last = mine[-1] if mine else None
    try:
        launcher = launcher_for(task.run, task.profile, stage)
        objects = launcher.render(task)
    except SpecError as error:
        trouble = Trouble("CannotRender", f"{stage}: {error}")
        return Turn(stage, "Waiting", trouble.reason, trouble.message, [], last, decision, trouble=trouble)
    missing = [obj["kind"] for obj in objects if obj["kind"] in _OPERATORS and obj["kind"] not in world.kinds]
    if missing:
        trouble = Trouble("KindMissing", f"{stage}: this cluster has no {missing[-1]}: {_OPERATORS[missing[-1]]}")
        return Turn(stage, "Waiting", trouble.reason, trouble.message, [], last, decision, trouble=trouble)
    if world.trouble is not None:
        return Turn(stage, "Waiting", world.trouble.reason, world.trouble.message, [], last, decision)
    if world.others is None:
        return Turn(stage, "Waiting", "Creating", "", child=last, decision=decision, asks=task)
    assert world.finished is not None
    address = taken_over(task.run, world.stage(stage), world.finished, world.others, world.asked_at)
    if address is not None and world.pointed.get(stage) != address.pointer():
        message = f"{stage}: another run has made the same at the same time; that is taken."
        return Turn(stage, "Waiting", "SameWork", message, [Point(address)], last, decision)
    other = live_elsewhere(world.others)
    if other is not None:
        return _same_work(stage, other, [])
    message = f"{stage}: {task.workload_name} is being created."
    actions = [*_notes(mine), Create(task, objects)]
    return Turn(stage, "Waiting", "Creating", message, actions, last, decision, is_over=False)


_AT_FIRST = ("NoOperator", "NoPods")
"""Reasons that say nothing about a child which was made a moment ago."""
_OPERATORS = {
    "PyTorchJob": "install Kubeflow's Training Operator 1.9, or set train.launcher in the profile to trainjob or job.",
    "TrainJob": "install Kubeflow's Trainer 2.2 or later, or set train.launcher in the profile to pytorchjob or job.",
    "TrainingRuntime": "install Kubeflow's Trainer 2.2 or later, or set train.launcher in the profile to job.",
}


def _try(child: Child) -> Try:
    failure = child.failure
    if child.observation.state == "failed" and failure is None:
        failure = Failure(exit_code=None)
    return Try(child.attempt, child.observation.reason, failure, child.created_at, child.finished_at)


def _delete(child: Child, reason: str) -> Delete:
    return Delete(child.kind, child.name, child.uid, reason)
