"""Whoever sends the tasks and sees their ends, without disturbing those who are measured.

Owns the researcher's login, the tasks, and the look into the server's own books. Must not know who runs what it sends.
"""

import base64
import contextlib
import json
import queue
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import requests
import socketio

from tests.bench.failures import BenchError
from tests.lab.vantage6 import RealServer

RUN_SECONDS = 90
# The server speaks of a change shortly before it stores it.
STORED_SECONDS = 0.01
LOOK_SECONDS = 0.25
BOOKS_SECONDS = 0.1
BOOKS_PATIENCE = 10
NODE_SECONDS = 90
NODE_LOOK_SECONDS = 0.02
NAMESPACE = "/tasks"
HTTP_SECONDS = 600


@dataclass(frozen=True)
class Job:
    """What is asked of an organization."""

    image: str
    method: str = "nothing"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    databases: Sequence[str] = ()

    @property
    def plain_input(self) -> bytes:
        """Return the input as the algorithm will read it."""
        return json.dumps({"method": self.method, "args": [], "kwargs": dict(self.arguments)}).encode()


@dataclass(frozen=True)
class Done:
    """A task of one run that ended well; moments in seconds since the epoch."""

    run_id: int
    task_id: int
    posted: float
    answered: float
    """When the server had taken the task."""
    seen: float
    """When the researcher had the end of it."""

    @property
    def seconds(self) -> float:
        """Return what the whole task took."""
        return self.seen - self.posted


Ended = Mapping[int, tuple[str, float | None]]
"""By run: its status at the server, and its end as its node told it."""


class Researcher:
    """Sends tasks and sees when the server has their end.

    It asks the server only when the server says that a run changed: asking all the time would keep its one thread busy
    with us, and slow down the calls of those who are measured. Of many runs at once it reads the end in the server's
    database, which costs the server nothing.
    """

    def __init__(self, server: RealServer, *, seal: Callable[[bytes], str] | None = None) -> None:
        self._server = server
        self._seal = seal or (lambda plain: base64.b64encode(plain).decode())
        self._changes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._session = requests.Session()
        user = server.organizations[0]
        login = {"username": user, "password": server.passwords[user]}
        self.token = self.asked("POST", "token/user", json=login)["access_token"]
        self._session.headers["Authorization"] = f"Bearer {self.token}"
        self._socket = self._listening(self.token)

    def close(self) -> None:
        """Leave the server."""
        self._socket.disconnect()
        self._session.close()

    # --- one task, watched ------------------------------------------------------------------------------------

    def whole_task(self, organization: str, job: Job, *, within: float = RUN_SECONDS) -> Done:
        """Send a task and wait until the server shows its run as completed."""
        while not self._changes.empty():
            self._changes.get()
        posted = time.time()
        task = self.post(organization, job)
        answered = time.time()
        self._await_change()
        (run,) = self.asked("GET", f"run?task_id={task}")["data"]
        while run["status"] != "completed":
            self._check(organization, run, late=time.time() - posted > within)
            self._await_change()
            run = self.asked("GET", f"run/{run['id']}")
        return Done(run["id"], task, posted, answered, time.time())

    def results(self, task: int) -> list[Any]:
        """Return what the runs of a task gave, decoded."""
        given = self.asked("GET", f"result?task_id={task}")["data"]
        return [json.loads(base64.b64decode(one["result"])) for one in given]

    def post(self, organization: str, job: Job) -> int:
        """Send a task and return its number."""
        body = {
            "image": job.image,
            "name": job.method,
            "collaboration_id": self._server.collaboration_id,
            "organizations": [
                {"id": self._server.organization_ids[organization], "input": self._seal(job.plain_input)}
            ],
            "databases": [{"label": label} for label in job.databases],
        }
        return int(self.asked("POST", "task", json=body)["id"])

    def _await_change(self) -> None:
        """Wait for the word that a run changed, or for a while: it comes shortly before the server stores the change."""
        with contextlib.suppress(queue.Empty):
            self._changes.get(timeout=LOOK_SECONDS)
        time.sleep(STORED_SECONDS)

    def _check(self, organization: str, run: Mapping[str, Any], *, late: bool) -> None:
        if run["finished_at"] or late:
            raise BenchError(f"{organization}: run {run['id']} is {run['status']!r}; its log: {run['log']}")

    def asked(self, method: str, path: str, **content: Any) -> Any:
        """Ask the server something as this user."""
        answer = self._session.request(method, f"{self._server.url}/{path}", timeout=HTTP_SECONDS, **content)
        if not answer.ok:
            raise BenchError(f"the server refuses {method} {path}: {answer.text[:500]}")
        return answer.json()

    def _listening(self, token: str) -> Any:
        client = socketio.Client()
        client.on("status_update", lambda seen: self._changes.put(seen["run_id"]), namespace=NAMESPACE)
        authorization = {"Authorization": f"Bearer {token}"}
        client.connect(self._server.root, headers=authorization, namespaces=[NAMESPACE])
        return client

    # --- nodes ------------------------------------------------------------------------------------------------

    def await_node(self, organization: str, *, online: bool, within: float = NODE_SECONDS) -> float:
        """Wait until the server shows an organization's node online, or not any more; return when it did."""
        deadline = time.time() + within
        while self._is_online(organization) is not online:
            if time.time() > deadline:
                raise BenchError(f"the server never showed the node of {organization} as expected")
            time.sleep(NODE_LOOK_SECONDS)
        return time.time()

    def _is_online(self, organization: str) -> bool:
        which = self._server.node_ids[organization]
        with self._books("ro") as books:
            row = books.execute("SELECT status FROM authenticatable WHERE id = ?", (which,)).fetchone()
        return bool(row == ("online",))

    # --- many tasks -------------------------------------------------------------------------------------------

    def post_many(self, organization: str, job: Job, count: int) -> range:
        """Send a task, put copies of it into the server's books, and return their numbers.

        Posting each would take the server minutes, in which nothing is measured. Nobody else may send tasks meanwhile.
        """
        first = self.post(organization, job)
        with self._books("rw") as books, books:
            _copy(books, "task", f"id = {first}", {"id", "job_id"}, count - 1)
            _copy(books, "run", f"task_id = {first}", {"id", "task_id"}, count - 1)
        return range(first, first + count)

    def await_all(self, tasks: Sequence[int], *, within: float) -> Ended:
        """Wait until all runs of these tasks have ended, and see to it that they ended well."""
        deadline = time.monotonic() + within
        while left := self._unfinished(found := self.ends(tasks)):
            if time.monotonic() > deadline:
                raise BenchError(f"{left} of {len(found)} runs have not ended within {within:.0f} s")
            time.sleep(BOOKS_SECONDS)
        wrong = sorted({status for status, _ in found.values()} - {"completed"})
        if wrong:
            raise BenchError(f"some of {len(found)} runs ended as {wrong}")
        return found

    @staticmethod
    def _unfinished(found: Ended) -> int:
        return sum(ended is None for _, ended in found.values())

    def ends(self, tasks: Sequence[int]) -> Ended:
        """Read in the server's books what became of the runs of these tasks, which were posted in one go."""
        query = "SELECT id, status, finished_at FROM run WHERE task_id BETWEEN ? AND ?"
        with self._books("ro") as books:
            rows = books.execute(query, (min(tasks), max(tasks))).fetchall()
        return {run: (status, _moment(ended)) for run, status, ended in rows}

    def _books(self, mode: str) -> contextlib.closing[sqlite3.Connection]:
        file = self._server.log.with_name("database.sqlite")
        return contextlib.closing(
            sqlite3.connect(f"file:{file}?mode={mode}", uri=True, timeout=BOOKS_PATIENCE)
        )


def _copy(books: sqlite3.Connection, table: str, which: str, numbered: Collection[str], count: int) -> None:
    """Write *count* copies of a row; what is *numbered* counts on from it."""
    columns = [row[1] for row in books.execute(f"PRAGMA table_info({table})")]
    copied = ", ".join(f"{column} + n" if column in numbered else column for column in columns)
    numbers = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number LIMIT ?)"
    books.execute(
        f"{numbers} INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 - our own words
        f"SELECT {copied} FROM {table}, number WHERE {which}",
        (count,),
    )


def _moment(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
