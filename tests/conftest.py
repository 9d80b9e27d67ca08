"""What tests of several rooms need: the golden vectors (tests/golden/README.md) and the network they belong to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
Vectors = dict[str, Any]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Vectors]]:
    """golden("forward")["d_xmask"]["in.x"]: the tensors of one file by case and name; "" where a file has no cases."""
    from safetensors.torch import load_file

    def read(file: str) -> dict[str, Vectors]:
        cases: dict[str, Vectors] = defaultdict(dict)
        for key, tensor in load_file(GOLDEN / f"{file}.safetensors").items():
            case, _, name = key.rpartition("/")
            cases[case][name] = tensor
        return dict(cases)

    return read


@pytest.fixture(scope="session")
def golden_json() -> Callable[[str], Any]:
    return lambda file: json.loads((GOLDEN / f"{file}.json").read_text())


@pytest.fixture
def small_model(golden: Callable[[str], dict[str, Vectors]], golden_json: Callable[[str], Any]) -> Any:
    """The small network of the golden vectors, fresh for every test, with its weights loaded strictly."""
    from bricks_core.models.stdit2 import STDiT2, STDiT2Config

    model = STDiT2(STDiT2Config.from_dict(golden_json("small_config")))
    model.load_state_dict(golden("small_model")[""], strict=True)
    return model.eval()
