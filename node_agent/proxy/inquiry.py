"""What a call asks about, read from its path and query, before anything is forwarded.

Owns which filters an algorithm may use. A list is passed on only for one task or one job, and its query is written anew
from what was read, so that the server cannot read it differently. Knows what the run is, and asks nobody.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from node_agent.domain.run import Run, RunId
from node_agent.domain.task import JobId, TaskId
from node_agent.proxy.routes import About, Route

MAX_QUERY = 4096
_MAX_FIELDS = 50

_QUERY = re.compile(r"[!-~]*")
_NUMBER = re.compile(r"[0-9]{1,18}")
_PAGING = frozenset({"page", "per_page", "include", "sort"})
_FILTERS: Mapping[About, frozenset[str]] = {
    About.ROWS: _PAGING | {"task_id", "state"},
    About.TASKS: _PAGING | {"parent_id", "job_id", "status"},
}


class AccessRefused(Exception):
    """The call asks for what this run may not know; the text is for the algorithm."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Caller:
    """The run that makes a call, and what its rights depend on."""

    run: RunId
    task: TaskId
    job: JobId
    collaboration: int
    user: int | None

    @classmethod
    def of(cls, run: Run) -> "Caller":
        """Return the caller that a run is."""
        task = run.task
        return cls(run.id, task.id, task.job_id, task.collaboration_id, task.init_user_id)

    @property
    def researcher(self) -> str:
        """Return who the run works for; runs of nobody known each stand for themselves."""
        return f"run {self.run}" if self.user is None else f"user {self.user}"


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A call that may be made, if the run has a right to the task."""

    query: str
    """As it is passed on."""
    task: TaskId | None = None
    """The task that is asked about; None when it is not known before the answer, or does not matter."""


def inquiry_of(route: Route, query: str, caller: Caller) -> Inquiry:
    """Read a call. Raises AccessRefused."""
    check_form(query)
    if route.about is About.TASK:
        return Inquiry(query, TaskId(route.number))
    if route.about in _FILTERS:
        return _list_inquiry(route, _fields(query), caller)
    if route.about is About.COLLABORATION:
        _check_collaboration(str(route.number), caller)
    if route.about is About.MEMBERS:
        for name, value in _fields(query):
            if name == "collaboration_id":
                _check_collaboration(value, caller)
    return Inquiry(query)


def check_form(query: str) -> None:
    """Refuse a query that is too long or malformed. Raises AccessRefused."""
    if len(query) > MAX_QUERY:
        raise AccessRefused(414, f"The query is longer than {MAX_QUERY} characters.")
    if not _QUERY.fullmatch(query):
        raise AccessRefused(400, "The query holds characters that must be written as %XX.")


def _fields(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise AccessRefused(400, f"The query has more than {_MAX_FIELDS} fields.") from error


def _list_inquiry(route: Route, fields: Iterable[tuple[str, str]], caller: Caller) -> Inquiry:
    found: dict[str, str] = {}
    for name, value in fields:
        if name not in _FILTERS[route.about]:
            raise AccessRefused(400, f"Algorithms cannot filter `{route.template}` by `{name[:40]}`.")
        if name in found:
            raise AccessRefused(400, f"The query names `{name}` twice.")
        found[name] = value
    if route.about is About.ROWS:
        task = _number(found, "task_id", otherwise="No task id found in request from algorithm.")
    else:
        task = _task_of_family(found, caller)
    return Inquiry(urlencode(found), TaskId(task))


def _task_of_family(found: Mapping[str, str], caller: Caller) -> int:
    """Return the task below which tasks are listed; those of its own job are below a run's own task, or beside it."""
    if "job_id" in found:
        job = _number(found, "job_id")
        if job != caller.job:
            raise AccessRefused(
                403, f"This run may not list the tasks of job {job}: it belongs to another one."
            )
        if "parent_id" not in found:
            return caller.task
    return _number(
        found,
        "parent_id",
        otherwise="Algorithms can list the subtasks of a task only, or the tasks of their own job.",
    )


def _number(found: Mapping[str, str], name: str, *, otherwise: str = "") -> int:
    text = found.get(name, "")
    if _NUMBER.fullmatch(text):
        return int(text)
    problem = f"`{name}` is not a number." if text else otherwise
    raise AccessRefused(400, f"{problem} Add `{name}` to the query.".strip())


def _check_collaboration(text: str, caller: Caller) -> None:
    if not _NUMBER.fullmatch(text) or int(text) != caller.collaboration:
        raise AccessRefused(403, "This run may ask about its own collaboration only.")
