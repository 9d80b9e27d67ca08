"""Small drawn films, and runs of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bricks_core.spec.run import BrickRun
from bricks_core.video.write import write_mp4
from tests.drawn_shots import HEIGHT, WIDTH, shot
from tests.stages.caption.conftest import server as vision_server  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def drawn_films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two films, of two shots and of one. Not to be changed: take a copy."""
    folder = tmp_path_factory.mktemp("films")
    for name, seeds in {"one.mp4": (1, 2), "two.mp4": (3,)}.items():
        still = [np.full((20, HEIGHT, WIDTH, 3), 20, np.uint8)]
        write_mp4(folder / name, np.concatenate([shot(seed) for seed in seeds] + still), 12, crf=24)
    return folder


@pytest.fixture(scope="session")
def run_of() -> Callable[..., BrickRun]:
    """run_of(films, score={...}): a run "films" of that folder's films."""

    def made(films: Path, name: str = "films", **spec: Any) -> BrickRun:
        sections: dict[str, Any] = {
            "ingest": {"sources": [str(films)]},
            "clip": {"preset": "ultrafast"},
            "caption": {"frame_shares": [0.2, 0.8]},
        }
        for section, fields in spec.items():
            sections[section] = sections.get(section, {}) | fields
        return BrickRun.model_validate(
            {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": name}, "spec": sections}
        )

    return made
