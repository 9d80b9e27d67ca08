"""As much of W&B's server as `wandb sync` needs, to see what it would have of each run."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Use it as a context. `histories` has every run's lines, by the run's id."""

    def __init__(self) -> None:
        self.histories: dict[str, list[dict[str, Any]]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = json.dumps(outer._answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_GET(self) -> None:
                self.do_POST()

            def do_PUT(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/graphql"):
            asked = json.loads(body)
            return {"data": self._data(asked["query"], asked.get("variables", {}))}
        if path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            history = self.histories[path.split("/")[-2]]
            if lines["content"]:
                history[lines["offset"] :] = [json.loads(line) for line in lines["content"]]
        return {}

    def _data(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "P", "name": "toys", "entity": {"id": "E", "name": "me"}}
        if "upsertBucket" in query:
            name = given["name"]
            self.histories.setdefault(name, [])
            bucket = {"id": f"ID-{name}", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/file"} for name in given["files"]]
            return {"createRunFiles": {"runID": "ID", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query:
            return {"model": project | {"bucket": self._resumed(given["name"])}}
        return {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        if name not in self.histories:
            return None
        history = self.histories[name]
        last = json.dumps(history[-1]) if history else "{}"
        return {
            "id": f"ID-{name}",
            "name": name,
            "displayName": name,
            "config": "{}",
            "historyLineCount": len(history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([last] if history else []),
            "eventsTail": "[]",
            "summaryMetrics": last,
            "wandbConfig": json.dumps({"t": 1}),
        }
