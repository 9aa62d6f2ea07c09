"""What a run may know: its own task, the tasks of its own job, and the results of the subtasks it made.

Owns the relation between a run and a task. It is known from the subtasks that were created through this proxy, or asked
of the server once and remembered; after a restart of the agent the server is asked again. What the server says is
parsed within bounds, and an answer that names other tasks than the one asked about is not handed on.

This keeps algorithms apart from one another. It does not protect against a server that lies about which task is whose.
"""

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import Enum, auto
from itertools import count
from typing import Generic, TypeVar

from node_agent.domain.ports import ProxiedRequest, ProxiedResponse
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import TaskId
from node_agent.proxy.inquiry import AccessRefused, Caller
from node_agent.proxy.routes import About

MAX_ANSWER = 1 << 20
"""Bytes of a task, or of a page of results that lie in the blob store, as the server shows it."""
SEARCH_CALLS = 100
SEARCH_SECONDS = 30.0
"""Between two searches for the blobs of one run."""
REMEMBERED_RUNS = 1024
REMEMBERED_EACH = 4096
"""Tasks and blobs remembered for one run; those forgotten are asked for again."""

_OK, _BAD_GATEWAY = 200, 502
_REFUSALS = range(400, 600)
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")

Forward = Callable[[ProxiedRequest], AbstractContextManager[ProxiedResponse]]
Value = TypeVar("Value")


class Relation(Enum):
    """What a task is to a run."""

    OWN = auto()
    SUBTASK = auto()
    """Made by the task of the run; its results are sealed for this node."""
    JOB = auto()
    """Of the same job."""
    FOREIGN = auto()


class Rights:
    """Decides what each run may know; may be asked from any thread."""

    def __init__(self, forward: Forward, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._forward = forward
        self._monotonic = monotonic
        self._searches: _Memory[str, float] = _Memory()
        self._tasks: _Memory[TaskId, Relation] = _Memory()
        self._blobs: _Memory[str, bool] = _Memory()

    def check_task(self, caller: Caller, token: Secret, task: TaskId) -> Relation:
        """Return what the task is to the run. Raises AccessRefused when it is nothing, ServerUnreachable."""
        if task == caller.task:
            return Relation.OWN
        known = self._tasks.get(caller.run, task)
        if known is None:
            known = relation_of(caller, task, self._asked(token, task))
            self._tasks.put(caller.run, task, known)
        if known is Relation.FOREIGN:
            raise AccessRefused(
                403,
                f"This run may not ask about task {task}: it is neither its own task nor one of the same job.",
            )
        return known

    def note_subtask(self, caller: Caller, answer: object) -> None:
        """Remember the subtask that the server has just created for a run."""
        number = _number(answer)
        if number is not None:
            self._tasks.put(caller.run, TaskId(number), Relation.SUBTASK)

    def check_row(self, caller: Caller, token: Secret, row: object) -> Relation:
        """Return what the task of a run or a result is to the caller. Raises AccessRefused, ServerUnreachable."""
        number = _number(row.get("task")) if isinstance(row, dict) else None
        if number is None:
            raise AccessRefused(_BAD_GATEWAY, "The server's answer does not say which task it belongs to.")
        return self.check_task(caller, token, TaskId(number))

    def note_blobs(self, caller: Caller, answer: object) -> None:
        """Remember which blobs hold the results of a run's subtasks; *answer* is one result or a page of them."""
        for row in rows_of(answer):
            name = row.get("result")
            if isinstance(name, str) and _UUID.fullmatch(name):
                self._blobs.put(caller.run, name.lower(), value=True)

    def check_blob(self, caller: Caller, token: Secret, name: str) -> None:
        """Refuse a blob that does not hold the result of one of the run's subtasks. Raises AccessRefused.

        One that is not known is looked for at the server: what was listed before a restart of the agent is forgotten.
        """
        key = name.lower()
        if not self._blobs.get(caller.run, key) and self._may_search(caller):
            self._search_blobs(caller, token)
        if not self._blobs.get(caller.run, key):
            raise AccessRefused(
                403,
                "This run may only read blobs that hold results of its own subtasks. Ask for the results first.",
            )

    def _may_search(self, caller: Caller) -> bool:
        now = self._monotonic()
        may = now >= (self._searches.get(caller.run, "next") or 0.0)
        if may:
            self._searches.put(caller.run, "next", now + SEARCH_SECONDS)
        return may

    def _search_blobs(self, caller: Caller, token: Secret) -> None:
        calls = iter(range(SEARCH_CALLS))
        for row in self._pages(token, "task", f"parent_id={caller.task}", calls):
            task = _number(row)
            if task is None or relation_of(caller, TaskId(task), row) is not Relation.SUBTASK:
                continue
            for result in self._pages(token, "result", f"task_id={task}", calls):
                if _number(result.get("task")) == task:
                    self.note_blobs(caller, result)

    def _pages(
        self, token: Secret, path: str, query: str, calls: Iterator[int]
    ) -> Iterator[Mapping[str, object]]:
        """Iterate over the rows of a list, as long as there are *calls* left."""
        for page, _ in zip(count(1), calls, strict=False):
            status, answer = self._get(token, path, f"{query}&page={page}")
            if status != _OK or not isinstance(answer, dict):
                return
            yield from rows_of(answer)
            links = answer.get("links")
            if not isinstance(links, dict) or not links.get("next"):
                return

    def _asked(self, token: Secret, task: TaskId) -> object:
        status, found = self._get(token, f"task/{task}")
        if status != _OK:
            text = _message_of(found) or f"The server does not show task {task}."
            raise AccessRefused(status if status in _REFUSALS else _BAD_GATEWAY, text)
        return found

    def _get(self, token: Secret, path: str, query: str = "") -> tuple[int, object]:
        call = ProxiedRequest(method="GET", path=path, query=query, token=token)
        with self._forward(call) as answer:
            content = bytearray()
            for piece in answer.body:
                content += piece
                if len(content) > MAX_ANSWER:
                    raise AccessRefused(_BAD_GATEWAY, "The server's answer about the task is too large.")
            return answer.status, _parsed(bytes(content))


def relation_of(caller: Caller, task: TaskId, answer: object) -> Relation:
    """Judge what the server says about a task."""
    if not isinstance(answer, dict) or _number(answer) != task:
        return Relation.FOREIGN
    same_job = answer.get("job_id") == caller.job
    same_collaboration = _number(answer.get("collaboration")) == caller.collaboration
    # the server gives the number of a deleted job to the next one
    same_user = _number(answer.get("init_user")) == caller.user
    if not (same_job and same_collaboration and same_user):
        return Relation.FOREIGN
    return Relation.SUBTASK if _number(answer.get("parent")) == caller.task else Relation.JOB


def check_rows(about: About, caller: Caller, task: TaskId, answer: object) -> None:
    """Refuse a list that holds more than was asked for. Raises AccessRefused."""
    for row in rows_of(answer):
        # a row of runs or results need not name its task
        of_job, of_task = row.get("job_id") == caller.job, _number(row.get("task")) in {task, None}
        if not (of_job if about is About.TASKS else of_task):
            raise AccessRefused(_BAD_GATEWAY, "The server's answer holds what belongs to another task.")


def rows_of(answer: object) -> Iterator[Mapping[str, object]]:
    """Iterate over the rows of a page, or the one row that the answer is."""
    page = answer.get("data") if isinstance(answer, dict) else answer
    for row in page if isinstance(page, list) else [answer]:
        if isinstance(row, dict):
            yield row


def _number(value: object) -> int | None:
    """Return the number of something the server names, by number or as a link."""
    number = value.get("id") if isinstance(value, dict) else value
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _parsed(content: bytes) -> object:
    try:
        found: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found


def _message_of(answer: object) -> str:
    text = answer.get("msg") if isinstance(answer, dict) else None
    return text[:500] if isinstance(text, str) else ""


Key = TypeVar("Key")


class _Memory(Generic[Key, Value]):
    """Values by run and key; the oldest are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[RunId, OrderedDict[Key, Value]] = OrderedDict()

    def get(self, run: RunId, key: Key) -> Value | None:
        """Return the value; None when it is not remembered."""
        with self._lock:
            known = self._runs.get(run)
            return None if known is None else known.get(key)

    def put(self, run: RunId, key: Key, value: Value) -> None:
        """Remember a value."""
        with self._lock:
            known = self._runs.setdefault(run, OrderedDict())
            self._runs.move_to_end(run)
            known.pop(key, None)
            known[key] = value
            if len(known) > REMEMBERED_EACH:
                known.popitem(last=False)
            if len(self._runs) > REMEMBERED_RUNS:
                self._runs.popitem(last=False)
