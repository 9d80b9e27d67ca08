"""A small network of random weights in a folder, and what generate makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BUILT_IN = ("--vae", "patch-dct", "--text-encoder", "hashed-words")
SMALL = ("--frames", "4", "--size", "32x48", "--steps", "2", "--device", "cpu")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoint(name, **shape): a folder with config.json and weights of an STDiT2 in which every part counts."""
    from bricks_core.models.stdit2 import STDiT2
    from bricks_core.models.weights import save_config, save_weights

    def made(name: str = "tiny", seed: int = 0, file: str = "model.safetensors", **shape: Any) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / name
        folder.mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = STDiT2(**{"hidden_size": 48, "depth": 1, "num_heads": 2, "input_sq_size": 64} | shape)
            with torch.no_grad():
                for parameter in network.parameters():
                    if not parameter.any():
                        parameter.normal_(0, 0.05)
        save_weights(network, folder / file)
        save_config(network, folder / "config.json")
        return folder

    return made


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path]) -> Path:
    """The checkpoint that most tests sample from."""
    return checkpoint()


class Generate:
    """generate(*arguments) as the command line has them -> the paths it printed. Errors are raised."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *always: object):
        self._capsys, self._always = capsys, always
        self.told = ""
        """What the last call said on standard error."""

    def __call__(self, *arguments: object) -> list[Path]:
        from jobs.generate import app

        self._capsys.readouterr()
        try:
            app([str(each) for each in (*self._always, *arguments)], standalone_mode=False)
        finally:
            out, self.told = self._capsys.readouterr()
        return [Path(line) for line in out.splitlines()]


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Generate:
    return Generate(capsys)


@pytest.fixture
def small(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> Generate:
    """generate with the small checkpoint, four frames of 32x48, two steps, into a folder called out."""
    return Generate(capsys, model, *BUILT_IN, *SMALL, "--out", tmp_path / "out")
