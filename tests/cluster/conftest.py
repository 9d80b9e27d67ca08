"""A cluster that nobody works in, and a user of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bricks_core.controller.crd import crd
from tests.cluster.command_line import Terminal, at
from tests.kubernetes.double import Double


@pytest.fixture
def double() -> Iterator[Double]:
    """A cluster that knows BrickRun."""
    with Double(crds=[crd()]) as server:
        yield server


@pytest.fixture
def bricks(double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A user of that cluster who may do everything, in an empty folder."""
    return at(double, tmp_path, monkeypatch)
