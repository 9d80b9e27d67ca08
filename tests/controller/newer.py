"""The controller of a later version: every stage makes something else, and a section has two fields more.

python -m tests.controller.newer [flags of bricks-controller]
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from bricks_core.spec import clip, items, stages
from bricks_core.spec.strict import How, What


class ClipSpec(clip.ClipSpec):
    """Cutting as a later version knows it."""

    polish: What[int] = Field(7)
    """Changes the answer."""
    patience_s: How[float] = Field(1.0)
    """Does not."""


def upgrade() -> None:
    """Make this process one of the later version; before the run file's classes are loaded."""
    clip.ClipSpec = ClipSpec  # type: ignore[misc]
    stages.STAGES.update({name: replace(each, version=each.version + 1) for name, each in stages.STAGES.items()})
    items.KINDS["clip"] = replace(items.KINDS["clip"], version=items.KINDS["clip"].version + 1)


if __name__ == "__main__":
    upgrade()
    from jobs.controller import main

    main()
