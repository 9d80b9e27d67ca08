"""Folders in which nodes are started, and nothing left of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nodes.two_nodes import Nodes


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the latents of the run, to be copied."""
    nodes = Nodes(tmp_path_factory.mktemp("latents"))
    nodes.make_latents()
    return nodes.store


@pytest.fixture(scope="module")
def new_nodes(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Nodes]]:
    """Makes folders with the run and its latents; what was started in them is ended with the module."""
    made: list[Nodes] = []

    def make() -> Nodes:
        nodes = Nodes(tmp_path_factory.mktemp("nodes"))
        shutil.copytree(latents, nodes.store)
        made.append(nodes)
        return nodes

    yield make
    for nodes in made:
        nodes.end_all()
