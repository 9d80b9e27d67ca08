"""Work that several runs ask for at the same time: one of them has it done, and the others take what came of it.

Another run's child does the same work as one of ours would when both bear the same `Task.work`: the settings of its
stage and of those before it, and the artifacts that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from bricks_core.pipeline.points import Pointer
from bricks_core.pipeline.resolve import Address, pending_again
from bricks_core.spec.manifest import Manifest, artifact_digest, cache_key
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import STAGES, Stage
from bricks_core.spec.strict import what_of

TOGETHER_S = 10.0
"""Runs that were handed in within so long count as handed in at once. A child looks at the sources some seconds after
it was created: a pod is placed and started first."""


@dataclass(frozen=True)
class OtherChild:
    """A child of another run that does, or did, the same work."""

    run: str
    name: str
    created_at: datetime
    state: Literal["live", "succeeded"]
    left: tuple[Pointer, Manifest] | None = None
    """What its run points to for the stage, once it has succeeded."""

    @property
    def age_order(self) -> tuple[datetime, str]:
        """The oldest first; of the same second (Kubernetes knows no shorter time) by name."""
        return self.created_at, self.name


def key_inputs(stage: Stage, found: Mapping[str, tuple[Address, Manifest]]) -> dict[str, str]:
    """What stands for the finished artifacts in a stage's cache key."""
    return {
        need: found[need][1].read_as.get(stage.name) or found[need][0].digest
        for need in stage.key_inputs
        if need in found
    }


def live_elsewhere(others: Sequence[OtherChild]) -> OtherChild | None:
    """The oldest of those that are at it."""
    return min((each for each in others if each.state == "live"), key=lambda each: each.age_order, default=None)


def taken_over(
    run: BrickRun,
    stage: Stage,
    found: Mapping[str, tuple[Address, Manifest]],
    others: Sequence[OtherChild],
    asked_at: datetime,
) -> Address | None:
    """The artifact of another run that is this run's answer, too; None: there is none, and the run makes its own.

    What lies outside the store (films, weights) cannot be seen from here: it is taken to be as that run's child found
    it, if that child was made after this run asked (`asked_at`), or a moment before.
    """
    for other in others:
        if other.state == "succeeded" and other.left and other.created_at >= asked_at - timedelta(seconds=TOGETHER_S):
            address = _address(run, stage, found, *other.left)
            if address is not None:
                return address
    return None


def _address(
    run: BrickRun,
    stage: Stage,
    found: Mapping[str, tuple[Address, Manifest]],
    pointer: Pointer,
    manifest: Manifest,
) -> Address | None:
    """The other run's artifact as this run's own, if it is the very one that this run's child would have made."""
    spec = run.stage_spec(stage.name)
    outside = {name: each for name, each in pointer.inputs.items() if name not in STAGES}
    key = cache_key(stage, what_of(spec), key_inputs(stage, found) | outside)
    # Made of more than its key tells, such as the sides of the split that its run has drawn before: not ours.
    pending = [each.model_dump(exclude={"reason"}) for each in manifest.pending]
    is_anybodys = pointer.digest == artifact_digest(key, {"pending": pending} if pending else {})
    if pointer.cache_key != key or not is_anybodys or pending_again(run, manifest):
        return None
    needs = {need: found[need][0].digest for need in stage.needs}
    return Address(stage, spec, pointer.digest, needs | outside, key)
