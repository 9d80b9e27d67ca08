"""Which code made something, and on what machine: kept with what is made, never part of a key."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def code_version() -> str:
    """The package's version, and the commit where it is known."""
    return metadata.version("bricks") + _commit()


def _commit() -> str:
    # An image carries its commit in the environment; a checkout asks git, and is "+dirty" when it is more than that.
    if commit := os.environ.get("BRICKS_COMMIT"):
        return f"+{commit[:12]}"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"+{described.stdout.strip()}"


def host_facts() -> dict[str, str]:
    """What machine this is: kept beside an artifact, never part of its address."""
    facts = {
        "hostname": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "num_cpus": str(os.cpu_count()),
    }
    if image := os.environ.get("BRICKS_IMAGE"):  # a pod knows what it was made from
        facts["image"] = image
    return facts
