"""A coordinating server as its users see it, fake or real, and the agent's server side in front of it."""

import base64
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import pytest
import requests

from node_agent.domain.messages import Message, ServerOnline
from node_agent.domain.ports import FinalReport, OpenRun
from node_agent.domain.run import RunId, Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import TaskId
from node_agent.payload.keys import PrivateKey
from node_agent.server.address import ServerAddress
from node_agent.server.client import HttpServer
from node_agent.server.exchange import Exchange
from node_agent.server.listener import SocketListener
from node_agent.server.tokens import Tokens
from tests.doubles.fake_server import Created, FakeServer
from tests.lab.vantage6 import RealServer, ServerError
from tests.lab.venvs import VenvError

AT = 1_700_000_000.0
IMAGE = "registry.example.org/some/image:1"


class Stage(Protocol):
    """A server with one node, and what users do there."""

    url: str
    api_key: str

    def create_task(self, text: str, databases: Sequence[Mapping[str, Any]] = ()) -> Created:
        """Create a task with this text as its input."""

    def kill(self, task_id: int) -> None:
        """Kill a task."""

    def delete(self, task_id: int) -> None:
        """Delete a task."""

    def run(self, run_id: int) -> dict[str, Any]:
        """Give status, log, started_at and finished_at of a run, as users see them, and its result."""

    def node_status(self) -> str | None:
        """Say whether the node counts as present."""


class FakeStage:
    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.url, self.api_key = server.url, server.api_key

    def create_task(self, text: str, databases: Sequence[Mapping[str, Any]] = ()) -> Created:
        return self.server.create_task(image=IMAGE, input=text, databases=databases)

    def kill(self, task_id: int) -> None:
        self.server.kill(task_id)

    def delete(self, task_id: int) -> None:
        self.server.delete(task_id)

    def run(self, run_id: int) -> dict[str, Any]:
        run = self.server.run(run_id)
        fields = ("status", "log", "result", "started_at", "finished_at")
        return {name: getattr(run, name) for name in fields}

    def node_status(self) -> str | None:
        return self.server.node().status


class RealStage:
    def __init__(self, server: RealServer) -> None:
        self.server = server
        self.url, self.api_key = server.url, server.api_keys["alpha"]
        login = {"username": "alpha", "password": server.passwords["alpha"]}
        tokens = requests.post(f"{self.url}/token/user", json=login, timeout=30).json()
        self._headers = {"Authorization": f"Bearer {tokens['access_token']}"}

    def create_task(self, text: str, databases: Sequence[Mapping[str, Any]] = ()) -> Created:
        return self._create(["alpha"], text, databases)

    def create_for(self, organizations: Sequence[str], text: str) -> tuple[int, ...]:
        """Create a task for several organizations and give its runs, in their order."""
        return self._create(organizations, text, ()).run_ids

    def _create(
        self, organizations: Sequence[str], text: str, databases: Sequence[Mapping[str, Any]]
    ) -> Created:
        ids = [self.server.organization_ids[name] for name in organizations]
        body = {
            "name": "t",
            "image": IMAGE,
            "organizations": [{"id": number, "input": text} for number in ids],
            "collaboration_id": self.server.collaboration_id,
            "databases": list(databases),
        }
        task_id = self._call("POST", "task", json=body)["id"]
        runs = {r["organization"]["id"]: r["id"] for r in self._call("GET", f"run?task_id={task_id}")["data"]}
        return Created(task_id, tuple(runs[number] for number in ids))

    def kill(self, task_id: int) -> None:
        self._call("POST", "kill/task", json={"id": task_id})

    def delete(self, task_id: int) -> None:
        self._call("DELETE", f"task/{task_id}")

    def run(self, run_id: int) -> dict[str, Any]:
        result = self._call("GET", f"result/{run_id}")["result"]
        return self._call("GET", f"run/{run_id}") | {"result": result}

    def node_status(self) -> str | None:
        status: str | None = self._call("GET", f"node/{self.server.node_ids['alpha']}")["status"]
        return status

    def _call(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        answer = requests.request(method, f"{self.url}/{path}", headers=self._headers, timeout=30, **rest)
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def started(server: RealServer) -> Iterator[RealServer]:
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except (ServerError, VenvError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: the real server ({error})")
        yield server


@dataclass
class Agent:
    address: ServerAddress
    tokens: Tokens
    server: HttpServer


def agent_at(url: str, api_key: str, *, key: PrivateKey | None = None) -> Agent:
    address = ServerAddress.of(url)
    exchange = Exchange(address)
    tokens = Tokens(exchange, Secret(api_key))
    return Agent(address, tokens, HttpServer(exchange, tokens, key=key))


class Mailbox:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = threading.Condition()

    def post(self, message: Message) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def wait_for(self, message: Message) -> None:
        self.wait_until(lambda: message in self.messages)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=15), self.messages


class Connected:
    """A listener that is online as long as the block lasts."""

    def __init__(self, agent: Agent) -> None:
        self.mailbox = Mailbox()
        self.listener = SocketListener(
            agent.address, agent.tokens, agent.server.identify(), self.mailbox.post
        )

    def __enter__(self) -> Self:
        self.listener.start()
        self.mailbox.wait_for(ServerOnline())
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.stop()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def only(runs: Iterator[OpenRun]) -> OpenRun:
    (run,) = runs
    return run


def create(stage: Stage, content: bytes = b"{}") -> tuple[TaskId, RunId]:
    created = stage.create_task(b64(content))
    return TaskId(created.task_id), RunId(created.run_ids[0])


def final(
    status: Status = Status.COMPLETED, result: Path | None = None, log: Path | None = None
) -> FinalReport:
    return FinalReport(
        status=status, result=result, log=log, started_at=AT, finished_at=AT + 60, init_org_id=None
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def poll(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(200):
        if condition():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not happen in time")
