"""Steps that hang: their runs end all the same, others get their turn, and what comes late is ignored."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from node_agent import pool as pool_module
from node_agent.domain.lifecycle import Advance, Wait
from node_agent.domain.messages import KillRequested, Message, StepDone
from node_agent.domain.run import Outcome, RunId, State
from node_agent.domain.turns import Bounds
from node_agent.pool import StepPool
from node_agent.progress import RUN_TIME_GRACE_SECONDS
from node_agent.stepports import Ports
from node_agent.steps import STEP_FUNCTIONS
from node_agent.stuck import (
    ABANDONED,
    KILL_AFTER_SECONDS,
    KILL_AGAIN_SECONDS,
    STEP_SECONDS,
    StuckStep,
    bound_of,
)
from tests.doubles.core import make_run
from tests.unit.test_agent import CAPTURED, REMOVED, REPORTED, STOPPED, Bench

SECONDS = 30.0


def hangs(step: str, run_id: int = 1) -> StuckStep:
    return StuckStep(RunId(run_id), step, 99.0, is_replaced=True)


@pytest.fixture
def bench(quick_dir: Path) -> Iterator[Bench]:
    bench = Bench(quick_dir, concurrent_runs=1)
    bench.bring_to(State.RUNNING)
    if bench.step_of() == "announce":
        bench.succeed(1, Wait({}, seconds=0))
    assert bench.step_of() == "observe"
    yield bench
    bench.journal.close()


# --- the control loop -----------------------------------------------------------------------------------------


def test_a_killed_run_whose_step_hangs_has_its_container_ended_and_is_finished_without_that_step(
    bench: Bench,
) -> None:
    bench.receive(2)
    bench.tell(KillRequested(frozenset({RunId(1)})))
    assert bench.killed == [], "the step may be over at once"
    bench.wait(KILL_AFTER_SECONDS + 1)
    assert bench.killed == [RunId(1)]
    assert bench.step_of() == "observe", "not stuck yet"
    bench.wait(KILL_AGAIN_SECONDS + 1)
    assert bench.killed == [RunId(1)] * 2
    late = bench.pool.in_flight.pop(RunId(1))
    bench.stuck = (hangs("observe"),)
    bench.wait(1.1)
    assert bench.step_of() == "stop"
    bench.succeed(1, STOPPED)
    assert bench.step_of(2) == "admit", "the other run has its turn"
    with capture_logs() as logged:
        bench.tell(StepDone(RunId(1), late[0], CAPTURED, None))
    assert [entry["event"] for entry in logged] == ["step_came_late"]
    assert bench.step_of() == "report"
    bench.succeed(1, REPORTED, REMOVED)
    assert bench.row_of()["outcome"] == "killed"


@pytest.mark.parametrize("result", [CAPTURED, None])
def test_a_step_that_comes_back_after_its_run_is_gone_does_nothing(
    bench: Bench, result: Advance | None
) -> None:
    bench.tell(KillRequested(None))
    bench.pool.in_flight.clear()
    bench.stuck = (hangs("observe"),)
    bench.wait(1.1)
    bench.succeed(1, STOPPED, REPORTED, REMOVED)
    bench.tell(StepDone(RunId(1), "observe", result, None if result else RuntimeError("late")))
    assert len(bench.runs) == 0
    assert bench.row_of()["outcome"] == "killed"


def test_run_time_is_enforced_although_observe_hangs(bench: Bench) -> None:
    bench.agent._room.bounds = Bounds(slots=1, run_time=100.0)
    bench.wait(100 + RUN_TIME_GRACE_SECONDS - 1)
    assert bench.runs[RunId(1)].ending is None
    bench.wait(2)
    assert bench.runs[RunId(1)].ending is Outcome.TIME_LIMIT
    assert "this node allows 100" in bench.runs[RunId(1)].reason
    bench.wait(1.1)
    assert bench.killed == [RunId(1)]


def test_a_run_that_goes_on_waits_for_its_step_and_status_says_that_it_hangs(bench: Bench) -> None:
    bench.stuck = (hangs("observe"),)
    with capture_logs() as logged:
        assert bench.snapshot().stuck_steps == ("step observe of run 1 takes 99 s",)
        bench.snapshot()
    assert [entry["event"] for entry in logged] == ["step_stuck"]
    assert bench.step_of() == "observe"
    bench.stuck = ()
    bench.succeed(1, Wait({}))
    assert bench.snapshot().stuck_steps == ()


def test_a_step_that_ends_soon_is_left_to_end(bench: Bench) -> None:
    bench.tell(KillRequested(None))
    bench.succeed(1, Wait({}))
    assert bench.step_of() == "stop"
    bench.wait(KILL_AFTER_SECONDS + 5)
    assert bench.killed == []


def test_every_step_has_a_bound_or_rules_of_its_own() -> None:
    assert STEP_FUNCTIONS.keys() - STEP_SECONDS.keys() == {"pull", "report"}
    assert bound_of("pull") == float("inf")
    assert STEP_FUNCTIONS.keys() - ABANDONED == {"pull", "report", "stop", "remove"}


# --- the threads ----------------------------------------------------------------------------------------------


class Hanging:
    """Ports whose server and engine hang for the runs named until they are let go."""

    def __init__(self, *hanging: int) -> None:
        self.let_go = threading.Event()
        self.hanging = hanging
        self.ended: queue.Queue[str] = queue.Queue()
        self.begun: queue.Queue[int] = queue.Queue()

    @property
    def server(self) -> Any:
        return self

    @property
    def runtime(self) -> Any:
        return self

    def is_open(self, run_id: int) -> bool:
        self.begun.put(run_id)
        if run_id in self.hanging:
            self.let_go.wait(SECONDS)
        return True

    def stop(self, container: str) -> None:
        self.ended.put(container)


def test_threads_that_hang_are_replaced_and_do_not_keep_a_kill_waiting() -> None:
    posted: queue.Queue[Message] = queue.Queue()
    now = [0.0]
    hanging = Hanging(1, 2)
    pool = StepPool(ports_of=lambda _: cast("Ports", hanging), post=posted.put, threads=2, now=lambda: now[0])
    pool.start()
    for number in (1, 2, 3):
        pool.submit("verify", make_run(number))
    assert {hanging.begun.get(timeout=SECONDS) for _ in range(2)} == {1, 2}
    pool.kill(replace(make_run(1), state=State.RUNNING, container="container-1"))
    assert hanging.ended.get(timeout=SECONDS) == "container-1"
    assert pool.stuck() == ()
    now[0] = bound_of("verify") + 1
    assert {(step.run_id, step.is_replaced) for step in pool.stuck()} == {(1, True), (2, True)}
    assert cast("StepDone", posted.get(timeout=SECONDS)).run_id == RunId(3)
    hanging.let_go.set()
    late = {cast("StepDone", posted.get(timeout=SECONDS)).run_id for _ in range(2)}
    assert late == {1, 2}
    # the thread that ended the container may not have noted yet that it is done
    deadline = time.monotonic() + SECONDS
    while pool.stuck():
        assert time.monotonic() < deadline, pool.stuck()


def test_only_so_many_threads_are_replaced_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MOST_REPLACED", 1)
    now = [0.0]
    hanging = Hanging(1, 2)
    pool = StepPool(
        ports_of=lambda _: cast("Ports", hanging), post=lambda _: None, threads=2, now=lambda: now[0]
    )
    pool.start()
    for number in (1, 2):
        pool.submit("verify", make_run(number))
        hanging.begun.get(timeout=SECONDS)
    now[0] = bound_of("verify") + 1
    for _ in range(2):
        assert sorted(step.is_replaced for step in pool.stuck()) == [False, True]
    assert any("could not be replaced" in str(step) for step in pool.stuck())
    hanging.let_go.set()
