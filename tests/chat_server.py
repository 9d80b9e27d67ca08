"""A real server on this machine that speaks the chat completions protocol, and does what a test tells it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any]]
SENTENCES = "A man in a red coat crosses a green field to the right. The evening sun stands low."


@dataclass
class Question:
    """What the server was asked."""

    path: str
    key: str
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.body["messages"][0]["content"][0]["text"]

    @property
    def jpegs(self) -> list[bytes]:
        parts = self.body["messages"][0]["content"][1:]
        return [base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) for part in parts]

    @property
    def pictures(self) -> str:
        """Names what was shown, the same for the same pictures."""
        return hashlib.sha256(b"".join(self.jpegs)).hexdigest()


@dataclass
class Server:
    """Its replies come from `answer`, which a test sets; it remembers every question."""

    url: str = ""
    answer: Callable[[Question, int], Reply] = field(default=lambda question, number: said(SENTENCES))
    """The question, and how many came before -> status and body."""
    questions: list[Question] = field(default_factory=list)
    most_at_once: int = 0
    content_type: str = "application/json"
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, question: Question) -> Reply:
        with self._lock:
            number = len(self.questions)
            self.questions.append(question)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.answer(question, number)
        finally:
            with self._lock:
                self._now -= 1


def said(
    text: str | None, *, finish: str = "stop", refusal: str | None = None, tokens: tuple[int, int] = (900, 40)
) -> Reply:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return 200, {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "eyes-1-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


def failed(status: int, message: str, code: str | None = None) -> Reply:
    return status, {"error": {"message": message, "type": "error", "code": code, "param": None}}


@contextmanager
def serving() -> Iterator[Server]:
    """The server, while in the context; at an address of this machine."""
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply = told.reply(Question(self.path, self.headers["Authorization"], body))
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", told.content_type)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "1")  # tests need not wait
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """A client that was killed or did not wait is what some tests are about."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        told.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield told
        http.shutdown()
        thread.join()
