import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from node_agent.domain.container import ContainerReport, EndedBy, Phase
from node_agent.domain.run import ContainerId, RunId
from node_agent.runtime.endings import REMEMBERED, events_in, with_its_end

ENDED_AT = 1_700_000_000.0


class Memory:
    """What an engine remembers: actions with their moments, some of them of our container."""

    def __init__(self, *ours: str, others: tuple[float, ...] = ()) -> None:
        self._ours = [("c1", action, ENDED_AT) for action in ours]
        self._all = [*(("c2", "start", at) for at in others), *self._ours]
        self.asked: list[Mapping[str, str]] = []

    def ask(self, parameters: Mapping[str, str]) -> bytes:
        self.asked.append(parameters)
        told = self._ours if "filters" in parameters else self._all
        return b"\n".join(
            json.dumps({"Action": action, "Actor": {"ID": of}, "timeNano": int(at * 1e9)}).encode()
            for of, action, at in told
        )


def ended(exit_code: int | None = 137, *, out_of_memory: bool = False) -> ContainerReport:
    report = ContainerReport(
        id=ContainerId("c1"),
        run_id=RunId(1),
        phase=Phase.EXITED,
        exit_code=exit_code,
        finished_at=ENDED_AT,
    )
    return replace(report, out_of_memory=out_of_memory)


def judged(report: ContainerReport, memory: Memory, *, replays: bool = True) -> tuple[bool, EndedBy]:
    found = with_its_end(report, memory.ask, replays=lambda: replays)
    return found.out_of_memory, found.ended_by


def test_a_container_that_ended_well_or_runs_is_not_asked_about() -> None:
    memory = Memory("kill", "die")
    for report in (ended(0), ended(None), ended(137, out_of_memory=True)):
        assert with_its_end(report, memory.ask, replays=lambda: True) == report
    assert memory.asked == []


def test_what_the_kernel_killed_ran_out_of_memory() -> None:
    assert judged(ended(), Memory("oom", "die")) == (True, EndedBy.ITSELF)
    assert judged(ended(), Memory("die")) == (True, EndedBy.ITSELF)


@pytest.mark.parametrize("exit_code", [1, 137, 143])
def test_what_somebody_asked_the_engine_to_end_was_ended_by_somebody(exit_code: int) -> None:
    assert judged(ended(exit_code), Memory("kill", "die", "stop")) == (False, EndedBy.SOMEBODY)


@pytest.mark.parametrize("exit_code", [1, 143, 255])
def test_what_ended_by_itself_did(exit_code: int) -> None:
    assert judged(ended(exit_code), Memory("die")) == (False, EndedBy.ITSELF)


@pytest.mark.parametrize("exit_code", [137, 143, 255])
def test_an_end_that_the_engine_did_not_see_came_with_the_engines_own(exit_code: int) -> None:
    assert judged(ended(exit_code), Memory()) == (False, EndedBy.ENGINE)
    after = tuple(ENDED_AT + second for second in range(REMEMBERED - 1))
    assert judged(ended(exit_code), Memory(others=after)) == (False, EndedBy.ENGINE)
    long_before = tuple(ENDED_AT - 600 + second for second in range(REMEMBERED + 50))
    assert judged(ended(exit_code), Memory(others=long_before)) == (False, EndedBy.ENGINE)


def test_an_end_that_may_be_forgotten_proves_nothing() -> None:
    after = tuple(ENDED_AT + second for second in range(REMEMBERED + 50))
    assert judged(ended(), Memory(others=after)) == (False, EndedBy.ITSELF)


def test_an_engine_that_shows_no_old_events_proves_nothing() -> None:
    assert judged(ended(), Memory(), replays=False) == (False, EndedBy.ITSELF)


def test_an_exit_code_of_the_algorithms_own_is_its_own_whatever_is_forgotten() -> None:
    assert judged(ended(3), Memory()) == (False, EndedBy.ITSELF)


def test_only_the_end_by_a_signal_is_worth_waiting_for_what_the_engine_notes_late() -> None:
    for exit_code, waits in ((137, True), (143, True), (1, False)):
        memory = Memory("die")
        judged(ended(exit_code), memory)
        assert ("until" in memory.asked[0]) is waits


def test_lines_that_cannot_be_read_are_left_out() -> None:
    assert events_in(b'nonsense\n{"Action": "die"}\n[]\n\n{"Action": "die", "timeNano": 2000000000}') == [
        *events_in(b'{"Action": "die", "timeNano": 2000000000}')
    ]
    assert len(events_in(b'{"Action": "die", "timeNano": 2000000000}')) == 1
