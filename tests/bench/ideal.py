"""A coordinator that costs nothing: it answers an algorithm at once, starts the parts it asks for, and holds the question
whether they are done until they are.

Owns what the algorithm tools' client asks a server for, as far as a central part with one subtask goes. Must not know
what is computed.
"""

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.ports import free_port

TASK = 2
Part = Callable[[int, bytes], bytes]
"""Runs the part of one organization, with its input; returns the output."""


class IdealServer:
    """Answers one central part; entered while it listens on *host*."""

    def __init__(self, host: str, part: Part) -> None:
        self._part = part
        self._parts: dict[int, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor()
        self._http = ThreadingHTTPServer((host, free_port(host)), _answering_for(self))
        self.host, self.port = host, int(self._http.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._pool.shutdown()

    def create(self, task: Mapping[str, Any]) -> Mapping[str, Any]:
        """Start all parts at once."""
        for wanted in task["organizations"]:
            given = base64.b64decode(wanted["input"])
            self._parts[wanted["id"]] = self._pool.submit(self._part, wanted["id"], given)
        return {"id": TASK, "runs": f"/run?task_id={TASK}"}

    def answer(self, path: str) -> Mapping[str, Any]:
        """Answer a question; whether the task is done only when it is."""
        if path == f"/task/{TASK}/status":
            for part in self._parts.values():
                part.result()
            return {"status": "completed"}
        listings: Mapping[str, Callable[[], Sequence[Any]]] = {"/run": self._runs, "/result": self._results}
        if path in listings:
            return {"data": listings[path](), "links": {}}
        return {"blob_store_enabled": False}

    def _runs(self) -> Sequence[Any]:
        return [
            {"id": number, "organization": {"id": number}, "status": "completed"} for number in self._parts
        ]

    def _results(self) -> Sequence[Any]:
        return [
            {
                "id": number,
                "run": {"id": number},
                "result": base64.b64encode(part.result()).decode(),
                "blob_storage_used": False,
            }
            for number, part in self._parts.items()
        ]


def _answering_for(server: IdealServer) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(200, server.answer(urlsplit(self.path).path))

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            self._say(201, server.create(json.loads(self.rfile.read(length))))

        def _say(self, status: int, content: Mapping[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Answering


def container_token() -> str:
    """Return a token of the shape the algorithm client takes apart; its signature is nobody's."""
    identity = {"image": "i", "databases": [], "node_id": 1, "collaboration_id": 1, "organization_id": 1}
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": identity})
    return ".".join([*(_part(json.dumps(part).encode()) for part in parts), _part(b"nobody's")])


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
