"""What .ci/run runs: the checks, and every test once. All is asked of make, which only says what it would do."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def would_run(*command):
    """The lines that this command's calls of make would run."""
    said = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MAKEFLAGS": "n"}, capture_output=True, encoding="utf-8", check=True
    )
    return said.stdout.splitlines()


def suites(lines):
    """The marks by which every run of the whole suite chooses its tests."""
    return [line.partition(" -m ")[2].strip('"') for line in lines if re.search(r"/pytest -n \w+", line)]


def test_make_test_leaves_out_what_is_slow_and_make_test_all_runs_that_too():
    assert suites(would_run("make", "test")) == ["not slow"]
    assert suites(would_run("make", "test-all")) == ["not slow", "slow"]


def test_ci_runs_every_test_once():
    assert suites(would_run(".ci/run")) == ["not slow", "slow"]


@pytest.mark.parametrize(
    "check", ["ruff check .", "ruff format --check .", "mypy", "lint-imports", "build_and_run quick"]
)
def test_ci_lints_checks_types_and_imports_and_builds_images(check):
    assert any(check in line for line in would_run(".ci/run"))


def test_a_mark_that_nobody_explained_is_refused(pytestconfig):
    """Otherwise a misspelt `slow` would run in `make test`, and never be noticed."""
    assert "--strict-markers" in pytestconfig.getini("addopts")
    assert [mark.partition(":")[0] for mark in pytestconfig.getini("markers")].count("slow") == 1


def test_the_whole_path_is_among_what_make_test_runs():
    assert "mark.slow" not in (ROOT / "tests/journey/test_whole_path.py").read_text(encoding="utf-8")
