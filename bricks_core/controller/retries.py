"""What follows from the way a try ended: one table, which docs/controller.md shows and `decide` reads.

The same codes are in a Job's podFailurePolicy, so both take them from bricks_core/errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Literal

from bricks_core.cluster.launcher import Failure
from bricks_core.errors import OTHER_NODE, OUR_BUG, STOPPED, WRONG_DATA, WRONG_FOR_ALL

FIRST_WAIT_S = 10.0
LONGEST_WAIT_S = 600.0
LONG_RUN_S = 600.0
"""A try that ran so long before it failed begins the waits anew: what ended it is not what ended those before."""
NO_MANIFEST_WAIT_S = 60.0
"""A shared file system may show a file that another machine wrote only after its cache has aged: NFS, up to 60 s."""

Verdict = Literal["free", "never", "once", "counted"]


@dataclass(frozen=True)
class Rule:
    """What one group of exit codes means for the next try."""

    codes: tuple[int, ...]
    """Empty: every other way to end, also without any code."""
    verdict: Verdict
    """free: tried again, and no try is spent. counted: a try is spent. once: that too, and a second one ends the stage.
    never: the stage has failed."""
    reason: str
    what: str
    """A sentence without an end, after "<stage>, try 2: "."""
    hint: str
    """What somebody can do."""


DISRUPTED = Rule((), "free", "Disrupted", "it was stopped from outside (a drained node, a preemption)", "")
DEADLINE = Rule(
    (),
    "counted",
    "DeadlineExceeded",
    "it was not done when its time was up",
    "What is finished is kept. Raise spec.cluster.stages.<stage>.deadline_s, or share the work between more pods.",
)
NO_MANIFEST = Rule(
    (),
    "counted",
    "NoManifest",
    "its pods ended well, but its artifact is not in the store",
    "Look whether the pods and the controller are given the same store, then at the pods' last lines.",
)
RULES = (
    Rule(
        WRONG_FOR_ALL,
        "never",
        "WrongSpec",
        "it says that the run file, or what its pod was given, is wrong",
        "Its last lines say what: mend the run file and apply it again.",
    ),
    Rule(
        WRONG_DATA,
        "never",
        "WrongData",
        "it says that what it was given to work on cannot be used",
        "Its last lines name it: take it out or mend it; then bricks retry has it tried again.",
    ),
    Rule(
        OUR_BUG,
        "once",
        "Bug",
        "it ended with a fault of ours",
        "Please report it with its last lines. bricks retry has it tried again, with the images of now.",
    ),
    Rule(
        OTHER_NODE,
        "counted",
        "PreflightFailed",
        "a node is not fit to train, and will not be asked again",
        "preflight.json in the store says what it lacks; deleting the failed child lets the node be asked again.",
    ),
    Rule(STOPPED, "free", "Stopped", "it was asked to stop, and left things in order", ""),
    Rule(
        (69, 75),
        "counted",
        "ServiceAway",
        "a service it needs does not answer, or is too busy",
        "Its last lines name it: the store's endpoint, the caption server, or a full disk.",
    ),
    Rule(
        (137,),
        "counted",
        "Killed",
        "it was killed, most often for using more memory than it may",
        "Raise spec.cluster.stages.<stage>.memory (train: the profile's train.memory).",
    ),
    Rule((), "counted", "StageFailed", "it failed", "Its last lines say why."),
)


@dataclass(frozen=True)
class Try:
    """A child that has ended without leaving the artifact."""

    attempt: int
    reason: str
    """Its observation's."""
    failure: Failure | None
    """None: it ended well."""
    started_at: datetime
    finished_at: datetime

    @property
    def rule(self) -> Rule:
        """The row of the table that speaks of it."""
        if self.failure is None:
            return NO_MANIFEST
        # Before any code: a pod that is stopped because its time is up ends with 143, and so does one that is
        # preempted, which also has whatever code it left with.
        if "DeadlineExceeded" in self.reason:
            return DEADLINE
        if self.failure.disrupted:
            return DISRUPTED
        return next(rule for rule in RULES if self.failure.exit_code in rule.codes or not rule.codes)


@dataclass(frozen=True)
class Decision:
    """Whether a stage is tried again, and when."""

    again_at: datetime | None
    """None: never."""
    num_used: int
    """Tries spent."""
    rule: Rule
    """What the last try, or the one that ended it for good, came to."""
    attempt: int
    """Which try that was."""
    used_up: bool = False
    """Every try that the stage has is spent."""


def decide(tries: Sequence[Try], budget: int) -> Decision:
    """What follows from all tries that a stage had under the same circumstances, in their order; at least one."""
    last = tries[-1]
    num_used = sum(each.rule.verdict != "free" for each in tries)
    for each in tries:
        if each.rule.verdict == "never":
            return Decision(None, num_used, each.rule, each.attempt)
    num_once = sum(each.rule.verdict == "once" for each in tries)
    if num_once > 1 or num_used >= budget:
        return Decision(None, num_used, last.rule, last.attempt, used_up=True)
    return Decision(last.finished_at + timedelta(seconds=wait_s(tries)), num_used, last.rule, last.attempt)


def wait_s(tries: Sequence[Try]) -> float:
    """Seconds between the end of the last try and the next one: 10, doubling to 600 while tries end soon."""
    soon = takewhile(lambda each: (each.finished_at - each.started_at).total_seconds() < LONG_RUN_S, reversed(tries))
    num_soon = sum(1 for _ in soon)
    least = NO_MANIFEST_WAIT_S if tries[-1].failure is None else FIRST_WAIT_S
    # 2 ** 6 * 10 is past the longest wait already.
    return max(least, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(max(num_soon, 1) - 1, 6)))
