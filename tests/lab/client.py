"""The real vantage6 user client 4.15.2, called from tests.

Owns the process the client lives in, because importing and logging in costs seconds. Must not know agents.
"""

import json
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

from tests.lab.vantage6 import RealServer
from tests.lab.venvs import client_venv, environment

PROCESS = Path(__file__).with_name("client_process.py")
LOGIN_SECONDS = 60
CALL_SECONDS = 60


class ClientError(Exception):
    """The real client raised an error, ended, or did not answer in time; the text says which."""


class ClientWorker:
    """A logged-in user of the real client; one call at a time, from any thread.

    `user` is an organization's name: each has one user of that name. The password goes over the worker's standard
    input, so that no process list shows it.
    """

    def __init__(
        self, server: RealServer, user: str | None = None, *, private_key: Path | None = None
    ) -> None:
        self._server = server
        self._user = user or server.organizations[0]
        self._private_key = private_key
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._one_call = threading.Lock()

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(client_venv()), "-P", str(PROCESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            text=True,
            env=environment(),
            start_new_session=True,  # Ctrl-C is for whoever started us; the pipe's end tells the client
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._exchange(self._greeting(), LOGIN_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._output):
            if stream is not None:
                stream.close()

    def hang_up(self) -> None:
        """End the client at once, from any thread: a call that still waits for its answer fails."""
        self._process.kill()
        self._process.wait()

    @property
    def output(self) -> str:
        """Return what the client printed and logged so far."""
        self._output.seek(0)
        return self._output.read()

    def call(self, name: str, /, *, within: float = CALL_SECONDS, **arguments: Any) -> Any:
        """Call a method of the client by its dotted name, for example `call("task.kill", id_=3)`."""
        return self._exchange({"call": name, "arguments": arguments}, within)

    def run(self, script: str, /, *, within: float = CALL_SECONDS, **parameters: Any) -> Any:
        """Run a script that sees `client` and `parameters`, and return what it assigns to `result`."""
        return self._exchange({"script": script, "arguments": parameters}, within)

    def create_task(
        self,
        *,
        image: str,
        method: str,
        organizations: list[int] | None = None,
        arguments: dict[str, Any] | None = None,
        databases: list[dict[str, Any]] | None = None,
    ) -> int:
        """Create a task, for all organizations unless said otherwise, and return its id."""
        task = self.call(
            "task.create",
            collaboration=self._server.collaboration_id,
            organizations=organizations or list(self._server.organization_ids.values()),
            name=method,
            description="",
            image=image,
            input_={"method": method, "kwargs": arguments or {}},
            databases=[{"label": "default"}] if databases is None else databases,
        )
        if not isinstance(task, dict) or "id" not in task:
            raise ClientError(f"the server refused the task: {task}\n{self.output[-800:]}")
        return int(task["id"])

    def results(self, task_id: int, *, within: float = CALL_SECONDS) -> list[Any]:
        """Wait for a task and return its results, decoded; None for a run that has none."""
        answer = self.call("wait_for_results", task_id=task_id, interval=0.5, within=within)
        return [_decoded(item["result"]) for item in answer["data"]]

    def runs(self, task_id: int) -> list[dict[str, Any]]:
        """Return the runs of a task as the server shows them now: status, log, times."""
        answer = self.call("run.from_task", task_id=task_id)
        return list(answer["data"])

    def _greeting(self) -> dict[str, Any]:
        scheme, _, address = self._server.root.partition("://")
        host, _, port = address.rpartition(":")
        return {
            "host": f"{scheme}://{host}",
            "port": int(port),
            "path": "/api",
            "username": self._user,
            "password": self._server.passwords[self._user],
            "private_key": None if self._private_key is None else str(self._private_key),
        }

    def _exchange(self, request: dict[str, Any], within: float) -> Any:
        assert self._process.stdin is not None
        with self._one_call:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            try:
                line = self._answers.get(timeout=within)
            except queue.Empty:
                # The late answer would be taken for that of the next request.
                self._process.kill()
                raise ClientError(f"the client did not answer within {within} s: {_name(request)}") from None
        return self._result(request, line)

    def _result(self, request: dict[str, Any], line: str) -> Any:
        if not line:
            raise ClientError(f"the client ended: {_name(request)}\n{self.output[-1500:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(f"{_name(request)}: {answer['error']}")
        return answer["result"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")


def run_client(server: RealServer, script: str, *, within: float = CALL_SECONDS, **parameters: Any) -> Any:
    """Run one script with a client of its own; see `ClientWorker.run`."""
    with ClientWorker(server) as worker:
        return worker.run(script, within=within, **parameters)


def _name(request: dict[str, Any]) -> str:
    return str(request.get("call", "a script" if "script" in request else "login"))


def _decoded(result: str | None) -> Any:
    return json.loads(result) if result else None
