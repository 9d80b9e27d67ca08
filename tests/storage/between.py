"""A server that stands between a store and a real one, and does to each request what a test wants done to it."""

from __future__ import annotations

import http.client
import ssl
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from bricks_core.storage.places import open_store
from bricks_core.storage.store import Store


class Refuse:
    """Answer in the server's place."""

    def __init__(self, status: int, code: str):
        self.status, self.code = status, code


class Say:
    """Answer in the server's place, with these very bytes."""

    def __init__(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.status, self.content = status, content
        self.headers = {"Content-Type": "text/html"} if headers is None else headers


class Hold:
    """Keep the request, and drop it when the test is over."""


class LoseTheAnswer:
    """Let the server do it, and break the connection before its answer."""


class BreakOff:
    """Break the connection in the middle of the answer."""


class Forget:
    """Take a header out of the request, as a server does that does not know it."""

    def __init__(self, header: str):
        self.header = header


Fault = Refuse | Say | Hold | LoseTheAnswer | BreakOff | Forget | None


class Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    """Their names in lower case."""


class Between(ThreadingHTTPServer):
    """Stands between the store and the real server, and does to each request what the next of `faults` says."""

    daemon_threads = True

    def __init__(self, server: str, patch: pytest.MonkeyPatch, tls: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), _Relay)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.server_host = urlsplit(server).netloc
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        self.patch = patch
        self.faults: Iterator[Fault] = iter(())
        self.num_requests = 0
        self.held, self.over = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self._now = Request("", "", {})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests hang up as they like."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def requests(self) -> Iterator[Request]:
        """For a `faults` that depends on the request: the one that is asked about."""
        while True:
            yield self._now

    def next_fault(self, request: Request) -> Fault:
        with self.lock:
            self.num_requests += 1
            self._now = request
            return next(self.faults, None)

    def open_store(self, num_attempts: int = 1) -> Store:
        """An empty store behind us, connected and probed."""
        self.patch.setenv("AWS_ENDPOINT_URL_S3", self.endpoint)
        self.patch.setenv("AWS_MAX_ATTEMPTS", str(num_attempts))
        store = open_store(f"s3://bricks-test/{uuid.uuid4().hex}")
        store.put("probed", b"", if_absent=True)
        store.delete(["probed"])
        return store


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Between

    def log_message(self, *_: Any) -> None:
        pass

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers.items())
        lower = {name.lower(): value for name, value in headers.items()}
        fault = self.server.next_fault(Request(self.command, self.path, lower))
        if isinstance(fault, Hold):
            self.server.held.set()
            self.server.over.wait()
            self.close_connection = True
            return
        if isinstance(fault, Refuse):
            answer = f"<Error><Code>{fault.code}</Code><Message>It is so.</Message></Error>".encode()
            self.answer(fault.status, [("Content-Type", "application/xml")], answer, len(answer))
            return
        if isinstance(fault, Say):
            self.answer(fault.status, fault.headers.items(), fault.content, len(fault.content))
            return
        if isinstance(fault, Forget):
            headers.pop(fault.header)
        with closing(http.client.HTTPConnection(self.server.server_host)) as upstream:
            upstream.request(self.command, self.path, body, headers | {"Connection": "close"})
            real = upstream.getresponse()
            content = real.read()
        if isinstance(fault, LoseTheAnswer):
            self.close_connection = True
            return
        size_bytes = int(real.headers.get("Content-Length") or len(content))
        if isinstance(fault, BreakOff):
            content, self.close_connection = content[: len(content) // 2], True
        self.answer(real.status, real.headers.items(), content, size_bytes)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

    def answer(self, status: int, headers: Any, content: bytes, size_bytes: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(size_bytes))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def standing_between(server: str, patch: pytest.MonkeyPatch, tls: ssl.SSLContext | None = None) -> Iterator[Between]:
    between = Between(server, patch, tls)
    thread = threading.Thread(target=between.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield between
    finally:
        between.over.set()
        between.shutdown()
        thread.join()
        between.server_close()
