"""The sign of life: what the agent said last, and whether it is there to have said it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.store import presence
from node_agent.store.lock import AgentLock
from node_agent.store.presence import Presence

SAID = Presence(
    pid=1,
    version="0.1.0",
    node="alpha",
    since=1.0,
    online=True,
    server_problem="",
    engine_problem="",
    waiting=1,
    working=2,
    owed=3,
    oldest_owed_at=None,
    finished=4,
    draining=False,
    written_at=2.0,
)


def test_where_no_agent_ever_was_nothing_is_seen(tmp_path: Path) -> None:
    seen = presence.read(tmp_path)
    assert (seen.running, seen.pid, seen.presence) == (False, None, None)


def test_the_last_sign_is_seen_after_the_agent_ended(tmp_path: Path) -> None:
    presence.write(tmp_path, SAID)
    presence.write(tmp_path, replace(SAID, owed=5))
    seen = presence.read(tmp_path)
    assert (seen.running, seen.presence) == (False, replace(SAID, owed=5))
    assert [path.name for path in tmp_path.iterdir()] == [presence.FILE_NAME]


def test_an_agent_that_holds_its_lock_is_running(tmp_path: Path) -> None:
    lock = AgentLock(f"test-presence-{os.getpid()}", tmp_path)
    presence.write(tmp_path, SAID)
    seen = presence.read(tmp_path)
    assert (seen.running, seen.pid, seen.presence) == (True, os.getpid(), SAID)
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1, "tomorrow": 2}', "null"])
def test_an_unreadable_sign_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / presence.FILE_NAME).write_text(content)
    assert presence.read(tmp_path).presence is None
