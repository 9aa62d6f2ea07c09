"""One SQLite database behind one lock: every call to the server is one transaction.

Owns the connection and the way rows are asked for. Must not know what is in the tables, HTTP or sockets.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node_agent.errors import ConfigError
from node_agent.sandbox.server import schema

Row = sqlite3.Row


@dataclass(frozen=True, slots=True)
class Condition:
    """A piece of a WHERE clause, always one of our own texts, with its values."""

    text: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Which rows of a listing are wanted, in which order; *order* is one of our own texts."""

    order: str
    limit: int
    offset: int


class BooksClosed(Exception):
    """Somebody still wanted something of a server that has ended."""


class Database:
    """The connection; may be used from any thread."""

    def __init__(self, file: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._is_open = True
        try:
            self._connection = sqlite3.connect(
                str(file or ":memory:"), check_same_thread=False, isolation_level=None
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise ConfigError(
                f"The sandbox's database {file} cannot be used: {error}.",
                hint="Choose another --state-dir, or remove this one.",
            ) from error

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
        self._connection.execute("PRAGMA foreign_keys=ON")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(
                f"BEGIN; {schema.TABLES}; PRAGMA user_version={schema.VERSION}; COMMIT;"
            )
        elif version != schema.VERSION:
            raise sqlite3.DatabaseError(f"it has version {version}, and this program knows {schema.VERSION}")

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._is_open = False
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep everybody else out; what is written in the block is kept only if it ends well."""
        with self._lock:
            if not self._is_open:
                raise BooksClosed
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._connection.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._connection.execute("COMMIT")

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """Give all rows of a query."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> Row | None:
        """Give the first row of a query, or None."""
        with self._lock:
            found: Row | None = self._connection.execute(sql, values).fetchone()
            return found

    def value(self, sql: str, *values: Any) -> Any:
        """Give the first value of the first row, or None."""
        found = self.row(sql, *values)
        return None if found is None else found[0]

    def change(self, sql: str, *values: Any) -> int:
        """Carry out a statement and give the id of what it inserted."""
        with self._lock:
            return self._connection.execute(sql, values).lastrowid or 0

    def select(self, source: str, conditions: Sequence[Condition], wanted: Slice) -> tuple[list[Row], int]:
        """Give the wanted rows of a table or view, and how many there are altogether."""
        where = " AND ".join(f"({condition.text})" for condition in conditions) or "1"
        values = [value for condition in conditions for value in condition.values]
        # source, conditions and order are texts of this package; what callers send goes into values only
        base = f"FROM {source} WHERE {where}"
        total = self.value(f"SELECT count(*) {base}", *values)
        page = f"SELECT * {base} ORDER BY {wanted.order} LIMIT ? OFFSET ?"
        return self.rows(page, *values, wanted.limit, wanted.offset), total


def one_of(column: str, numbers: Sequence[int]) -> Condition:
    """Make the condition that a column, named by us, is one of these numbers."""
    marks = ", ".join("?" * len(numbers))
    return Condition(f"{column} IN ({marks})", tuple(numbers))


def now() -> str:
    """Give the time as the server writes it: UTC without saying so, always with six digits."""
    return written(datetime.now(UTC))


def written(at: datetime) -> str:
    """Write a time as the server does."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
