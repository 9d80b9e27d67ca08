"""What was found and planned, as the run's status and as events: the words that people read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bricks_core.controller.heartbeats import progress_of
from bricks_core.controller.plan import Child as Found
from bricks_core.controller.plan import Plan, Turn, World, stages_of
from bricks_core.controller.status import (
    Child,
    Condition,
    ConditionType,
    Output,
    Phase,
    Pinned,
    PinnedStage,
    RunStatus,
    StageProgress,
    StageStatus,
    Truth,
    clipped,
)
from bricks_core.pipeline.began import mixed_in_words
from bricks_core.spec.items import KINDS
from bricks_core.spec.stages import STAGES
from bricks_core.storage.code_version import code_version

STAGE_DONE = "StageDone"


@dataclass(frozen=True)
class Event:
    """Something that became so."""

    reason: str
    message: str
    is_warning: bool = False


def report(world: World, plan: Plan, before: RunStatus) -> RunStatus:
    """The status. `before` gives since when each condition is as it is, and what cannot be found out just now."""
    conditions = _Conditions(world, before)
    if world.run is None:
        return _unusable(world, before, conditions)
    if world.finished is None:
        return _blind(world, before, conditions)
    turn = plan.turn
    stages = [_stage(world, name, turn) for name in plan.wanted]
    current = stages[plan.wanted.index(turn.stage)] if turn else None
    conditions.add("Accepted", "True", "Accepted", "The run file can be used.")
    if turn is None:
        conditions.add("Running", "False", "Finished", "Nothing is left to run.")
    else:
        conditions.add("Running", "True" if turn.state == "Running" else "False", turn.reason, turn.message)
    _degraded(world, turn, conditions)
    phase = _outcome(world, turn, conditions)
    _up_to_date(world, conditions)
    return RunStatus(
        controller=clipped(code_version(), 128),
        pinned=_pinned(world, before),
        observed_generation=_generation(world),
        phase=phase,
        current_stage=turn.stage if turn else "",
        progress=_line(current.progress) if current and current.progress else "",
        conditions=conditions.told,
        stages=stages,
    )


def events(before: RunStatus, now: RunStatus) -> list[Event]:
    """What became so between two statuses: one for each change of a reason, none for progress."""
    said = []
    old = {stage.name: stage for stage in before.stages}
    for stage in now.stages:
        was = old.get(stage.name)
        same = was is not None and (was.state, was.reason, was.attempt) == (stage.state, stage.reason, stage.attempt)
        if stage.reason and not same:
            said.append(Event(stage.reason, stage.message, stage.state == "Failed"))
    for kind in ("Accepted", "Degraded", "Finished"):
        then, condition = before.condition(kind), now.condition(kind)
        if condition is None or (then and (then.status, then.reason) == (condition.status, condition.reason)):
            continue
        if kind == "Finished" and condition.status == "True" and condition.reason != "SpecInvalid":
            said.append(Event(condition.reason, condition.message, condition.reason == "Failed"))
        if (kind, condition.status) in {("Accepted", "False"), ("Degraded", "True")}:
            said.append(Event(condition.reason, condition.message, True))
    return said


class _Conditions:
    """The conditions of a status under way. One keeps its time until its status is another."""

    def __init__(self, world: World, before: RunStatus):
        self._before = before
        self._now = told_time(world.now)
        self._generation = _generation(world)
        self.told: list[Condition] = []

    def add(self, kind: ConditionType, status: Truth, reason: str, message: str) -> None:
        then = self._before.condition(kind)
        self.told.append(
            Condition(
                type=kind,
                status=status,
                observed_generation=self._generation,
                last_transition_time=then.last_transition_time if then and then.status == status else self._now,
                reason=clipped(reason, 128),
                message=clipped(message),
            )
        )

    def keep(self, kind: ConditionType) -> None:
        """As it was: what it speaks of cannot be found out now."""
        then = self._before.condition(kind)
        if then is None:
            self.add(kind, "Unknown", "Unknown", "The store cannot be asked.")
        else:
            self.told.append(then)


def _unusable(world: World, before: RunStatus, conditions: _Conditions) -> RunStatus:
    live = [child for child in world.children if child.is_live or child.is_going]
    going_on = f" {live[0].name} still runs, as it was asked to before." if live else ""
    how = "Mend the run file and apply it again."
    conditions.add("Accepted", "False", "SpecInvalid", f"{world.mistakes.rstrip('.')}. {how}")
    conditions.add("Running", "False", "SpecInvalid", f"Nothing is begun.{going_on}")
    _degraded(world, None, conditions)
    conditions.add("Succeeded", "Unknown" if live else "False", "SpecInvalid", world.mistakes)
    conditions.add("Finished", "False" if live else "True", "SpecInvalid", world.mistakes)
    return RunStatus(
        observed_generation=_generation(world),
        phase="Failed",
        current_stage=before.current_stage,
        controller=clipped(code_version(), 128),
        pinned=before.pinned,
        conditions=conditions.told,
        stages=before.stages,
    )


def _blind(world: World, before: RunStatus, conditions: _Conditions) -> RunStatus:
    assert world.run is not None
    finished = before.condition("Finished")
    is_stopped = world.knows_children and not any(child.is_live or child.is_going for child in world.children)
    told: dict[str, object] = {"observed_generation": _generation(world), "conditions": conditions.told}
    conditions.add("Accepted", "True", "Accepted", "The run file can be used.")
    if world.run.spec.cancel and is_stopped and not (finished and finished.status == "True"):
        # Nobody need wait for a store that is gone: if all was done after all, the next look that can ask it says so.
        message = "The run was cancelled (spec.cancel). The store cannot be asked what is finished."
        conditions.add("Running", "False", "Cancelled", message)
        _degraded(world, None, conditions)
        conditions.add("Succeeded", "False", "Cancelled", message)
        conditions.add("Finished", "True", "Cancelled", message)
        return before.model_copy(update=told | {"phase": "Cancelled"})
    conditions.keep("Running")
    _degraded(world, None, conditions)
    conditions.keep("Succeeded")
    conditions.keep("Finished")
    if before.condition("UpToDate"):
        conditions.keep("UpToDate")
    return before.model_copy(update=told)


def _degraded(world: World, turn: Turn | None, conditions: _Conditions) -> None:
    trouble = world.trouble or (turn.trouble if turn else None)
    if trouble is None:
        conditions.add("Degraded", "False", "AsExpected", "The controller can do its work.")
    else:
        conditions.add("Degraded", "True", trouble.reason, trouble.message)


def _pinned(world: World, before: RunStatus) -> Pinned | None:
    pin = world.pin
    if pin is None or not pin.config:
        return before.pinned
    return Pinned(
        config=pin.config,
        code_version=clipped(pin.code, 128),
        since=pin.at,
        retried=clipped(pin.retry, 128),
        renewed=clipped(pin.renew, 128),
        stages=[
            PinnedStage(name=name, version=version, image=clipped(pin.images.get(name, ""), 512))
            for name, version in pin.versions.items()
        ][:16],
    )


def _up_to_date(world: World, conditions: _Conditions) -> None:
    """What this version of Bricks would do again, if the run began now."""
    assert world.run is not None
    pin, now = world.pin, code_version()
    if pin is None:
        return
    told = []
    for address, manifest in (world.finished or {}).values():
        told += [address.made_by, *mixed_in_words(manifest)]
    for name in stages_of(world.run):
        if name not in (world.finished or {}):
            told.append(_moved({name: world.stage(name).version}, {name: STAGES[name].version}))
            told.append(_moved(pin.kinds, {kind: KINDS[kind].version for kind in STAGES[name].kinds}))
    moved = ", ".join(filter(None, told))
    if not moved:
        conditions.add("UpToDate", "True", "SameVersions", f"Bricks {now} would do nothing of it again.")
        return
    message = (
        f"Bricks {now} would do again: {moved}, and what is made of it. The run keeps what it "
        f"has, and goes on as it began (Bricks {pin.code}); bricks retry {world.run.name} --renew does it again."
    )
    conditions.add("UpToDate", "False", "NewerVersion", message)


def _moved(then: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Versions that are others now, as `Address.made_by` tells them."""
    return ", ".join(f"{name} {then[name]} → {now[name]}" for name in now if then.get(name, now[name]) != now[name])


def _outcome(world: World, turn: Turn | None, conditions: _Conditions) -> Phase:
    """Whether the run succeeded and whether it is finished; returns its phase."""
    assert world.run is not None
    if turn is None:
        message = "Every stage's artifact is in the store."
        conditions.add("Succeeded", "True", "Succeeded", message)
        conditions.add("Finished", "True", "Succeeded", message)
        return "Succeeded"
    if turn.has_failed:
        conditions.add("Succeeded", "False", turn.reason, turn.message)
        conditions.add("Finished", "True", "Failed", turn.message)
        return "Failed"
    if world.run.spec.cancel and turn.is_over:
        conditions.add("Succeeded", "False", "Cancelled", turn.message)
        conditions.add("Finished", "True", "Cancelled", turn.message)
        return "Cancelled"
    conditions.add("Succeeded", "Unknown", turn.reason, turn.message)
    conditions.add("Finished", "False", "Unfinished", f"{turn.stage} is not done.")
    if world.run.spec.suspend and not world.run.spec.cancel:
        return "Suspended"
    return "Running" if turn.state == "Running" else "Pending"


def _stage(world: World, name: str, turn: Turn | None) -> StageStatus:
    assert world.finished is not None
    children = sorted((each for each in world.children if each.stage == name), key=lambda each: each.attempt)
    last = children[-1] if children else None
    if name in world.finished:
        address, manifest = world.finished[name]
        return StageStatus(
            name=name,
            state="Done",
            attempt=last.attempt if last else 0,
            child=_child(last),
            shards_done=last.observation.num_succeeded if last else 0,
            shards_failed=last.observation.num_failed if last else 0,
            output=Output(uri=f"{world.profile.store.uri.rstrip('/')}/{address.prefix}", digest=address.digest),
            started_at=told_time(manifest.started_at),
            finished_at=told_time(manifest.finished_at),
            reason=STAGE_DONE,
            message=clipped(_counts(name, manifest.counts)),
        )
    if turn is None or turn.stage != name:
        return StageStatus(name=name, state="Pending")
    finished_at = told_time(last.finished_at) if last and turn.has_failed else None
    return StageStatus(
        name=name,
        state=turn.state,
        attempt=last.attempt if last else 0,
        tries_used=turn.decision.num_used if turn.decision else 0,
        child=_child(last),
        shards_done=last.observation.num_succeeded if last else 0,
        shards_failed=last.observation.num_failed if last else 0,
        started_at=told_time(children[0].created_at) if children else None,
        finished_at=finished_at,
        reason=clipped(turn.reason, 128),
        message=clipped(turn.message),
        progress=_progress(world, turn),
    )


def _child(found: Found | None) -> Child | None:
    return Child(kind=found.kind, name=found.name, uid=found.uid) if found else None


def _progress(world: World, turn: Turn) -> StageProgress | None:
    if turn.state != "Running" or turn.child is None:
        return None
    return progress_of(world.heartbeats, num_shards=turn.child.num_shards, since=turn.child.created_at)


def _line(progress: StageProgress) -> str:
    left = f", {progress.eta} left" if progress.eta else ""
    return clipped(f"{progress.done}/{progress.total} {progress.unit}{left}", 128)


def _counts(name: str, counts: dict[str, int]) -> str:
    told = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in counts.items())
    return f"{name}: done{': ' if told else '.'}{told}{'.' if told else ''}"


def _generation(world: World) -> int:
    return int(world.raw["metadata"].get("generation") or 0)


def told_time(time: datetime) -> str:
    """As Kubernetes writes times."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
