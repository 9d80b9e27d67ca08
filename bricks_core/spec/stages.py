"""The stages, their order, and what each reads. A stage's name is its address everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from bricks_core.errors import UsageError, nearest
from bricks_core.spec.caption import Caption
from bricks_core.spec.clip import Clip, Image, Shot
from bricks_core.spec.evaluate import Sample
from bricks_core.spec.ingest import Given, Video
from bricks_core.spec.items import KINDS
from bricks_core.spec.latents import Latent
from bricks_core.spec.score import Score
from bricks_core.spec.strict import Row
from bricks_core.spec.train import BucketLossRow, CheckpointRow, ClipLossRow, HeldOutRow, StepRow


@dataclass(frozen=True)
class Stage:
    """A stage as the contract knows it."""

    name: str
    version: int
    """Of its tables: raised when the same items would be joined to other rows. What an item's answer depends on has a
    version of its own (spec/items.py)."""
    needs: tuple[str, ...]
    """Stages whose artifacts it reads."""
    tables: dict[str, type[Row]]
    """Its tables, by name, and what their rows are."""
    kinds: tuple[str, ...]
    """Kinds of items that it makes (spec/items.py)."""
    sharded: bool
    """Its work is cut into tasks that any shard can do alone."""
    is_dear: bool = False
    """What is done beside its items takes long: one process at a time does it, and others wait for it."""
    keyed_by: tuple[str, ...] | None = None
    """Of `needs`, those that are in its cache key; None: all. What the others add changes no number it makes."""

    @property
    def key_inputs(self) -> tuple[str, ...]:
        """The stages whose artifacts are in its cache key."""
        return self.needs if self.keyed_by is None else self.keyed_by

    @property
    def kind_versions(self) -> dict[str, int]:
        """Of the functions that answer its items, those that are not the first."""
        return {name: KINDS[name].version for name in self.kinds if KINDS[name].version > 1}


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("ingest", 3, (), {"videos": Video, "given": Given}, ("content", "film", "picture"), sharded=True),
        Stage(
            "clip",
            3,
            ("ingest",),
            {"shots": Shot, "clips": Clip, "images": Image},
            ("shots", "clip", "file"),
            sharded=True,
        ),
        Stage("score", 3, ("ingest", "clip"), {"scores": Score}, ("measures",), sharded=True),
        Stage(
            "caption",
            3,
            ("ingest", "clip", "score"),
            {"captions": Caption},
            ("sight", "description", "answer"),
            sharded=True,
        ),
        Stage("latents", 3, ("clip", "score", "caption"), {"latents": Latent}, ("latent", "text"), sharded=True),
        Stage(
            "train",
            2,
            ("latents",),
            {
                "steps": StepRow,
                "bucket_losses": BucketLossRow,
                "held_out": HeldOutRow,
                "clip_losses": ClipLossRow,
                "checkpoints": CheckpointRow,
            },
            ("held_out",),
            sharded=False,
            is_dear=True,
        ),
        Stage(
            "evaluate",
            3,
            ("ingest", "clip", "score", "caption", "latents", "train"),
            {"samples": Sample},
            ("sample", "guidance"),
            sharded=True,
            is_dear=True,
            keyed_by=("train",),
        ),
    )
}


def stage_named(name: str) -> Stage:
    """The stage of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in STAGES:
        raise UsageError(f'There is no stage "{name}"{nearest(name, STAGES)}: {" ".join(STAGES)}.')
    return STAGES[name]


def until(name: str | None) -> list[Stage]:
    """The stages up to and with the named one; all of them when none is named."""
    stages = list(STAGES.values())
    return stages if name is None else stages[: stages.index(stage_named(name)) + 1]
