"""Whether a journal can be trusted, and the words for why not.

Owns the translation of SQLite's errors and the look at a file before it is used, which does not change a byte of it. Must
not know what the tables mean.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from node_agent.errors import ConfigError, DiskFull, DiskUnwritable, NodeAgentError
from node_agent.store.disk import disk_errors
from node_agent.store.schema import check_version

MOVE_ASIDE = (
    "Move it aside, with its -wal and -shm files, and start again: a new journal is made. Lost then: the list of past"
    " runs. Open runs are fetched from the server again, and their containers and results taken up."
)
CHECKED_WHOLE = 16 * 1024 * 1024
"""A larger journal is not read from end to end at every start; what is damaged in it is found when it is needed."""
_SMALLEST = 512  # the smallest page there is
_PRIMARY = 0xFF  # the rest of a code of SQLite's says more than anybody needs
_CANNOT_BE_READ_ALONE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


@contextmanager
def journal_errors(path: Path) -> Iterator[None]:
    """Translate what SQLite says of a journal in use: trouble that may pass, or damage."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _in_use(path, error) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


@contextmanager
def opening_errors(path: Path) -> Iterator[None]:
    """Translate what SQLite says while a journal is opened: here a missing right is the operator's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _at_the_start(path, error) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def look_at(path: Path, *, used: bool) -> None:
    """Refuse a journal that cannot be trusted; *used* says whether there must be something in it."""
    if not path.is_file():
        return
    size = path.stat().st_size
    if size == 0:
        if used:
            raise ConfigError(
                f"The journal {path} is empty although this state directory was used: its content was lost.",
                hint=MOVE_ASIDE,
            )
        return
    if size < _SMALLEST or (size % _SMALLEST and not _has_changes_beside(path)):
        # SQLite takes a few bytes for a new database, and a missing end for zeros
        raise sqlite3.DatabaseError("it was cut short")
    try:
        _look_inside(path)
    except sqlite3.OperationalError as error:
        # an interrupted write is put right by whoever may write; only then it shows what is in the file
        if _code(error) not in _CANNOT_BE_READ_ALONE:
            raise


def _has_changes_beside(path: Path) -> bool:
    """Tell whether changes wait to be moved into the file: whoever died while doing so left it uneven."""
    wal = path.with_name(f"{path.name}-wal")
    return wal.exists() and wal.stat().st_size > 0


def _look_inside(path: Path) -> None:
    with closing(read_only(path)) as connection:
        check_version(connection, path)
        if path.stat().st_size <= CHECKED_WHOLE:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(found.split()))


def read_only(path: Path) -> sqlite3.Connection:
    """Open a journal without the right to change it."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY


def _in_use(path: Path, error: sqlite3.OperationalError) -> NodeAgentError:
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return DiskFull(
                f"The journal {path} cannot be written: {error}.",
                hint="Free some space; the work goes on by itself.",
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DiskUnwritable(
                f"The journal {path} is locked by another program.",
                hint="End it (a backup, a database tool); the work goes on by itself.",
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
            return DiskUnwritable(
                f"The journal {path} cannot be written: {error}.", hint="Look at its disk (dmesg)."
            )
    return ConfigError(f"The journal {path} cannot be used: {error}.", hint="Check its owner and its mode.")


def _at_the_start(path: Path, error: sqlite3.OperationalError) -> NodeAgentError:
    if _code(error) in _CANNOT_BE_READ_ALONE:
        # SQLite does not tell a missing right from a missing block
        with disk_errors():
            _write_beside(path)
        return ConfigError(
            f"The journal {path} cannot be used: {error}.", hint="Check its owner and its mode."
        )
    return _in_use(path, error)


def _write_beside(path: Path) -> None:
    trial = path.with_name(f".{path.name}.trial")
    try:
        trial.write_bytes(b"\0" * 4096)
    except PermissionError:
        return
    finally:
        trial.unlink(missing_ok=True)


def _damaged(path: Path, error: sqlite3.DatabaseError) -> ConfigError:
    return ConfigError(f"The journal {path} is damaged: {error}.", hint=MOVE_ASIDE)
