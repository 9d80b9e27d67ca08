"""What every benchmark does the same: its flags, and a dated record of what it found on which machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("av", "numpy", "opencv-python-headless", "scenedetect-headless", "torch")


def flags(description: str | None) -> argparse.ArgumentParser:
    """A parser with --save; add what the benchmark itself takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/<name>-<date>.json")
    return parser


def keep(name: str, found: dict[str, Any], *, save: bool) -> None:
    """Print a result with the machine it was found on, and keep it if asked to."""
    now = datetime.now(UTC)
    report = {
        "benchmark": name,
        "measured_at": now.isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "num_cpus": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | {each: metadata.version(each) for each in PACKAGES},
        **found,
    }
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{now:%Y-%m-%d}.json").write_text(text, encoding="utf-8")
