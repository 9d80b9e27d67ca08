"""The places a store can be in, all real: a folder, and S3 over HTTP.

S3 is moto's server, started once, as a process of its own; or, when BRICKS_TEST_S3 names an endpoint (ceph_gateway.py
does), that one.
"""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store
from tests.s3_server import BUCKET, KEY_ID, SECRET, S3Server
from tests.storage.between import Between, standing_between


@pytest.fixture(scope="package", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """No setting of the machine reaches the tests, and their hash cache stays with them."""
    with pytest.MonkeyPatch.context() as patch:
        if "BRICKS_TEST_S3" not in os.environ:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
            patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.fixture(scope="package")
def s3(environment: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of an S3 server with the bucket `bricks-test`, also set in the environment."""
    endpoint = os.environ.get("BRICKS_TEST_S3")
    if endpoint is not None:
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint
        return
    server = S3Server()
    server.start()
    environment.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    yield server.endpoint
    server.kill()


@pytest.fixture
def s3_server() -> Iterator[S3Server]:
    """A server of the test's own, not started yet."""
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture
def between(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    with standing_between(s3, monkeypatch) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty place for a store."""
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def store(place: str) -> Store:
    return open_store(place)


@pytest.fixture
def all_at_once() -> Callable[..., list[Any]]:
    """all_at_once(16, f): f(0) ... f(15) in processes forked at once; -> their answers."""

    def start(num_processes: int, work: Callable[[int], Any]) -> list[Any]:
        fork = multiprocessing.get_context("fork")
        pipes = [fork.SimpleQueue() for _ in range(num_processes)]
        processes = [
            fork.Process(target=lambda index=index, pipe=pipe: pipe.put(_outcome(work, index)))
            for index, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        answers = [pipe.get() for pipe in pipes]
        for process in processes:
            process.join()
        failed = [answer for answer in answers if isinstance(answer, Failed)]
        if failed:
            raise failed[0]
        return answers

    return start


class Failed(Exception):
    """What went wrong in another process: the class's name, the text, the exit code if it is one of our errors."""


def _outcome(work: Callable[[int], Any], index: int) -> Any:
    try:
        return work(index)
    except Exception as error:
        return Failed(type(error).__name__, str(error), getattr(error, "exit_code", None))
