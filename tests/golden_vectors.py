"""The golden vectors (tests/golden/README.md): what the tests of several packages read, and how they find its cases.

BRICKS_GOLDEN names another folder with files of the same form, of other seeds and sizes. Every golden test takes its
cases from the files. A file that such a folder lacks is skipped with a sentence, and one without a case fails.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

OURS = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("BRICKS_GOLDEN") or OURS).resolve()
if not FOLDER.is_dir():
    raise pytest.UsageError(f"BRICKS_GOLDEN names {FOLDER}, and there is no such folder.")
NETWORK = {"small_config.json", "small_model.safetensors"}
"""What the other vectors were computed with; a folder without its own was computed with ours."""

Vectors = dict[str, Any]


def path_of(name: str) -> Path:
    """The file of that name.

    Raises:
        Skipped: BRICKS_GOLDEN's folder has none.
    """
    path = FOLDER / name
    if path.exists():
        return path
    if name in NETWORK or FOLDER == OURS:
        return OURS / name
    pytest.skip(f"BRICKS_GOLDEN's folder has no {name}", allow_module_level=True)


def tensors_of(file: str) -> dict[str, Vectors]:
    """The tensors of one safetensors file by case and name; the case is "" where a file has none."""
    cases: dict[str, Vectors] = defaultdict(dict)
    for key, tensor in load_file(path_of(f"{file}.safetensors")).items():
        case, _, name = key.rpartition("/")
        cases[case][name] = tensor
    return dict(cases)


def text_of(file: str) -> str:
    return path_of(f"{file}.json").read_text(encoding="utf-8")


def every_case(
    file: str,
    tensor: str,
    prefix: str = "",
    *,
    without: str = "",
    slow: Callable[[Vectors], bool] = lambda vectors: False,
) -> pytest.MarkDecorator:
    """Run a test once for each `case` of a file: all that begin with `prefix` and hold one tensor and not the other."""
    name = f"{file}.safetensors"
    if FOLDER != OURS and not (FOLDER / name).exists():
        return pytest.mark.skip(f"BRICKS_GOLDEN's folder has no {name}")
    found = {
        case: vectors
        for case, vectors in tensors_of(file).items()
        if tensor in vectors and without not in vectors and case.startswith(prefix)
    }
    assert found, f"{FOLDER / name} has no case {prefix}*/{tensor}, and so proves nothing"
    return pytest.mark.parametrize(
        "case", [pytest.param(case, marks=[pytest.mark.slow] * slow(found[case])) for case in sorted(found)]
    )


def every_entry(file: str, *where: str) -> pytest.MarkDecorator:
    """Run a test once for each entry of a JSON file's list, or of its object: `case` is its place or its key."""
    name = f"{file}.json"
    if FOLDER != OURS and not (FOLDER / name).exists():
        return pytest.mark.skip(f"BRICKS_GOLDEN's folder has no {name}")
    entries = json.loads(text_of(file))
    for key in where:
        entries = entries[key]
    assert entries, f"{FOLDER / name} has no entry in {'/'.join(where) or 'it'}, and so proves nothing"
    return pytest.mark.parametrize("case", list(entries) if isinstance(entries, dict) else range(len(entries)))
