"""The books of the compute API: nonces, jobs, grants and revoked tokens, in one SQLite file.

Written by the threads of the API, by the agent when a job ends, and by `node-agent grant …` from another process: one
short transaction each. A nonce is used up before anything is done for it; a job and the uses of its grants are one
transaction. Nothing here knows what a request looks like or how a container is run.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, NewType

from node_agent.errors import ConfigError, DiskFull

FILE_NAME = "compute.sqlite"
_BUSY_SECONDS = 10.0
_MARKED_SECONDS = 400 * 86_400
"""So long a text stays marked as used: longer than any job's results are kept."""
_NEW_YEAR_2020 = 1_577_836_800

ComputeJobId = NewType("ComputeJobId", str)
"""32 hexadecimal digits: cannot be guessed."""

_SCHEMA: tuple[str, ...] = (
    """
    CREATE TABLE nonce (address TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE used_text (digest BLOB PRIMARY KEY, used_at REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX used_text_by_age ON used_text (used_at);
    CREATE TABLE revoked_token (id TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE job (
        number      INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id      TEXT NOT NULL UNIQUE,
        owner       TEXT NOT NULL,
        created_at  REAL NOT NULL,
        wish        TEXT NOT NULL,
        stop_asked  INTEGER NOT NULL DEFAULT 0,
        removed     INTEGER NOT NULL DEFAULT 0,
        results_gone INTEGER NOT NULL DEFAULT 0,
        finished_at REAL,
        ending      TEXT
    );
    CREATE TABLE job_content (number INTEGER PRIMARY KEY REFERENCES job, content BLOB NOT NULL);
    CREATE INDEX job_of_owner ON job (owner, number);
    CREATE INDEX job_open ON job (number) WHERE finished_at IS NULL;
    CREATE INDEX job_with_results ON job (number) WHERE finished_at IS NOT NULL AND results_gone = 0;
    CREATE TABLE consent (
        id         TEXT PRIMARY KEY,
        consumer   TEXT NOT NULL,
        data_set   TEXT NOT NULL,
        uses_left  INTEGER,
        expires_at REAL,
        created_at REAL NOT NULL,
        revoked_at REAL
    ) WITHOUT ROWID;
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The owner's word that one consumer may use one data set, so often and so long."""

    id: str
    consumer: str
    data_set: str
    uses_left: int | None
    """None: as often as wanted."""
    expires_at: float | None
    created_at: float
    revoked_at: float | None = None

    def is_good(self, *, consumer: str, data_set: str, now: float) -> bool:
        """Tell whether it lets *consumer* use *data_set* once more."""
        return (
            (self.consumer, self.data_set) == (consumer, data_set)
            and self.revoked_at is None
            and self.uses_left != 0
            and (self.expires_at is None or now < self.expires_at)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as the books have it; times are seconds since the epoch."""

    number: int
    """Counts jobs from 1 and is never given twice."""
    id: ComputeJobId
    owner: str
    created_at: float
    wish: Mapping[str, Any] = field(repr=False)
    """What was asked, as the API understood it."""
    stop_asked: bool = False
    removed: bool = False
    """Its owner deleted it: nobody is shown it any more."""
    results_gone: bool = False
    """What it left was deleted, by its owner or because it was kept long enough."""
    finished_at: float | None = None
    """Set once, when nothing about the job will change any more."""
    ending: Mapping[str, Any] | None = None
    """How it ended, the fields of a `JobEnding`; None until then."""


class NonceUse(Enum):
    """What came of the wish to use a nonce up."""

    GOOD = auto()
    TOO_LOW = auto()
    TEXT_WAS_USED = auto()


class GrantUsedUp(Exception):
    """Somebody else used a grant up meanwhile."""


class TooManyOpen(Exception):
    """There are as many open jobs as there may be."""


class Ledger:
    """The books of one agent; every call is one transaction and may be made from any thread."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._lock = threading.Lock()
        with _errors(self._path):
            # the files that SQLite makes beside it get the mode it has then
            self._path.touch(mode=0o600)
            self._connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
            )
            try:
                self._prepare()
                self._path.chmod(0o600)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    # --- nonces -----------------------------------------------------------------------------------------------

    def last_nonce(self, address: str) -> int:
        """Give the highest nonce *address* has used; 0 when it never did."""
        with self._read() as connection:
            row = connection.execute("SELECT last FROM nonce WHERE address = ?", (address,)).fetchone()
            return int(row["last"]) if row else 0

    def use_nonce(
        self, address: str, nonce: int, *, text: str = "", mark: bool = False, at: float = 0.0
    ) -> NonceUse:
        """Use a nonce up, unless it is not higher than every one before, or *text* was marked as used.

        With *mark* the text is: what was signed counts once then, with whatever nonce it is read.
        """
        digest = hashlib.sha256(text.encode(errors="replace")).digest()
        with self._transaction() as connection:
            if text and connection.execute("SELECT 1 FROM used_text WHERE digest = ?", (digest,)).fetchone():
                return NonceUse.TEXT_WAS_USED
            changed = connection.execute(
                "INSERT INTO nonce (address, last) VALUES (?, ?) "
                "ON CONFLICT (address) DO UPDATE SET last = excluded.last WHERE excluded.last > last",
                (address, nonce),
            )
            if changed.rowcount != 1:
                return NonceUse.TOO_LOW
            if mark:
                connection.execute("DELETE FROM used_text WHERE used_at < ?", (at - _MARKED_SECONDS,))
                connection.execute("INSERT INTO used_text (digest, used_at) VALUES (?, ?)", (digest, at))
            return NonceUse.GOOD

    # --- tokens -----------------------------------------------------------------------------------------------

    def secret(self, name: str, fresh: bytes) -> bytes:
        """Give the secret *name*; *fresh* becomes it when there is none yet."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO secret (name, value) VALUES (?, ?)", (name, fresh))
            row = connection.execute("SELECT value FROM secret WHERE name = ?", (name,)).fetchone()
            return bytes(row["value"])

    def revoke_token(self, token_id: str, *, expires_at: int, now: float) -> bool:
        """Revoke a token; False when it was before. Those that expired meanwhile are forgotten."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM revoked_token WHERE expires_at < ?", (now,))
            changed = connection.execute(
                "INSERT OR IGNORE INTO revoked_token (id, expires_at) VALUES (?, ?)", (token_id, expires_at)
            )
            return changed.rowcount == 1

    def is_revoked(self, token_id: str) -> bool:
        """Tell whether the token was revoked."""
        with self._read() as connection:
            found = connection.execute("SELECT 1 FROM revoked_token WHERE id = ?", (token_id,)).fetchone()
            return found is not None

    # --- jobs -------------------------------------------------------------------------------------------------

    def add_job(
        self,
        job_id: ComputeJobId,
        *,
        owner: str,
        at: float,
        wish: Mapping[str, Any],
        content: bytes,
        grants: Sequence[str],
        most_open: int,
    ) -> JobRecord:
        """Write a job down with its content and use its grants up, all or nothing. Raises GrantUsedUp, TooManyOpen."""
        with self._transaction() as connection:
            if count_open(connection) >= most_open:
                raise TooManyOpen
            for grant in grants:
                _use(connection, grant, at=at)
            added = connection.execute(
                "INSERT INTO job (job_id, owner, created_at, wish) VALUES (?, ?, ?, ?)",
                (job_id, owner, at, json.dumps(wish)),
            )
            number = added.lastrowid or 0
            connection.execute("INSERT INTO job_content (number, content) VALUES (?, ?)", (number, content))
        return JobRecord(number=number, id=job_id, owner=owner, created_at=at, wish=wish)

    def content(self, number: int) -> bytes:
        """Give the parameters and the code of an open job; empty when it has ended."""
        with self._read() as connection:
            row = connection.execute("SELECT content FROM job_content WHERE number = ?", (number,)).fetchone()
            return bytes(row["content"]) if row else b""

    def job(self, job_id: str) -> JobRecord | None:
        """Find a job that was not removed."""
        with self._read() as connection:
            row = connection.execute(
                "SELECT * FROM job WHERE job_id = ? AND removed = 0", (job_id,)
            ).fetchone()
            return _to_job(row) if row else None

    def job_by_number(self, number: int) -> JobRecord | None:
        """Find a job by its number, removed or not."""
        with self._read() as connection:
            row = connection.execute("SELECT * FROM job WHERE number = ?", (number,)).fetchone()
            return _to_job(row) if row else None

    def jobs_of(self, owner: str, *, limit: int) -> list[JobRecord]:
        """List the newest jobs of *owner* that were not removed, newest first."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT * FROM job WHERE owner = ? AND removed = 0 ORDER BY number DESC LIMIT ?",
                (owner, limit),
            )
            return [_to_job(row) for row in rows]

    def open_jobs(self) -> list[JobRecord]:
        """List the jobs that have not ended, oldest first."""
        with self._read() as connection:
            rows = connection.execute("SELECT * FROM job WHERE finished_at IS NULL ORDER BY number")
            return [_to_job(row) for row in rows]

    def count_open(self) -> int:
        """Count the jobs that have not ended."""
        with self._read() as connection:
            return count_open(connection)

    def ask_stop(self, job_id: ComputeJobId) -> None:
        """Note that the owner wants the job stopped; of a job that has ended, nothing is noted."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE job SET stop_asked = 1 WHERE job_id = ? AND finished_at IS NULL", (job_id,)
            )

    def finish_job(self, number: int, *, at: float, ending: Mapping[str, Any]) -> bool:
        """Note how a job ended, and forget its content; False when that was noted before: nothing changes then."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE job SET finished_at = ?, ending = ? WHERE number = ? AND finished_at IS NULL",
                (at, json.dumps(ending), number),
            )
            connection.execute("DELETE FROM job_content WHERE number = ?", (number,))
            return changed.rowcount == 1

    def remove_job(self, job_id: ComputeJobId) -> None:
        """Note that the owner of a job deleted it."""
        with self._transaction() as connection:
            connection.execute("UPDATE job SET removed = 1, results_gone = 1 WHERE job_id = ?", (job_id,))

    def note_results_gone(self, number: int) -> None:
        """Note that what a job left was deleted."""
        with self._transaction() as connection:
            connection.execute("UPDATE job SET results_gone = 1 WHERE number = ?", (number,))

    def with_results(self) -> list[JobRecord]:
        """List the jobs that have ended and whose results are kept, oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT * FROM job WHERE finished_at IS NOT NULL AND results_gone = 0 ORDER BY number"
            )
            return [_to_job(row) for row in rows]

    def forget_jobs(self, *, before: float) -> int:
        """Forget the jobs that ended before that time and left nothing; say how many."""
        with self._transaction() as connection:
            gone = connection.execute("DELETE FROM job WHERE finished_at < ? AND results_gone = 1", (before,))
            return gone.rowcount

    # --- grants -----------------------------------------------------------------------------------------------

    def add_grant(self, grant: Grant) -> None:
        """Write a grant down."""
        columns = asdict(grant)
        with self._transaction() as connection:
            connection.execute(
                f"INSERT INTO consent ({', '.join(columns)}) "  # noqa: S608 - the names are ours
                f"VALUES ({', '.join(':' + name for name in columns)})",
                columns,
            )

    def grant(self, grant_id: str) -> Grant | None:
        """Find a grant."""
        with self._read() as connection:
            row = connection.execute("SELECT * FROM consent WHERE id = ?", (grant_id,)).fetchone()
            return Grant(**dict(row)) if row else None

    def grants(self, *, consumer: str | None = None, data_set: str | None = None) -> list[Grant]:
        """List the grants, oldest first, perhaps only those of one consumer or for one data set."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT * FROM consent WHERE (:consumer IS NULL OR consumer = :consumer) "
                "AND (:data_set IS NULL OR data_set = :data_set) ORDER BY created_at, id",
                {"consumer": consumer, "data_set": data_set},
            )
            return [Grant(**dict(row)) for row in rows]

    def revoke_grant(self, grant_id: str, *, at: float) -> bool:
        """Revoke a grant; False when there is none that still holds."""
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE consent SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, grant_id)
            )
            return changed.rowcount == 1

    # --- the file ---------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        # the agent and `grant` may begin the books at the same time
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(_SCHEMA):
                raise ConfigError(
                    f"The books {self._path} were written by a newer node-agent "
                    f"(format {version}, this one knows {len(_SCHEMA)}).",
                    hint="Install that version again; the file was left as it is.",
                )
            for statement in ";".join(_SCHEMA[version:]).split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(_SCHEMA)}")
            # Books that were lost and begun again must not give the numbers of the old ones: the journal knows those.
            connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) SELECT 'job', ? "
                "WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'job')",
                (int(time.time() - _NEW_YEAR_2020),),
            )

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _errors(self._path):
            yield self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def count_open(connection: sqlite3.Connection) -> int:
    """Count the jobs that have not ended, in books that may be open for reading only."""
    (number,) = connection.execute("SELECT count(*) FROM job WHERE finished_at IS NULL").fetchone()
    return int(number)


def _use(connection: sqlite3.Connection, grant: str, *, at: float) -> None:
    used = connection.execute(
        "UPDATE consent SET uses_left = uses_left - 1 WHERE id = ? AND revoked_at IS NULL "
        "AND (uses_left IS NULL OR uses_left > 0) AND (expires_at IS NULL OR expires_at > ?)",
        (grant, at),
    )
    if used.rowcount != 1:
        raise GrantUsedUp


def _to_job(row: sqlite3.Row) -> JobRecord:
    return JobRecord(
        number=row["number"],
        id=ComputeJobId(row["job_id"]),
        owner=row["owner"],
        created_at=row["created_at"],
        wish=json.loads(row["wish"]),
        stop_asked=bool(row["stop_asked"]),
        removed=bool(row["removed"]),
        results_gone=bool(row["results_gone"]),
        finished_at=row["finished_at"],
        ending=json.loads(row["ending"]) if row["ending"] else None,
    )


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise DiskFull(f"The books {path} cannot be written: {error}.") from error
        raise ConfigError(
            f"The books {path} cannot be used: {error}.", hint="Check its owner and its mode."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"The books {path} are damaged: {error}.",
            hint="Move the file aside to start with empty ones; jobs and grants in it are lost then.",
        ) from error
