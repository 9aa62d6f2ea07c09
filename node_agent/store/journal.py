"""The SQLite journal of runs: what was decided, promised and said.

One connection, written by the control thread alone; readers (`node-agent runs`) open their own, read-only. Inserting a
run twice is a no-op, an update is guarded by the state it starts from, and a run and its transition are one transaction.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from node_agent.domain.jobstatus import number_of
from node_agent.domain.keeping import PulledImage
from node_agent.domain.lifecycle import status_of
from node_agent.domain.mark import Mark
from node_agent.domain.run import BlobId, ContainerId, Outcome, Run, RunId, State, Status
from node_agent.domain.task import DatabaseRequest, JobId, OrganizationId, Task, TaskId
from node_agent.errors import IllegalTransition
from node_agent.store import pruning
from node_agent.store.disk import disk_errors, sync_folder
from node_agent.store.schema import migrate
from node_agent.store.soundness import journal_errors, look_at, opening_errors, read_only

FILE_NAME = "journal.sqlite"
SIGN_OF_USE = "runs"
"""A folder that is made once there was a journal: an empty one beside it has lost its content."""
_PATIENCE_MS = 1000  # the control loop waits for whoever locks the journal, and then tries again later
_IMAGE_IN_USE: Final = frozenset({State.PULLED, State.REMOVED})
"""Reaching these states counts as a use of the run's image: its beginning and its end."""

Answer = TypeVar("Answer")

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
    "refusal",
    "entered",
    "input_digest",
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
        with opening_errors(self._path):
            look_at(self._path, used=(state_dir / SIGN_OF_USE).exists())
            _ensure_file(self._path)
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
                self._path.chmod(0o600)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        # The version first: a file that is not for us is not touched.
        migrate(self._connection, self._path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")

    def load(self) -> list[Run]:
        """Give every run that is not REMOVED, oldest first."""
        with journal_errors(self._path):
            return _open_runs(self._connection)

    def knows(self, run_id: RunId) -> bool:
        """Tell whether the run was ever received."""
        with journal_errors(self._path):
            row = self._connection.execute("SELECT 1 FROM run WHERE run_id = ?", (run_id,)).fetchone()
            return row is not None

    def insert(self, run: Run) -> bool:
        """Record a new run; False when the id is known already."""
        with journal_errors(self._path):
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
            if after.state is not before.state and after.state in _IMAGE_IN_USE:
                self._connection.execute(pruning.USE_IMAGE, {"at": at, "image_id": after.image_id})

    def prune(self, *, before: float, spare: Collection[RunId]) -> int:
        """Forget the oldest runs that were over before that time, a bounded number at once, and say how many."""
        with self._transaction():
            pruned = pruning.delete_old_runs(self._connection, before=before, spare=spare)
        if pruned:
            with journal_errors(self._path):
                pruning.free_pages(self._connection)
        return pruned

    def note_image(self, image: PulledImage) -> None:
        """Record that this agent pulled an image that was not on this machine before."""
        with self._transaction():
            pruning.note_image(self._connection, image)

    def forget_images(self, image_ids: Iterable[str]) -> None:
        """Forget that this agent pulled these images."""
        with self._transaction():
            pruning.forget_images(self._connection, image_ids)

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
        with journal_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def read_open_runs(state_dir: Path) -> list[Run]:
    """Read every run that is not REMOVED, while an agent may be writing."""
    return read(state_dir, _open_runs, nothing=[])


def _open_runs(connection: sqlite3.Connection) -> list[Run]:
    return [_to_run(row) for row in connection.execute("SELECT * FROM run WHERE state < 9 ORDER BY run_id")]


def read_images(state_dir: Path) -> list[PulledImage]:
    """Read which images this agent pulled, while an agent may be writing."""
    return read(state_dir, pruning.images_in, nothing=[])


def count_old_runs(state_dir: Path, *, before: float) -> int:
    """Count the runs that were over before that time, while an agent may be writing."""
    return read(state_dir, partial(pruning.old_runs_in, before=before), nothing=0)


def read(state_dir: Path, question: Callable[[sqlite3.Connection], Answer], *, nothing: Answer) -> Answer:
    """Ask the journal a question, while an agent may be writing; *nothing* is the answer when there is no journal."""
    path = state_dir / FILE_NAME
    if not path.exists():
        return nothing
    with journal_errors(path), closing(read_only(path)) as connection:
        connection.row_factory = sqlite3.Row
        return question(connection)


def _ensure_file(path: Path) -> None:
    """Make a new journal under another name first: one that is there but empty must mean that its content was lost."""
    if path.exists():
        return
    _leave_behind(path)
    fresh = path.with_name(f".{path.name}.new")
    with disk_errors():
        fresh.unlink(missing_ok=True)
    with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
        migrate(connection, path)
    with disk_errors():
        fresh.chmod(0o600)
        fresh.replace(path)
        sync_folder(path.parent)


def _leave_behind(path: Path) -> None:
    """Rename what is left of a journal that was moved away: SQLite would write its last changes into the new one."""
    with disk_errors():
        for ending in ("-wal", "-shm"):
            left = path.with_name(path.name + ending)
            if left.exists():
                left.replace(left.with_name(f"{left.name}.old"))


def read_history(state_dir: Path, limit: int) -> list[dict[str, Any]]:
    """Read the newest *limit* runs, while an agent may be writing: one dictionary a run, times in epoch seconds."""
    newest: list[Run] = read(state_dir, partial(_newest_runs, limit=limit), nothing=[])
    return [_to_summary(run) for run in newest]


def _newest_runs(connection: sqlite3.Connection, *, limit: int) -> list[Run]:
    rows = connection.execute("SELECT * FROM run ORDER BY run_id DESC LIMIT ?", (limit,))
    return [_to_run(row) for row in rows]


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
        "status_code": number_of(run),
        "outcome": run.outcome,
        "reason": run.reason,
        "refusal": run.refusal,
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
        "refusal": _storable(run.refusal),
        "entered": None if run.entered is None else str(run.entered),
        "input_digest": run.input_digest,
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
        input_blob=_blob(_known(row, "input_blob")),
        result_blob=_blob(_known(row, "result_blob")),
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
        refusal=_known(row, "refusal") or "",
        entered=Mark.parse(_known(row, "entered") or ""),
        input_digest=_known(row, "input_digest") or "",
    )


def _known(row: sqlite3.Row, column: str) -> str | None:
    # who only reads may meet a journal that no agent of this version has opened yet
    return row[column] if column in row.keys() else None  # noqa: SIM118 - iterating a row gives its values


def _blob(stored: str | None) -> BlobId | None:
    return None if stored is None else BlobId(stored)


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
