"""Drawn clips, and the generated films of examples/, whose truth is known."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stages.conftest import drawing  # noqa: F401 (a fixture)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
