"""What lies beside weights in a folder and tells of them: our provenance.json, and the state.json of a training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bricks_core.errors import DataError
from bricks_core.spec.latents import Encoders
from bricks_core.spec.train import Weights

CONFIG, STATE, PROVENANCE = "config.json", "state.json", "provenance.json"


@dataclass(frozen=True)
class Told:
    """What a folder tells of the weights that are in it."""

    encoders: Encoders | None = None
    weights: Weights | None = None
    """Which of a training's they are; None: not known, or both."""
    training: str = ""
    """That the training was not finished, in words."""


def told_by(folder: Path) -> Told:
    """What is said beside weights: by their provenance, or by a training's state.

    Raises:
        DataError: it cannot be read.
    """
    provenance, state = read_beside(folder / PROVENANCE), read_beside(folder / STATE)
    given = provenance.get("encoders") or state.get("encoders")
    weights, training = provenance.get("weights"), provenance.get("training")
    try:
        encoders = Encoders.model_validate(given) if given else None
    except ValidationError as error:
        where = folder / (PROVENANCE if provenance.get("encoders") else STATE)
        raise DataError(
            f"{where} says something about encoders that this version of Bricks does not understand "
            f"({error.errors()[0]['msg']}): take that out of it, and name them by --vae and --text-encoder."
        ) from None
    return Told(
        encoders,
        weights if weights in ("raw", "ema") else None,
        training if isinstance(training, str) else "",
    )


def read_beside(file: Path) -> dict[str, Any]:
    """What a small JSON file beside weights says; nothing where it is not there.

    Raises:
        DataError: it cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({error}): get it again, or take it away.") from error
    return found if isinstance(found, dict) else {}
