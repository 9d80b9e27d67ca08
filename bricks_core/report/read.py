"""A report's numbers, for who only reads them and has no templates: the command line, the controller."""

from __future__ import annotations

import json
from typing import Any

from bricks_core.errors import AlteredObject, DataError
from bricks_core.storage.artifacts import Artifact

REPORT = "report/report.json"


def read_report(artifact: Artifact) -> dict[str, Any]:
    """The numbers of an evaluation, as they are in the store.

    Raises:
        DataError: they cannot be read, or were altered.
    """
    try:
        with artifact.local(REPORT) as file:
            numbers = json.loads(file.read_bytes())
    except AlteredObject as error:
        raise DataError(f"{error} Delete {artifact.prefix}manifest.json and evaluate again.") from None
    except ValueError:
        numbers = None
    if not isinstance(numbers, dict):
        raise DataError(f"{artifact.prefix}{REPORT} is no report.")
    return numbers
