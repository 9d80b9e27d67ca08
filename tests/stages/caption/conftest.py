"""A server that answers questions about pictures as a test tells it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chat_server import SENTENCES, Server, failed, said, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as told:
        monkeypatch.setenv("OPENAI_BASE_URL", told.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
        yield told


class Replies:
    """The makers of replies, since test files cannot import this one."""

    said = staticmethod(said)
    failed = staticmethod(failed)
    SENTENCES = SENTENCES


@pytest.fixture(scope="session")
def replies() -> type[Replies]:
    return Replies
