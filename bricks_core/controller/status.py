"""What a BrickRun's status says: a report for people and programs, never what the controller decides from.

It can be deleted at any time: the next look at the cluster and the store writes it again. It is bounded: nothing in it
grows with a stage's shards, and no text is longer than a screen. Rates are texts, as Kubernetes wants no fractions.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

MAX_MESSAGE = 1024

Phase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed", "Cancelled"]
StageState = Literal["Pending", "Waiting", "Running", "Done", "Failed"]
ConditionType = Literal["Accepted", "Running", "Degraded", "Succeeded", "Finished", "UpToDate"]
Truth = Literal["True", "False", "Unknown"]
Short = Annotated[str, Field(max_length=128)]
Name = Annotated[str, Field(max_length=253)]
Message = Annotated[str, Field(max_length=MAX_MESSAGE)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
"""RFC 3339, in UTC, to the second: 2026-11-24T14:00:00Z."""


def _map_by(key: str) -> dict[str, Any]:
    """A list that Kubernetes merges by a key of its members."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class Told(BaseModel):
    """A part of the status: written in camelCase, as Kubernetes' own are."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )


class Condition(Told):
    """One thing that is so or not, since when, and why."""

    type: ConditionType
    status: Truth
    observed_generation: int = Field(0, ge=0)
    """Of the run, when this was found."""
    last_transition_time: Time
    """When `status` became what it is."""
    reason: Short
    """Stable, CamelCase: for programs. docs/controller.md lists them."""
    message: Message
    """For people: why, and where somebody can do something, what."""


class Child(Told):
    """The workload of a stage's last try."""

    kind: Short
    name: Name
    uid: Short = ""


class Output(Told):
    """The artifact that a finished stage left."""

    uri: Annotated[str, Field(max_length=2048)]
    digest: Short


class StageProgress(Told):
    """How far a running stage is, from the heartbeats that its pods leave in the store."""

    done: int = Field(ge=0)
    total: int = Field(ge=0)
    """Over all shards; where some have not begun, as many as they will have if they are like the others."""
    unit: Short
    """What is counted: clips, steps, …."""
    per_second: Short = ""
    per_hour: Short = ""
    """With its unit: 5400 clips/h. Empty while it is not known, as all that follow."""
    eta_s: int | None = Field(None, ge=0)
    """Seconds until all is done, at this pace."""
    eta: Short = ""
    """The same for people: 2 h 5 min."""
    note: Short = ""
    """What the stage itself likes to say: a loss, a file's name."""
    told_at: Time | None = None
    """When the last heartbeat came."""


class StageStatus(Told):
    """One stage of the run."""

    name: Short
    state: StageState
    """Pending: not its turn. Waiting: its pods do not run yet, or it waits between two tries. Done: its artifact is
    in the store."""
    attempt: int = Field(0, ge=0)
    """The try that runs, or ran last; 0: none was needed or made."""
    tries_used: int = Field(0, ge=0)
    """Failed tries that count against spec.cluster.attempts."""
    child: Child | None = None
    shards_done: int = Field(0, ge=0)
    shards_failed: int = Field(0, ge=0)
    output: Output | None = None
    started_at: Time | None = None
    finished_at: Time | None = None
    reason: Short = ""
    message: Message = ""
    """Why it is so: also Kueue's words, and the scheduler's."""
    progress: StageProgress | None = None


class PinnedStage(Told):
    """What a run goes by for one stage."""

    name: Short
    version: int = Field(0, ge=0)
    """Of what the stage makes: a version of Bricks that makes something else has raised it."""
    image: Annotated[str, Field(max_length=512)] = ""


class Pinned(Told):
    """What the run began with, and goes by whatever is installed later."""

    config: Name
    """Name of the ConfigMap that has all of it."""
    code_version: Short = ""
    """Of Bricks."""
    since: Time | None = None
    """When it began, or was begun again."""
    retried: Short = ""
    """Its annotation bricks.dev/retry that was seen to."""
    renewed: Short = ""
    """The same of bricks.dev/renew."""
    stages: Annotated[list[PinnedStage], Field(max_length=16, json_schema_extra=_map_by("name"))] = []


class Untold(Told):
    """An end that the run has come to, which nobody was notified of yet."""

    event: Literal["finished", "failed", "cap", "verdict"]
    stage: Short = ""
    """The last one that was done, or the one that failed."""


class RunStatus(Told):
    """The status of a BrickRun."""

    observed_generation: int = Field(0, ge=0)
    """The generation of the run that this is about."""
    phase: Phase = "Pending"
    current_stage: Short = ""
    """The one that runs, waits or failed; empty before the first and after the last."""
    progress: Short = ""
    """One line about it: 1200/24000 steps, 3 h 20 min left."""
    controller: Short = ""
    """The version of Bricks that wrote this."""
    pinned: Pinned | None = None
    untold: Untold | None = None
    conditions: Annotated[list[Condition], Field(max_length=8, json_schema_extra=_map_by("type"))] = []
    stages: Annotated[list[StageStatus], Field(max_length=16, json_schema_extra=_map_by("name"))] = []

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if it has been written."""
        return next((each for each in self.conditions if each.type == kind), None)

    def written(self) -> dict[str, Any]:
        """As it is sent to Kubernetes: what is empty is left out, but for numbers and what every object must have.

        Texts too: an optional one that is empty is refused as null by older servers (seen with 1.20).
        """
        return _without_empty_texts(self.model_dump(mode="json", by_alias=True, exclude_none=True))


def _without_empty_texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_empty_texts(each) for each in value]
    if not isinstance(value, dict):
        return value
    # A condition's message is asked for, empty or not.
    must = {"message"} if "lastTransitionTime" in value else set()
    return {name: _without_empty_texts(each) for name, each in value.items() if each != "" or name in must}


def read_status(document: Any) -> RunStatus:
    """A status as an object has it; one that is missing reads as an empty one. What cannot be read of it, because
    somebody has damaged it or another version of Bricks knows more words, is left out, and no more than that."""
    left = copy.deepcopy(document) if isinstance(document, dict) else {}
    while left:
        try:
            return RunStatus.model_validate(left)
        except ValidationError as error:
            before = copy.deepcopy(left)
            for place in {each["loc"][:2]: None for each in reversed(error.errors())}:
                _take_out(left, place)
            if left == before:
                break
    return RunStatus()


def _take_out(status: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """A member of a list, or else a whole field. `place`: as pydantic tells it; of a list, last members first."""
    name, *inside = place
    field = status.get(str(name))
    if isinstance(field, list) and inside and isinstance(inside[0], int) and inside[0] < len(field):
        del field[inside[0]]
    else:
        status.pop(str(name), None)


def clipped(text: str, most: int = MAX_MESSAGE) -> str:
    """On one line, and no longer than a field may be."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
