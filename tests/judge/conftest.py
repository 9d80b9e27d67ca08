"""Drawn clips, and scenes of generated films, whose truth is known."""

from __future__ import annotations

import pytest

from tests.judge.filmed import Filmed, scenes_of
from tests.stages.conftest import drawing  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def filmed() -> list[Filmed]:
    """Of each look the scenes of two films."""
    return [scene for look in ("brick", "plain") for index in range(2) for scene in scenes_of(look, index)]
