"""The whole path on a run so small that it takes half a minute, through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.journey.tiny_run import ROOT, TINY, Runner
from tests.s3_server import S3Server


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small generated films."""
    folder = tmp_path_factory.mktemp("films")
    settings = ["--films", "3", "--scenes", "3", "--height", "96", "--photos", "16", "16"]
    subprocess.run(
        [sys.executable, "examples/make_films.py", folder, *settings], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="session")
def tiny(films: Path) -> Callable[..., str]:
    """The tiny run's YAML, with some of its keys replaced: tiny(name="other")."""

    def written(name: str = "tiny", sources: Any = None) -> str:
        document = json.loads(json.dumps(TINY).replace("FILMS", str(films)))
        document["metadata"]["name"] = name
        if sources is not None:
            document["spec"]["ingest"]["sources"] = sources
        return yaml.safe_dump(document, sort_keys=False)

    return written


@pytest.fixture(scope="session")
def new_runner(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., str]) -> Callable[..., Runner]:
    def made(**settings: Any) -> Runner:
        folder = tmp_path_factory.mktemp("run")
        file = folder / "tiny.yaml"
        file.write_text(tiny(**settings), encoding="utf-8")
        return Runner(folder, file)

    return made


@pytest.fixture
def runner(new_runner: Callable[..., Runner]) -> Runner:
    """A user in an empty folder with the tiny run's file."""
    return new_runner()


@pytest.fixture(scope="session")
def finished(new_runner: Callable[..., Runner]) -> Runner:
    """A user whose run went through undisturbed. Not to be changed: take a copy."""
    runner = new_runner()
    ended = runner.bricks("run", "tiny.yaml")
    (runner.folder / "screen.txt").write_text(ended.out, encoding="utf-8")
    return runner


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """S3 over HTTP, with an empty bucket."""
    server = S3Server()
    server.start()
    yield server
    server.kill()
