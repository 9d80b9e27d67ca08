"""A run of three small drawn films, up to captions; exports and imports through the real command line's functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bricks_core.pipeline.local import run_path
from bricks_core.spec.run import BrickRun, load_run
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from bricks_core.video.write import write_mp4
from tests.drawn_shots import HEIGHT, WIDTH, shot

CAPTIONS = {"frame_shares": [0.2, 0.8]}


def run_of(name: str, **spec: Any) -> BrickRun:
    return BrickRun.model_validate(
        {"apiVersion": "bricks.dev/v1alpha1", "kind": "BrickRun", "metadata": {"name": name}, "spec": spec}
    )


def film_run(films: Path, **caption: Any) -> BrickRun:
    return run_of(
        "films",
        ingest={
            "sources": [
                {
                    "path": str(films / "a"),
                    "licence": "CC-BY-4.0",
                    "credit": 'Ann "Brick" Maker, Oslo',
                    "consent": "signed, 2026",
                },
                {"path": str(films / "b")},
            ]
        },
        clip={"preset": "ultrafast"},
        score={"held_out_share": 0.4},
        caption=CAPTIONS | caption,
    )


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films and a store in which the run "films" is done up to captions."""
    folder = tmp_path_factory.mktemp("made")
    for name, seeds in {"a/one.mp4": (1, 2), "a/two.mp4": (3, 4), "b/three, and a half.mp4": (5,)}.items():
        (folder / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        still = [np.full((20, HEIGHT, WIDTH, 3), 20, np.uint8)]
        write_mp4(folder / "films" / name, np.concatenate([shot(seed) for seed in seeds] + still), 12, crf=24)
    run_path(film_run(folder / "films"), open_store(str(folder / "store")), "caption")
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """A copy of that store, to spoil."""
    shutil.copytree(made / "store", tmp_path / "store")
    return open_store(str(tmp_path / "store"))


class Tools:
    """The functions of this file, since test files cannot import it."""

    shot = staticmethod(shot)
    run_of = staticmethod(run_of)
    film_run = staticmethod(film_run)

    @staticmethod
    def run_file(file: Path, store: Store, stop_after: str = "caption", overrides: list[str] | None = None) -> None:
        run_path(load_run(file, overrides), store, stop_after)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture
def export(store: Store) -> Callable[..., None]:
    """export(out, "open-sora", run="films")"""
    from bricks_core.exchange.datasets.export import export_dataset

    def exported(out: Path, what: str = "open-sora", run: str = "films", **settings: Any) -> None:
        export_dataset(store, run, what, out, **settings)

    return exported
