"""What tests of training need: a store with a small latents artifact, and a small run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bricks_core.spec.train import Constant, HeldOutSpec, Phase, STDiT2Spec, TrainBucket, TrainSpec
from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from tests.stages.train.apart import train_apart
from tests.stages.train.latents_made_up import made_up_latents

CLIPS = TrainBucket(num_frames=4, resolution="64x48", frame_interval=2, batch_size=4)
IMAGES = TrainBucket(num_frames=1, resolution="64x48", batch_size=2)


def small_spec(**changes: Any) -> TrainSpec:
    """Two phases of 3 and 5 steps; the first on images alone, the second on clips too."""
    fields: dict[str, Any] = {
        "model": STDiT2Spec(hidden_size=24, depth=1, num_heads=2, input_sq_size_px=64),
        "precision": "float32",
        "phases": [
            Phase(name="images", steps=3, buckets=[IMAGES], schedule=Constant(lr=2e-3)),
            Phase(name="mixed", steps=5, buckets=[IMAGES, CLIPS], schedule=Constant(lr=1e-3)),
        ],
        "held_out": HeldOutSpec(every_steps=4, num_samples=2, num_timestep_bins=2, timesteps_per_bin=1),
        "checkpoint_every_steps": 3,
        "log_every_steps": 2,
    }
    return TrainSpec(**(fields | changes))


@pytest.fixture
def spec() -> Callable[..., TrainSpec]:
    return small_spec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that holds the small latents artifact."""
    made = open_store(str(tmp_path / "store"))
    made_up_latents(made, tmp_path / "scratch")
    return made


@pytest.fixture(scope="session")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder store with the small latents artifact and nothing else; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("latents")
    made_up_latents(open_store(str(folder / "store")), folder / "scratch")
    return folder / "store"


@pytest.fixture
def new_store(latents: Path, tmp_path: Path) -> Callable[[], Store]:
    """Makes a store of its own at every call: in one store, the same training is never done twice."""
    numbers = itertools.count()

    def made() -> Store:
        return open_store(str(shutil.copytree(latents, tmp_path / f"store-{next(numbers)}")))

    return made


@pytest.fixture(scope="session")
def alone(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which one process has trained, undisturbed."""
    store = tmp_path_factory.mktemp("alone") / "store"
    shutil.copytree(latents, store)
    assert train_apart(str(store), small_spec()) == 0
    return store
