"""A researcher by plain HTTP: logs in, sends a task, reads what came of it, kills it.

Owns the calls of a user. Must not know nodes. It speaks to the embedded server and to a vantage6 server alike.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ConfigError, ServerUnreachable
from node_agent.server.address import ServerAddress
from node_agent.server.exchange import Call, Exchange, Reply, Sends

_UNAUTHORIZED: Final = 401
_REFUSED: Final = 400
_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task to be sent."""

    image: str
    method: str
    organizations: tuple[int, ...]
    collaboration_id: int
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    databases: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """Give the task as the server takes it: the input once for each organization."""
        asked = {"method": self.method, "args": list(self.args), "kwargs": dict(self.kwargs)}
        text = base64.b64encode(json.dumps(asked).encode()).decode()
        return {
            "name": self.method,
            "description": "",
            "image": self.image,
            "collaboration_id": self.collaboration_id,
            "organizations": [{"id": number, "input": text} for number in self.organizations],
            "databases": [{"label": label} for label in self.databases],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """A run as the server shows it to a researcher."""

    id: int
    task_id: int
    organization_id: int
    status: str
    log: str
    is_over: bool


@dataclass(slots=True)
class Researcher:
    """One user of a server."""

    exchange: Sends
    username: str
    password: Secret
    _token: Secret | None = None

    @classmethod
    def at(cls, url: str, *, username: str, password: Secret) -> "Researcher":
        """Be this user of the server with this REST base."""
        return cls(Exchange(ServerAddress.of(url)), username, password)

    def send(self, order: Order) -> int:
        """Send a task and give its number. Raises ConfigError when the server does not take it."""
        reply = self._ask("POST", "task", body=order.body())
        if reply.status >= _REFUSED:
            raise ConfigError(f"The server does not take the task: {reply.message or reply.excerpt()}")
        return int(_object(reply)["id"])

    def runs(self, task_id: int) -> list[RunSeen]:
        """Read how the runs of a task are."""
        return sorted(map(_run, self._list("run", {"task_id": task_id})), key=lambda run: run.id)

    def results(self, task_id: int) -> dict[int, Any]:
        """Read the results of a task by run; a run without one is left out."""
        entries = self._list("result", {"task_id": task_id})
        return {entry["run"]["id"]: decoded(entry["result"]) for entry in entries if entry["result"]}

    def subtasks(self, task_id: int) -> list[int]:
        """List the tasks that the algorithms of a task created."""
        return sorted(int(task["id"]) for task in self._list("task", {"parent_id": task_id}))

    def kill(self, task_id: int) -> None:
        """End a task, its subtasks included."""
        self._ask("POST", "kill/task", body={"id": task_id})

    # --- calls --------------------------------------------------------------------------------------------------

    def _list(self, path: str, query: Mapping[str, int]) -> list[Any]:
        found: list[Any] = []
        page = 1
        while True:
            reply = self._ask("GET", path, query={**query, "page": page, "per_page": _PAGE})
            entries = _object(reply)["data"]
            found += entries
            if len(entries) < _PAGE:
                return found
            page += 1

    def _ask(
        self, method: str, path: str, *, query: Mapping[str, int] | None = None, body: Any = None
    ) -> Reply:
        reply = self._send(method, path, query or {}, body)
        if reply.status == _UNAUTHORIZED:
            # the token has grown old
            self._token = None
            reply = self._send(method, path, query or {}, body)
        return reply

    def _send(self, method: str, path: str, query: Mapping[str, int], body: Any) -> Reply:
        if self._token is None:
            self._token = self._log_in()
        content = None if body is None else json.dumps(body).encode()
        return self.exchange.send(
            Call(method=method, path=path, query=dict(query), token=self._token, body=content)
        )

    def _log_in(self) -> Secret:
        body = json.dumps({"username": self.username, "password": self.password.reveal()}).encode()
        reply = self.exchange.send(Call(method="POST", path="token/user", body=body))
        if reply.status >= _REFUSED:
            raise AccessDenied(
                f"The server does not let {self.username} in: {reply.message or reply.excerpt()}"
            )
        return Secret(str(_object(reply)["access_token"]))


def _object(reply: Reply) -> dict[str, Any]:
    content = reply.json()
    if reply.status >= _REFUSED or not isinstance(content, dict):
        raise ServerUnreachable(f"{reply.call}: the server answers {reply.status}: {reply.excerpt()}")
    return content


def _run(entry: Mapping[str, Any]) -> RunSeen:
    return RunSeen(
        id=int(entry["id"]),
        task_id=int(entry["task"]["id"]),
        organization_id=int(entry["organization"]["id"]),
        status=str(entry["status"]),
        log=str(entry["log"] or ""),
        is_over=entry["finished_at"] is not None,
    )


def decoded(result: str) -> Any:
    """Give a result as a value if it is JSON, as text if it is text, as it travelled otherwise."""
    try:
        text = base64.b64decode(result, validate=True).decode()
    except (binascii.Error, ValueError):
        return result
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
