"""Live logs: whole lines, masked, bounded, never twice, and never in the way of anything."""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.domain.masking import mask_for
from node_agent.domain.run import ContainerId, Run, RunId, State, Status
from node_agent.domain.runlogs import LiveMark, LogEntry
from node_agent.domain.secret import Secret
from node_agent.errors import EngineUnreachable
from node_agent.following import AGAIN_SECONDS, MOST_AT_ONCE, FollowedLogs
from node_agent.store.rundir import DiskRunFolders
from tests.doubles.clock import ManualClock
from tests.doubles.core import make_open_run, make_run

RUN = RunId(1)


class Talkative:
    """An engine whose containers say what the test wants."""

    def __init__(self, *said: bytes) -> None:
        self.entries = [LogEntry(f"{at:04d}", content) for at, content in enumerate(said, start=1)]
        self.fault: EngineUnreachable | None = None
        self.asked_since: list[str] = []
        self.endless: Iterator[LogEntry] | None = None

    def follow_log(self, container: ContainerId, *, since: str) -> Generator[LogEntry, None, None]:
        self.asked_since.append(since)
        yield from (entry for entry in self.entries if entry.at > since)
        if self.endless is not None:
            yield from self.endless
        if self.fault is not None:
            raise self.fault


def at_once(action: Callable[[], None], _name: str) -> None:
    action()


class Scene:
    """One running run, its folder, and an engine."""

    def __init__(self, state_dir: Path) -> None:
        self.folders = DiskRunFolders(state_dir, user=(65534, 65534))
        self.folders.store_input(RUN, [make_open_run(1).task.image.encode()])
        self.clock = ManualClock()
        self.run = make_run(
            1, state=State.RUNNING, announced=Status.ACTIVE, container=ContainerId("container-1")
        )

    def logs(self, engine: Any, *, limit: int = 1_000_000, **more: Any) -> FollowedLogs:
        return FollowedLogs(
            runtime=engine,
            folders=self.folders,
            mask=mask_for([Secret("hunter2")], ()),
            limit=limit,
            clock=self.clock,
            **{"begin": at_once, **more},
        )


@pytest.fixture
def scene(quick_dir: Path) -> Scene:
    return Scene(quick_dir)


def text_of(logs: FollowedLogs, *runs: Run) -> str:
    return "".join(piece.text for piece in logs.keep_up(runs))


def test_what_a_run_writes_is_given_masked_and_once(scene: Scene) -> None:
    logs = scene.logs(Talkative(b"begin\n", b"the password is hunt", b"er2\n", b"caf\xe9 \0\n"))
    assert text_of(logs, scene.run) == "begin\nthe password is ***\ncaf\ufffd \ufffd\n"
    assert text_of(logs, scene.run) == ""


def test_a_later_process_goes_on_behind_what_was_sent(scene: Scene) -> None:
    engine = Talkative(b"one\n", b"two\n")
    first = scene.logs(engine)
    first.keep_up([scene.run])
    engine.entries.append(LogEntry("0003", b"three\n"))
    scene.clock.advance(AGAIN_SECONDS)
    assert text_of(first, scene.run) == "three\n"
    engine.entries.append(LogEntry("0004", b"four\n"))
    assert text_of(scene.logs(engine), scene.run) == "four\n"


def test_a_log_that_broke_off_is_followed_again_after_a_pause(scene: Scene) -> None:
    engine = Talkative(b"one\n")
    engine.fault = EngineUnreachable("It went away.")
    logs = scene.logs(engine)
    with capture_logs() as lines:
        logs.keep_up([scene.run])
    assert [line["event"] for line in lines] == ["live_log_interrupted"]
    logs.keep_up([scene.run])
    assert len(engine.asked_since) == 1
    scene.clock.advance(AGAIN_SECONDS)
    logs.keep_up([scene.run])
    assert len(engine.asked_since) == 2


def test_a_bug_in_reading_stops_nothing(scene: Scene) -> None:
    class Broken:
        def follow_log(self, container: ContainerId, *, since: str) -> Generator[LogEntry, None, None]:
            raise TypeError("a mistake")
            yield

    assert text_of(scene.logs(Broken()), scene.run) == ""


def test_no_more_than_the_limit_is_sent_and_the_end_is_marked_also_after_a_restart(scene: Scene) -> None:
    engine = Talkative(*[b"0123456789\n"] * 20)
    text = text_of(scene.logs(engine, limit=100), scene.run)
    assert text.count("0123456789\n") == 9
    assert text.splitlines()[-1].startswith("[node] This node sends at most 100 bytes")
    later = scene.logs(engine, limit=100)
    assert text_of(later, scene.run) == ""
    scene.clock.advance(10 * AGAIN_SECONDS)
    assert text_of(later, scene.run) == ""


def test_a_flood_waits_in_the_engine_and_not_here(scene: Scene) -> None:
    engine = Talkative()
    engine.endless = (LogEntry(f"{number:06d}", b"x" * 1023 + b"\n") for number in range(1000))
    threads: list[threading.Thread] = []

    def in_a_thread(action: Callable[[], None], _name: str) -> None:
        threads.append(threading.Thread(target=action, daemon=True))
        threads[-1].start()

    logs = scene.logs(engine, begin=in_a_thread, limit=1 << 30)
    sizes = []
    reading = True
    while reading:
        # what is taken after the reader's end is the last of it
        reading = not threads or threads[0].is_alive()
        sizes.append(sum(len(piece.text) for piece in logs.keep_up([scene.run])))
    assert sum(sizes) == 1000 * 1024
    assert max(sizes) <= MOST_AT_ONCE


def test_a_reader_of_a_run_that_nobody_means_any_more_ends(scene: Scene) -> None:
    engine = Talkative()
    engine.endless = (LogEntry(f"{at:09d}", b"x" * MOST_AT_ONCE) for at in itertools.count())
    threads: list[threading.Thread] = []

    def in_a_thread(action: Callable[[], None], _name: str) -> None:
        threads.append(threading.Thread(target=action, daemon=True))
        threads[-1].start()

    logs = scene.logs(engine, begin=in_a_thread, limit=1 << 40)
    logs.keep_up([scene.run])
    assert logs.keep_up([]) == []
    threads[0].join(20)
    assert not threads[0].is_alive()


def test_a_run_without_a_container_is_left_alone(scene: Scene) -> None:
    engine = Talkative(b"one\n")
    scene.logs(engine).keep_up([make_run(1, state=State.RUNNING)])
    assert engine.asked_since == []


def test_a_mark_that_cannot_be_read_is_none(scene: Scene) -> None:
    assert scene.folders.live_mark(RUN) == LiveMark()
    scene.folders.keep_live_mark(RUN, LiveMark(since="2026-01-01T00:00:00.000000001Z", sent=5))
    assert scene.folders.live_mark(RUN) == LiveMark(since="2026-01-01T00:00:00.000000001Z", sent=5)
    scene.folders.remove(RUN)
    scene.folders.keep_live_mark(RUN, LiveMark(since="x", sent=6))
    assert scene.folders.live_mark(RUN) == LiveMark()
