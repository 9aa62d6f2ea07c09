"""The copy of a journal that is kept before a newer agent changes its form, for the way back to the older one.

Owns the copy's name and that there is one. Must not know what the tables mean.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from node_agent.store.disk import disk_errors, sync_folder

_MARK = ".before-v"


def copy_name(path: Path, version: int) -> Path:
    """Say where the journal *path* is kept as it was before it got that version."""
    return path.with_name(f"{path.name}{_MARK}{version}")


def keep_copy(connection: sqlite3.Connection, path: Path, *, version: int) -> None:
    """Keep the journal as it is now, before it gets *version*; an earlier copy makes room."""
    kept = copy_name(path, version)
    fresh = path.with_name(f".{path.name}.copy")
    try:
        with disk_errors():
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600)
        with closing(sqlite3.connect(fresh)) as copy:
            connection.backup(copy)
        with disk_errors():
            fresh.replace(kept)
            sync_folder(path.parent)
    finally:
        # a copy that was not finished must not keep the disk full
        fresh.unlink(missing_ok=True)
    for earlier in path.parent.glob(f"{path.name}{_MARK}*"):
        if earlier != kept:
            earlier.unlink(missing_ok=True)
