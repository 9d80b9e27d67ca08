"""A real server on this machine that notices are posted to. It keeps them, and answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0P-53CR3T"
"""What the address has in it, and nothing else may."""


@dataclass
class Listener:
    address: str
    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of each."""
    answers: list[int] = field(default_factory=lambda: [200])
    """Statuses in turn, the last one for good; 0: it says nothing until it is `over`."""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def events(self) -> list[tuple[str, str]]:
        """What was told, of which stage."""
        return [(said["event"], said["stage"]) for _, said in self.posted]


@contextmanager
def listener() -> Iterator[Listener]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.posted.append((self.path, json.loads(body)))
            status = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
            if not status:
                made.over.wait(60)
                return
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Listener(f"http://127.0.0.1:{server.server_port}/{SECRET}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        made.over.set()
        server.shutdown()
        server.server_close()
