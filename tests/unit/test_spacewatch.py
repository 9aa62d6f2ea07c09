"""Which run has to end while a disk is short, and when; nothing here looks at a real disk."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.diskuse import DiskUses
from node_agent.domain.container import ContainerReport, Phase
from node_agent.domain.diskuse import Held
from node_agent.domain.messages import Message, SpaceFell, SpaceSeen, SpaceTaken
from node_agent.domain.run import ContainerId, Outcome, Run, RunId, State
from node_agent.domain.task import JobId, JobKey
from node_agent.errors import OutputTooLarge
from node_agent.runtable import RunTable
from node_agent.spacewatch import (
    CLOSE_LOOK_SECONDS,
    FALL,
    LOOK_SECONDS,
    PATIENCE_SECONDS,
    RECORD_SECONDS,
    SpaceWatch,
)
from tests.doubles.clock import ManualClock
from tests.doubles.core import make_run, make_task

MIB = 2**20
LEAST = 100 * MIB
STATE, ENGINE = Path("/state"), Path("/engine")


@dataclass
class FoldersBook:
    """What runs use, as a test says it."""

    used: dict[RunId, int] = field(default_factory=dict)
    discarded: list[object] = field(default_factory=list)
    fault: Exception | None = None

    def used_bytes(self, run_id: RunId, _job: JobKey) -> int:
        if self.fault is not None:
            raise self.fault
        return self.used.get(run_id, 0)

    def discard_work(self, run_id: RunId) -> None:
        self.discarded.append(run_id)

    def discard_job(self, job: JobKey) -> None:
        self.discarded.append(job)


@dataclass
class EngineBook:
    """Says that every container works, but for those that ended."""

    ended: set[ContainerId] = field(default_factory=set)
    stopped: list[ContainerId] = field(default_factory=list)

    def inspect(self, container: ContainerId) -> ContainerReport:
        phase = Phase.EXITED if container in self.ended else Phase.RUNNING
        return ContainerReport(id=container, run_id=None, phase=phase)

    def stop(self, container: ContainerId) -> None:
        self.stopped.append(container)


class Scene:
    """A watch with everything around it under the test's control."""

    def __init__(self) -> None:
        self.free: dict[Path, int | None] = {STATE: 1000 * MIB, ENGINE: 1000 * MIB}
        self.folders = FoldersBook()
        self.held: dict[ContainerId, Held] = {}
        self.clock = ManualClock()
        self.runs = RunTable()
        self.posted: list[Message] = []
        self.engine = EngineBook()
        folders: Any = self.folders
        engine: Any = self.engine
        self.uses = DiskUses(lambda container, _pid: self.held.get(container, Held(is_complete=True)))
        self.watch = SpaceWatch(
            places=lambda: {"the state directory": STATE, "the engine": ENGINE},
            least=lambda: LEAST,
            runs=self.runs,
            folders=folders,
            uses=self.uses,
            runtime=engine,
            post=self.posted.append,
            clock=self.clock,
            free=self.free.__getitem__,
        )

    def run(self, number: int, *, used: int = 0, job: int = 7, **changes: Any) -> Run:
        """Have a run work, and keep or change it."""
        run = make_run(number, state=State.RUNNING, container=ContainerId(f"c{number}"), **changes)
        run = replace(run, task=make_task(number, job_id=JobId(job)))
        self.runs.keep(run)
        self.folders.used[run.id] = used
        return run

    def look(self, *, free: int) -> float:
        self.free[STATE] = free
        return self.watch.look()

    @property
    def taken(self) -> list[int]:
        return [message.run_id for message in self.posted if isinstance(message, SpaceTaken)]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with capture_logs():
        yield Scene()


def test_a_shortage_is_told_once_and_its_end_too(scene: Scene) -> None:
    for free in (1000 * MIB, 50 * MIB, 40 * MIB, 40 * MIB, 1000 * MIB):
        scene.look(free=free)
    told = [message.shortage for message in scene.posted if isinstance(message, SpaceSeen)]
    assert len(told) == 3
    assert told[-1] == ""
    assert "limits.min_free_disk" in told[0]


def test_the_run_that_grew_most_is_ended_with_the_reason(scene: Scene) -> None:
    scene.run(1, used=30 * MIB)
    scene.run(2, used=90 * MIB)
    scene.run(3)
    assert scene.look(free=99 * MIB) == CLOSE_LOOK_SECONDS
    assert scene.taken == [2]
    (taken,) = (message for message in scene.posted if isinstance(message, SpaceTaken))
    assert "limits.min_free_disk" in taken.reason
    assert "90 MiB" in taken.reason


def test_what_was_there_at_the_beginning_of_a_run_is_not_its_growth(scene: Scene) -> None:
    folders: Any = scene.folders
    first = scene.run(1, used=90 * MIB)
    scene.uses.measured(first, folders, running_for=0.1)
    scene.run(2, used=30 * MIB)
    scene.look(free=99 * MIB)
    assert scene.taken == [2]


def test_a_run_whose_container_ended_is_not_ended_again_for_what_it_left(scene: Scene) -> None:
    scene.run(1, used=90 * MIB)
    scene.run(2)
    scene.engine.ended.update((ContainerId("c1"), ContainerId("c2")))
    scene.held[ContainerId("c2")] = Held()
    for free in (99, 1):
        scene.look(free=free * MIB)
    assert scene.taken == []
    scene.run(3, used=2 * MIB)
    scene.look(free=1 * MIB)
    assert scene.taken == [3]


def test_files_without_a_name_are_growth(scene: Scene) -> None:
    scene.run(1, used=30 * MIB)
    scene.run(2)
    scene.held[ContainerId("c2")] = Held(unnamed=60 * MIB, is_complete=True)
    scene.look(free=99 * MIB)
    assert scene.taken == [2]


def test_folders_too_deep_to_be_counted_come_first(scene: Scene) -> None:
    scene.run(1)
    scene.folders.fault = OutputTooLarge("too deep")
    scene.look(free=99 * MIB)
    assert scene.taken == [1]


def test_one_run_after_the_other_is_ended_until_there_is_space(scene: Scene) -> None:
    first = scene.run(1, used=90 * MIB)
    scene.run(2, used=30 * MIB, job=8)
    scene.look(free=99 * MIB)
    scene.look(free=99 * MIB)
    assert scene.taken == [1]
    scene.runs.keep(replace(first, state=State.FINISHED, outcome=Outcome.OUTPUT_TOO_LARGE))
    scene.look(free=99 * MIB)
    assert scene.folders.discarded == [first.task.job]
    scene.look(free=99 * MIB)
    assert scene.taken == [1, 2]
    scene.look(free=1000 * MIB)
    scene.look(free=1000 * MIB)
    assert scene.taken == [1, 2]


def test_the_folder_of_a_job_is_given_back_also_when_there_is_space_again(scene: Scene) -> None:
    first = scene.run(1, used=90 * MIB)
    scene.look(free=99 * MIB)
    scene.look(free=1000 * MIB)
    scene.runs.keep(replace(first, state=State.FINISHED, outcome=Outcome.OUTPUT_TOO_LARGE))
    for _ in range(2):
        scene.look(free=1000 * MIB)
    assert scene.folders.discarded == [first.task.job]


def test_the_folder_of_a_job_stays_while_a_run_of_it_goes_on(scene: Scene) -> None:
    first = scene.run(1, used=90 * MIB)
    scene.run(2)
    scene.look(free=99 * MIB)
    scene.runs.keep(replace(first, state=State.FINISHED, outcome=Outcome.OUTPUT_TOO_LARGE))
    scene.look(free=99 * MIB)
    assert scene.folders.discarded == []


@pytest.mark.parametrize(("seconds", "free"), [(PATIENCE_SECONDS, 99), (0.3, 70)])
def test_an_ended_run_that_gives_nothing_back_is_not_waited_for(
    scene: Scene, seconds: float, free: int
) -> None:
    first = scene.run(1, used=90 * MIB)
    scene.run(2, used=30 * MIB)
    scene.look(free=99 * MIB)
    scene.runs.keep(replace(first, ending=Outcome.OUTPUT_TOO_LARGE))
    scene.clock.advance(seconds)
    for _ in range(2):
        scene.look(free=free * MIB)
    assert scene.taken == [1, 2]


def test_a_run_whose_end_cannot_be_written_down_gives_its_space_back_first(scene: Scene) -> None:
    """A disk that is full to the last byte takes no journal entry either."""
    scene.run(1, used=90 * MIB)
    scene.look(free=99 * MIB)
    scene.clock.advance(RECORD_SECONDS)
    scene.look(free=90 * MIB)
    assert scene.engine.stopped == ["c1"]
    assert scene.folders.discarded == [1]
    assert scene.taken == [1, 1]


def test_nobody_is_ended_for_what_others_wrote(scene: Scene) -> None:
    scene.run(1)
    for free in (99, 20, 1):
        scene.look(free=free * MIB)
    assert scene.taken == []


@pytest.mark.parametrize("held", [Held(written=50 * MIB, is_complete=True), Held()])
def test_in_need_the_newest_run_is_ended_that_may_have_what_cannot_be_seen(scene: Scene, held: Held) -> None:
    for number in (1, 2, 3):
        scene.run(number)
    scene.held[ContainerId("c1")] = scene.held[ContainerId("c2")] = held
    scene.look(free=99 * MIB)
    assert scene.taken == []
    scene.look(free=49 * MIB)
    assert scene.taken == [2]


def test_an_engine_without_space_ends_no_run(scene: Scene) -> None:
    scene.run(1, used=90 * MIB)
    scene.free[ENGINE] = 1
    scene.look(free=1000 * MIB)
    assert scene.taken == []


def test_space_that_falls_fast_has_the_limits_looked_at(scene: Scene) -> None:
    assert scene.look(free=1000 * MIB) == LOOK_SECONDS
    scene.run(1)
    assert scene.look(free=1000 * MIB - FALL) == CLOSE_LOOK_SECONDS
    assert SpaceFell() not in scene.posted
    scene.look(free=1000 * MIB - FALL - 1)
    assert scene.posted.count(SpaceFell()) == 1
    scene.look(free=1000 * MIB - FALL - 2)
    assert scene.posted.count(SpaceFell()) == 1


def test_trouble_while_looking_is_said_once_and_the_next_look_is_another_try() -> None:
    with capture_logs() as said:
        scene = Scene()
        del scene.free[STATE]
        for _ in range(2):
            assert scene.watch.look_safely() == LOOK_SECONDS
        scene.free[STATE] = 50 * MIB
        scene.watch.look_safely()
    assert [entry["event"] for entry in said] == ["space_not_seen"]
    assert len(scene.posted) == 1


def test_a_disk_that_cannot_be_seen_ends_nobody(scene: Scene) -> None:
    scene.run(1, used=90 * MIB)
    scene.free[STATE] = None
    assert scene.watch.look() == LOOK_SECONDS
    assert scene.posted == []
