"""Upstream, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.parity.upstream import folder, importable


@pytest.fixture(scope="session")
def upstream() -> Iterator[Callable[[str], Any]]:
    """upstream("opensora.datasets.bucket"): a module of Open-Sora 1.1."""
    root = folder()
    if root is None:
        pytest.skip("Open-Sora 1.1 is not installed beside Bricks (docs/open-sora.md says how)")
    with importable(root) as module:
        yield module
