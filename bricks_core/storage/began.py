"""The versions of items' functions that a run began its stages with: what it has made stays under later ones.

runs/<run>/began.json     by stage, written before the first of its items is made
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from bricks_core.errors import NoSuchObject
from bricks_core.spec.items import KINDS
from bricks_core.spec.stages import Stage
from bricks_core.spec.strict import Strict
from bricks_core.storage.code_version import code_version
from bricks_core.storage.store import Store


class BeganStage(Strict):
    """How a run began a stage, and has gone on with it."""

    kinds: dict[str, list[int]]
    """The versions of each kind's function that its items may be of."""
    code_version: str = ""
    """Of Bricks when this was written."""


class Began(Strict):
    """What a run has begun, by stage."""

    stages: dict[str, BeganStage] = {}


def read_began(store: Store, run: str) -> Began:
    """Nothing where it cannot be read, or an earlier version of Bricks kept none."""
    try:
        return Began.model_validate_json(store.get(_key(run)))
    except (NoSuchObject, ValidationError):
        return Began()


def keep(store: Store, run: str, stage: Stage, kinds: Mapping[str, list[int]]) -> None:
    """Written only when it says something new."""
    before = read_began(store, run)
    now = before.stages.get(stage.name)
    if now is None or now.kinds != kinds:
        new = BeganStage(kinds=dict(kinds), code_version=code_version())
        data = before.model_copy(update={"stages": before.stages | {stage.name: new}}).model_dump_json(indent=1)
        store.put(_key(run), data.encode())


def keep_only_now(store: Store, run: str, stage: Stage) -> None:
    """Let no item of an earlier version count any more."""
    keep(store, run, stage, {kind: [KINDS[kind].version] for kind in stage.kinds})


def _key(run: str) -> str:
    return f"runs/{run}/began.json"
