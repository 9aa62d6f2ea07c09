"""The SQLite journal of runs: what was decided, promised and said.

One connection, written by the control thread alone; readers (`node-agent runs`) open their own, read-only. Inserting a
run twice is a no-op, an update is guarded by the state it starts from, and a run and its transition are one transaction.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from node_agent.domain.lifecycle import code_of, status_of
from node_agent.domain.run import BlobId, ContainerId, Outcome, Run, RunId, State, Status
from node_agent.domain.task import DatabaseRequest, JobId, OrganizationId, Task, TaskId
from node_agent.errors import ConfigError, DiskFull, IllegalTransition
from node_agent.store.schema import migrate

FILE_NAME = "journal.sqlite"

_COLUMNS = (
    "run_id",
    "task_id",
    "job_id",
    "image",
    "task",
    "received_at",
    "state",
    "ending",
    "outcome",
    "reason",
    "fault",
    "input_blob",
    "result_blob",
    "announced",
    "claimed_at",
    "digest",
    "image_id",
    "container",
    "token_hash",
    "started_at",
    "exit_code",
    "out_of_memory",
    "has_subtasks",
    "finished_at",
)
_INSERT = (
    f"INSERT OR IGNORE INTO run ({', '.join(_COLUMNS)}) "  # noqa: S608 - column names are ours
    f"VALUES ({', '.join(':' + column for column in _COLUMNS)})"
)
_UPDATE = (
    f"UPDATE run SET {', '.join(f'{column} = :{column}' for column in _COLUMNS[5:])} "  # noqa: S608 - same
    "WHERE run_id = :run_id AND state = :old_state"
)
_RENEW = (
    f"UPDATE run SET {', '.join(f'{column} = :{column}' for column in _COLUMNS[1:])} "  # noqa: S608 - same
    "WHERE run_id = :run_id AND state = 9"
)


class SqliteJournal:
    """The journal of one agent."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        with _journal_errors(self._path):
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        self._path.chmod(0o600)

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        # The version first: a file that is not for us is not touched.
        migrate(self._connection, self._path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def load(self) -> list[Run]:
        """Give every run that is not REMOVED, oldest first."""
        with _journal_errors(self._path):
            rows = self._connection.execute("SELECT * FROM run WHERE state < 9 ORDER BY run_id")
            return [_to_run(row) for row in rows]

    def knows(self, run_id: RunId) -> bool:
        """Tell whether the run was ever received."""
        with _journal_errors(self._path):
            row = self._connection.execute("SELECT 1 FROM run WHERE run_id = ?", (run_id,)).fetchone()
            return row is not None

    def insert(self, run: Run) -> bool:
        """Record a new run; False when the id is known already."""
        with _journal_errors(self._path):
            return self._connection.execute(_INSERT, _to_row(run)).rowcount == 1

    def renew(self, run: Run, *, at: float) -> None:
        """Record a new run under the id of one that is over."""
        with self._transaction():
            changed = self._connection.execute(_RENEW, _to_row(run))
            if changed.rowcount != 1:
                raise IllegalTransition(f"Run {run.id} is not over in the journal.")
            self._note(run.id, State.REMOVED, run.state, at=at)

    def update(self, before: Run, after: Run, *, at: float) -> None:
        """Record that *before* became *after*."""
        with self._transaction():
            changed = self._connection.execute(_UPDATE, {**_to_row(after), "old_state": before.state})
            if changed.rowcount != 1:
                raise IllegalTransition(f"Run {before.id} is not in {before.state.name} in the journal.")
            if after.state is not before.state:
                self._note(after.id, before.state, after.state, at=at)

    def _note(self, run_id: RunId, before: State, after: State, *, at: float) -> None:
        self._connection.execute(
            "INSERT INTO transition (run_id, at, from_state, to_state) VALUES (?, ?, ?, ?)",
            (run_id, at, before, after),
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _journal_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def read_history(state_dir: Path, limit: int) -> list[dict[str, Any]]:
    """Read the newest *limit* runs, while an agent may be writing: one dictionary a run, times in epoch seconds."""
    path = state_dir / FILE_NAME
    if not path.exists():
        return []
    with _journal_errors(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            rows = connection.execute("SELECT * FROM run ORDER BY run_id DESC LIMIT ?", (limit,))
            return [_to_summary(_to_run(row)) for row in rows]
        finally:
            connection.close()


@contextmanager
def _journal_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise DiskFull(f"The journal {path} cannot be written: {error}.") from error
        raise ConfigError(
            f"The journal {path} cannot be used: {error}.", hint="Check its owner and its mode."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"The journal {path} is damaged: {error}.",
            hint="Move it aside to start with an empty one; open runs are then fetched from the server again.",
        ) from error


def _to_summary(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "task_id": run.task.id,
        "job_id": run.task.job_id,
        "parent_id": run.task.parent_id,
        "organization_id": run.task.init_org_id,
        "user_id": run.task.init_user_id,
        "databases": list(dict.fromkeys(request.label for request in run.task.databases)),
        "image": run.task.image,
        "digest": run.digest,
        "state": run.state.name.lower(),
        "status": str(status_of(run)),
        "status_code": code_of(run),
        "outcome": run.outcome,
        "reason": run.reason,
        "exit_code": run.exit_code,
        "received_at": run.received_at,
        "claimed_at": run.claimed_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
    }


def _to_row(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "task_id": run.task.id,
        "job_id": run.task.job_id,
        "parent_id": run.task.parent_id,
        "organization_id": run.task.init_org_id,
        "user_id": run.task.init_user_id,
        "databases": list(dict.fromkeys(request.label for request in run.task.databases)),
        "image": run.task.image,
        "task": json.dumps(asdict(run.task)),
        "received_at": run.received_at,
        "state": int(run.state),
        "ending": run.ending,
        "outcome": run.outcome,
        "reason": _storable(run.reason),
        "fault": _storable(run.fault),
        "input_blob": run.input_blob,
        "result_blob": run.result_blob,
        "announced": run.announced,
        "claimed_at": run.claimed_at,
        "digest": run.digest,
        "image_id": run.image_id,
        "container": run.container,
        "token_hash": run.token_hash,
        "started_at": run.started_at,
        "exit_code": run.exit_code,
        "out_of_memory": run.out_of_memory,
        "has_subtasks": run.has_subtasks,
        "finished_at": run.finished_at,
    }


def _storable(text: str) -> str:
    """Replace what UTF-8 cannot hold: a text may quote what somebody else sent."""
    return text.encode(errors="replace").decode()


def _to_run(row: sqlite3.Row) -> Run:
    return Run(
        id=RunId(row["run_id"]),
        task=_to_task(json.loads(row["task"])),
        received_at=row["received_at"],
        state=State(row["state"]),
        ending=Outcome(row["ending"]) if row["ending"] else None,
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        reason=row["reason"],
        fault=row["fault"],
        input_blob=_blob(row, "input_blob"),
        result_blob=_blob(row, "result_blob"),
        announced=Status(row["announced"]),
        claimed_at=row["claimed_at"],
        digest=row["digest"],
        image_id=row["image_id"],
        container=ContainerId(row["container"]) if row["container"] else None,
        token_hash=row["token_hash"],
        started_at=row["started_at"],
        exit_code=row["exit_code"],
        out_of_memory=bool(row["out_of_memory"]),
        has_subtasks=bool(row["has_subtasks"]),
        finished_at=row["finished_at"],
    )


def _blob(row: sqlite3.Row, column: str) -> BlobId | None:
    # who only reads may meet a journal that no agent of this version has opened yet
    found = row[column] if column in row.keys() else None  # noqa: SIM118 - iterating a row gives its values
    return None if found is None else BlobId(found)


def _to_task(stored: dict[str, Any]) -> Task:
    return Task(
        id=TaskId(stored["id"]),
        job_id=JobId(stored["job_id"]),
        image=stored["image"],
        collaboration_id=stored["collaboration_id"],
        parent_id=stored["parent_id"],
        init_org_id=OrganizationId(stored["init_org_id"]) if stored["init_org_id"] is not None else None,
        init_user_id=stored["init_user_id"],
        init_user_name=stored.get("init_user_name"),
        study_id=stored["study_id"],
        store_id=stored["store_id"],
        databases=tuple(
            DatabaseRequest(**{**request, "preprocessing": tuple(request["preprocessing"])})
            for request in stored["databases"]
        ),
    )
