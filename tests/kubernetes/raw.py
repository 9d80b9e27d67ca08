"""The bare API over HTTP, as a test asks it: what status came back, and with what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3

from tests.kubernetes.failures import Object

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"
T = TypeVar("T")


class Answered(Exception):
    """An answer that is not a good one."""

    def __init__(self, status: int, body: Any):
        super().__init__(f"{status}: {body.get('message', body) if isinstance(body, dict) else body}")
        self.status, self.body = status, body


@dataclass(frozen=True)
class Api:
    """One user of one API server."""

    url: str
    token: str
    _pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(cert_reqs="CERT_NONE", retries=False, maxsize=8), repr=False
    )

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: Any) -> Any:
        """The answer's body. Answered: its status is 300 or more."""
        response = self._send(method, path, body, kind, query)
        text = response.data.decode()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = text
        if response.status >= 300:
            raise Answered(response.status, answer)
        return answer

    def _send(self, method: str, path: str, body: Any, kind: str, query: Object, **options: Any) -> Any:
        urllib3.disable_warnings(
            urllib3.exceptions.InsecureRequestWarning
        )  # anew, as pytest forgets it after each test
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = kind
        url = f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        return self._pool.request(method, url, body=data, headers=headers, timeout=30, **options)

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, **query)

    def post(self, path: str, body: Any, **query: Any) -> Any:
        return self.call("POST", path, body, **query)

    def put(self, path: str, body: Any) -> Any:
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Any, kind: str = MERGE, **query: Any) -> Any:
        return self.call("PATCH", path, body, kind, **query)

    def delete(self, path: str, **options: Any) -> Any:
        return self.call("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def watch(self, path: str, *, seconds: int = 20, **query: Any) -> Iterator[Object]:
        """Events, until the server ends the watch."""
        query = {"watch": "true", "timeoutSeconds": str(seconds), **query}
        response = self._send("GET", path, None, "", query, preload_content=False)
        if response.status >= 300:
            raise Answered(response.status, json.loads(response.data))
        rest = b""
        try:
            for chunk in response.stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        finally:
            response.close()


def eventually(look: Callable[[], T | None], *, within_s: float = 60, every_s: float = 0.05) -> T:
    """What `look` says as soon as it is something; the last answer or error is told when time is over."""
    until = time.monotonic() + within_s
    while True:
        last: object = None
        try:
            found = look()
            if found:
                return found
            last = found
        except (Answered, AssertionError, LookupError) as error:
            last = error
        assert time.monotonic() < until, f"not within {within_s:g} s: {last}"
        time.sleep(every_s)
