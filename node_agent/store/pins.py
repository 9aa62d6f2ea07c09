"""The public keys of organizations that this node holds to: the first one seen, until a person accepts another.

They lie in the journal, in a table of their own, and are written by the agent's threads and by `node-agent key accept`
beside it, each through a connection of its own. Must not know what a key looks like.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from node_agent.domain.ports import PinnedKey
from node_agent.domain.task import OrganizationId
from node_agent.store.journal import FILE_NAME, read
from node_agent.store.soundness import journal_errors

_PATIENCE_SECONDS = 5.0
_PIN = "INSERT OR IGNORE INTO organization_key (organization_id, key, pinned_at) VALUES (?, ?, ?)"
_OFFER = (
    "UPDATE organization_key SET offered = ?, offered_at = ? WHERE organization_id = ? AND offered IS NOT ?"
)
_WITHDRAW = (
    "UPDATE organization_key SET offered = NULL, offered_at = NULL "
    "WHERE organization_id = ? AND offered IS NOT NULL"
)
_ACCEPT = (
    "UPDATE organization_key SET key = offered, pinned_at = ?, offered = NULL, offered_at = NULL "
    "WHERE organization_id = ? AND offered = ?"
)
_SELECT = "SELECT organization_id, key, offered FROM organization_key"

Answer = TypeVar("Answer")


class JournalPins:
    """The pinned keys of one agent; may be used by many threads. Every call may raise DiskUnwritable."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME

    def pinned(self, organization: OrganizationId) -> PinnedKey | None:
        """Return what is pinned for an organization; None when nothing is."""
        rows = self._do(
            lambda db: db.execute(f"{_SELECT} WHERE organization_id = ?", (organization,)).fetchall()
        )
        return _pinned(rows[0]) if rows else None

    def pin(self, organization: OrganizationId, key: str) -> None:
        """Pin the first key of an organization; one that is pinned stays."""
        self._do(lambda db: db.execute(_PIN, (organization, key, time.time())))

    def offer(self, organization: OrganizationId, key: str | None) -> bool:
        """Record which other key the server shows, None for none any more; True when that is news."""
        if key is None:
            return self._do(lambda db: db.execute(_WITHDRAW, (organization,)).rowcount > 0)
        row = (key, time.time(), organization, key)
        return self._do(lambda db: db.execute(_OFFER, row).rowcount > 0)

    def accept(self, organization: OrganizationId, key: str) -> bool:
        """Pin the offered key, if it is still *key*; False when it is not."""
        return self._do(lambda db: db.execute(_ACCEPT, (time.time(), organization, key)).rowcount > 0)

    def _do(self, action: Callable[[sqlite3.Connection], Answer]) -> Answer:
        with (
            journal_errors(self._path),
            closing(
                sqlite3.connect(self._path, isolation_level=None, timeout=_PATIENCE_SECONDS)
            ) as connection,
        ):
            connection.execute("PRAGMA synchronous = FULL")
            return action(connection)


def read_pins(state_dir: Path) -> list[PinnedKey]:
    """Read every pinned key, while an agent may be writing."""
    return read(state_dir, _all_pins, nothing=[])


def _all_pins(connection: sqlite3.Connection) -> list[PinnedKey]:
    try:
        return [_pinned(row) for row in connection.execute(f"{_SELECT} ORDER BY organization_id")]
    except sqlite3.OperationalError as error:
        # a journal that no agent of this version has opened yet
        if "no such table" in str(error):
            return []
        raise


def _pinned(row: tuple[int, str, str | None]) -> PinnedKey:
    return PinnedKey(OrganizationId(row[0]), row[1], row[2])
