"""How far the runs of a node are, read from the node's own log while it grows.

Owns the words for what a run is doing now. Must not know servers, or how anything is shown.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

_LONGEST_READ: Final = 1 << 20

NOW: Final[Mapping[str, str]] = {
    "received": "waits for a slot",
    "admitted": "getting the image",
    "pulled": "creating the container",
    "created": "starting the container",
    "running": "the container is working",
    "captured": "reading the result",
    "finished": "reporting",
    "reported": "cleaning up",
    "removed": "done, nothing left behind",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run as its node tells it."""

    organization: str
    run_id: int
    task_id: int
    parent_id: int | None
    state: str = "received"
    status: str = "pending"
    code: int = 1
    now: str = NOW["received"]
    was_started: bool = False

    @property
    def is_subtask(self) -> bool:
        """Tell whether an algorithm asked for it."""
        return self.parent_id is not None

    @property
    def is_over(self) -> bool:
        """Tell whether the server has its end."""
        return self.state in {"reported", "removed"}


@dataclass(slots=True)
class NodeLog:
    """One node's log; every `read` takes in what is new in it."""

    organization: str
    file: Path
    runs: dict[int, RunView] = field(default_factory=dict)
    _connected: bool = False
    _ready: bool = False
    _offset: int = 0

    @property
    def is_online(self) -> bool:
        """Tell whether the node is connected and its machine is proven: only then it works."""
        return self._connected and self._ready

    def read(self) -> None:
        """Take in the lines written since the last time."""
        for line in self._new_lines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                self.take(said)

    def _new_lines(self) -> list[bytes]:
        try:
            with self.file.open("rb") as file:
                file.seek(self._offset)
                new = file.read(_LONGEST_READ)
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()

    def take(self, said: Mapping[str, Any]) -> None:
        """Take in one line."""
        event, run_id = said.get("event"), said.get("run_id")
        self._connected = _CONNECTED.get(event, self._connected)
        self._ready = self._ready or event == "agent_ready"
        if not isinstance(run_id, int):
            return
        if event == "run_received":
            self.runs[run_id] = RunView(
                organization=self.organization,
                run_id=run_id,
                task_id=said["task_id"],
                parent_id=said.get("parent_id"),
            )
        change = _CHANGES.get(str(event))
        if change is not None and run_id in self.runs:
            self.runs[run_id] = change(self.runs[run_id], said)


def _advanced(run: RunView, said: Mapping[str, Any]) -> RunView:
    state = said["to"]
    return replace(
        run,
        state=state,
        status=said["status"],
        code=said["status_code"],
        now=NOW.get(state, ""),
        was_started=run.was_started or state == "running",
    )


def _pulling(run: RunView, said: Mapping[str, Any]) -> RunView:
    return replace(run, now=f"pulling the image: {_megabytes(said['received'])} of {_megabytes(said['of'])}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


_CONNECTED: Final[Mapping[Any, bool]] = {"server_online": True, "server_offline": False}
_CHANGES: Final[Mapping[str, Callable[[RunView, Mapping[str, Any]], RunView]]] = {
    "run_advanced": _advanced,
    "image_pull_progress": _pulling,
    "slot_lent_to_subtasks": lambda run, _: replace(run, now="waiting for its subtasks"),
    "run_ending": lambda run, said: replace(run, now=f"ending: {said['outcome']}"),
}


@dataclass(frozen=True, slots=True)
class Watch:
    """The logs of all nodes of one network."""

    logs: tuple[NodeLog, ...]

    @classmethod
    def of(cls, files: Mapping[str, Path]) -> "Watch":
        """Watch these logs, by organization, from their beginning."""
        return cls(tuple(NodeLog(organization, file) for organization, file in files.items()))

    def look(self) -> None:
        """Take in what is new."""
        for log in self.logs:
            log.read()

    def runs_of(self, task_id: int) -> list[RunView]:
        """Give the runs of a task and of its subtasks, in the order they were made."""
        runs = [run for log in self.logs for run in log.runs.values()]
        family = _family(task_id, runs)
        return sorted((run for run in runs if run.task_id in family), key=lambda run: run.run_id)


def _family(task_id: int, runs: Iterable[RunView]) -> set[int]:
    family = {task_id}
    # a task is always younger than its parent
    for run in sorted(runs, key=lambda run: run.task_id):
        if run.parent_id in family:
            family.add(run.task_id)
    return family
