"""Sends one task to a sandbox, follows it to its end, and gathers what came of it.

Owns when a task is over. Must not know how anything is shown.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from node_agent.domain.run import Status
from node_agent.errors import ConfigError
from node_agent.sandbox.connection import Connection, read_connection
from node_agent.sandbox.place import Place
from node_agent.sandbox.reasons import reason_of
from node_agent.sandbox.researcher import Order, Researcher, RunSeen
from node_agent.sandbox.watching import RunView, Watch

_LOOK_SECONDS: Final = 0.25
_KILL_SECONDS: Final = 10.0
_REMOVE_SECONDS: Final = 3.0

Show = Callable[[Sequence[RunView]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """How one run ended, for its author."""

    organization: str
    run_id: int
    task_id: int
    status: str
    code: int | None
    result: Any
    log: str
    reason: str
    """Why it did not complete, in plain words; empty when it did."""

    @property
    def is_completed(self) -> bool:
        """Tell whether all went well."""
        return self.status == Status.COMPLETED

    def as_dict(self) -> dict[str, Any]:
        """Give it for another program."""
        names = ("organization", "run_id", "task_id", "status", "code", "result", "log", "reason")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What came of a task."""

    task_id: int
    seconds: float
    runs: tuple[EndedRun, ...]
    subtasks: tuple[EndedRun, ...]

    @property
    def is_completed(self) -> bool:
        """Tell whether every run of the task completed; how its subtasks ended is the algorithm's own affair."""
        return bool(self.runs) and all(run.is_completed for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Give it for another program."""
        return {
            "task_id": self.task_id,
            "completed": self.is_completed,
            "seconds": round(self.seconds, 1),
            "runs": [run.as_dict() for run in self.runs],
            "subtasks": [run.as_dict() for run in self.subtasks],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A sandbox that is up, as whoever sends a task sees it."""

    place: Place
    connection: Connection
    researcher: Researcher
    watch: Watch
    pause: Callable[[float], None] = time.sleep

    @classmethod
    def at(cls, place: Place) -> "Network":
        """Find the sandbox of a place. Raises ConfigError when it is not running."""
        connection = read_connection(place.connection)
        if connection is None or not place.server.is_running:
            raise ConfigError(
                f"The sandbox '{place.name}' is not running.",
                hint=f"Take it down and bring it up again: node-agent sandbox down --name {place.name}",
            )
        user = connection.researcher
        return cls(
            place=place,
            connection=connection,
            researcher=Researcher.at(connection.url, username=user.username, password=user.password),
            watch=Watch.of({name: node.log for name, node in place.nodes.items()}),
        )

    def numbers_of(self, organizations: Sequence[str]) -> tuple[int, ...]:
        """Give the ids of organizations, or of all when none is named. Raises ConfigError."""
        unknown = [name for name in organizations if self.connection.member(name) is None]
        if unknown:
            there = ", ".join(member.name for member in self.connection.members)
            raise ConfigError(
                f"The sandbox '{self.place.name}' has no organization {', '.join(unknown)}.",
                hint=f"It has: {there}.",
            )
        return tuple(
            member.id
            for member in self.connection.members
            if not organizations or member.name in organizations
        )

    def refuse_dead_nodes(self, numbers: Sequence[int]) -> None:
        """Raise ConfigError when a node that is to work is not running: its run would wait for ever."""
        names = [self.connection.organization(number) for number in numbers]
        dead = [name for name in names if not self.place.nodes[name].is_running]
        if dead:
            raise ConfigError(
                f"The node of {', '.join(dead)} is not running; its log: {self.place.nodes[dead[0]].log}",
                hint="Take the sandbox down and bring it up again.",
            )


def follow(network: Network, order: Order, *, show: Show) -> Ended:
    """Send a task and show how far its runs are until all have ended; Ctrl-C kills it."""
    network.refuse_dead_nodes(order.organizations)
    network.watch.look()
    started = time.monotonic()
    task_id = network.researcher.send(order)
    try:
        seen = _until_over(network, task_id, order, show)
    except BaseException:
        _kill(network, task_id, show)
        raise
    return _ended(network, order, seen, seconds=time.monotonic() - started)


def _until_over(network: Network, task_id: int, order: Order, show: Show) -> list[RunSeen]:
    while True:
        network.watch.look()
        views = network.watch.runs_of(task_id)
        show(views)
        if _may_be_over(views, task_id, len(order.organizations)):
            seen = network.researcher.runs(task_id)
            if all(run.is_over for run in seen):
                _until_removed(network, task_id, show, patience=_REMOVE_SECONDS)
                return seen
        network.refuse_dead_nodes(order.organizations)
        network.pause(_LOOK_SECONDS)


def _may_be_over(views: Sequence[RunView], task_id: int, expected: int) -> bool:
    own = [run for run in views if run.task_id == task_id]
    # a run may be ended at the server before its node heard of it: by a failed sibling, for instance
    return len(own) < expected or any(run.is_over for run in own)


def _kill(network: Network, task_id: int, show: Show) -> None:
    network.researcher.kill(task_id)
    _until_removed(network, task_id, show, patience=_KILL_SECONDS)


def _until_removed(network: Network, task_id: int, show: Show, *, patience: float) -> None:
    """Give the nodes a moment to clean up; what they did not manage by then, they do later."""
    deadline = time.monotonic() + patience
    while True:
        network.watch.look()
        views = network.watch.runs_of(task_id)
        show(views)
        if not _still_cleaning(network, views) or time.monotonic() > deadline:
            return
        network.pause(_LOOK_SECONDS)


def _still_cleaning(network: Network, views: Sequence[RunView]) -> bool:
    busy = {run.organization for run in views if run.state != "removed"}
    return any(network.place.nodes[name].is_running for name in busy)


def _ended(network: Network, order: Order, seen: Sequence[RunSeen], *, seconds: float) -> Ended:
    task_id = seen[0].task_id
    family = [run for child in network.researcher.subtasks(task_id) for run in network.researcher.runs(child)]
    network.watch.look()
    codes = {view.run_id: view.code for view in network.watch.runs_of(task_id)}
    results = network.researcher.results(task_id)

    def gathered(run: RunSeen) -> EndedRun:
        return EndedRun(
            organization=network.connection.organization(run.organization_id),
            run_id=run.id,
            task_id=run.task_id,
            status=run.status,
            code=codes.get(run.id),
            result=results.get(run.id),
            log=run.log,
            reason=reason_of(run.status, run.log, image=order.image, method=order.method),
        )

    return Ended(
        task_id=task_id,
        seconds=seconds,
        runs=tuple(map(gathered, seen)),
        # what a subtask was asked is known to the algorithm alone
        subtasks=tuple(replace(gathered(run), result=None) for run in family),
    )
