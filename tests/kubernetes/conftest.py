"""Servers and namespaces for the tests of this package; others take them from tests.kubernetes.double and .real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.double import Double
from tests.kubernetes.raw import Api
from tests.kubernetes.real import RealServer, namespace_of, real_server

Server = Double | RealServer


@pytest.fixture(scope="session")
def _double() -> Iterator[Double]:
    with Double() as server:
        yield server


@pytest.fixture(params=["double", "real"])
def server(request: pytest.FixtureRequest) -> Server:
    """Both servers, one after the other."""
    if request.param == "real":
        return real_server()
    return request.getfixturevalue("_double")


@pytest.fixture
def api(server: Server) -> Api:
    return server.api()


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    with namespace_of(api) as name:
        yield name


@pytest.fixture
def double() -> Iterator[Double]:
    """A double of the test's own, whose clock and faults may be moved."""
    with Double() as server:
        yield server
