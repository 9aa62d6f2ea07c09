"""The sign of life: what the agent said last, and whether it is there to have said it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.store import presence
from node_agent.store.lock import AgentLock
from node_agent.store.presence import LINE, SILENT_SECONDS, Presence, PresenceFile, Sighting

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
    file = PresenceFile(tmp_path)
    file.write(SAID)
    file.write(replace(SAID, owed=5, written_at=3.0))
    seen = presence.read(tmp_path)
    assert (seen.running, seen.presence) == (False, replace(SAID, owed=5, written_at=3.0))
    assert [path.name for path in tmp_path.iterdir()] == [presence.FILE_NAME]


def test_an_agent_that_holds_its_lock_is_running(tmp_path: Path) -> None:
    lock = AgentLock(f"test-presence-{os.getpid()}", tmp_path)
    PresenceFile(tmp_path).write(SAID)
    seen = presence.read(tmp_path)
    assert (seen.running, seen.pid, seen.presence) == (True, os.getpid(), SAID)
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1, "tomorrow": 2}', "null"])
def test_an_unreadable_sign_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / presence.FILE_NAME).write_text(content)
    assert presence.read(tmp_path).presence is None


def test_room_is_taken_before_anything_is_said(tmp_path: Path) -> None:
    file = PresenceFile(tmp_path)
    file.take_room()
    taken = (tmp_path / presence.FILE_NAME).stat()
    assert presence.read(tmp_path).presence is None
    file.write(SAID)
    said = (tmp_path / presence.FILE_NAME).stat()
    assert (said.st_size, said.st_blocks) == (taken.st_size, taken.st_blocks)
    file.take_room()
    assert presence.read(tmp_path).presence == SAID


def test_the_sign_is_written_over_in_place_so_that_a_full_disk_takes_it(tmp_path: Path) -> None:
    file = PresenceFile(tmp_path)
    file.write(SAID)
    before = (tmp_path / presence.FILE_NAME).stat()
    for beat in range(3, 8):
        file.write(replace(SAID, written_at=float(beat), owed=10**beat))
    after = (tmp_path / presence.FILE_NAME).stat()
    assert (after.st_ino, after.st_size, after.st_blocks) == (before.st_ino, before.st_size, before.st_blocks)
    last = presence.read(tmp_path).presence
    assert last is not None
    assert (last.written_at, last.owed) == (7.0, 10**7)


def test_while_one_line_is_written_the_other_one_counts(tmp_path: Path) -> None:
    file = PresenceFile(tmp_path)
    file.write(SAID)
    file.write(replace(SAID, written_at=3.0))
    with (tmp_path / presence.FILE_NAME).open("r+b") as torn:
        torn.write(b'{"pid": 1, "ver')
    last = presence.read(tmp_path).presence
    assert last is not None
    assert last.written_at == 3.0


def test_a_sign_of_an_older_agent_is_written_over(tmp_path: Path) -> None:
    (tmp_path / presence.FILE_NAME).write_text('{"pid": 1}' + "x" * 3 * LINE)
    PresenceFile(tmp_path).write(SAID)
    assert presence.read(tmp_path).presence == SAID
    assert (tmp_path / presence.FILE_NAME).stat().st_size == 2 * LINE


@pytest.mark.parametrize("letter", ["x", "\n", "ä", "\x00", "😀"])
def test_texts_that_are_too_long_for_the_file_are_cut(tmp_path: Path, letter: str) -> None:
    said = replace(SAID, server_problem=letter * 9999, disk_problem=letter * 9999, node=letter * 9999)
    PresenceFile(tmp_path).write(said)
    last = presence.read(tmp_path).presence
    assert last is not None
    assert last.disk_problem
    assert said.disk_problem.startswith(last.disk_problem)


def test_an_agent_that_said_nothing_for_long_is_silent() -> None:
    seen = Sighting(pid=1, presence=SAID, seen_at=SAID.written_at + SILENT_SECONDS + 1)
    assert seen.is_silent
    assert not replace(seen, seen_at=SAID.written_at + 2).is_silent
    assert not replace(seen, pid=2).is_silent  # another process that has not spoken yet
    assert not replace(seen, seen_at=SAID.written_at - 3600).is_silent  # somebody set the clock back


def test_the_disk_is_seen_from_outside_too(tmp_path: Path) -> None:
    seen = presence.read(tmp_path)
    assert seen.disk_free
    assert not seen.disk_read_only
    assert presence.read(tmp_path / "nowhere").disk_free is None
