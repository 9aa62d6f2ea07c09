"""Moments that nobody can set: they count across processes, and not across starts of the machine."""

from pathlib import Path

import pytest

from node_agent.clocks import CautiousClock, SystemClock
from node_agent.domain.mark import Mark, seconds_since
from tests.doubles.clock import ManualClock


def test_time_passes_from_one_mark_to_another_of_the_same_boot() -> None:
    assert seconds_since(Mark("a", 10.0), now=Mark("a", 12.5)) == 2.5


@pytest.mark.parametrize("mark", [None, Mark("b", 10.0), Mark("a", 99.0)])
def test_what_nobody_can_know_counts_from_now(mark: Mark | None) -> None:
    assert seconds_since(mark, now=Mark("a", 12.5)) == 0.0


def test_a_mark_is_read_as_it_was_written() -> None:
    assert Mark.parse(str(Mark("4c1f-aa", 1234.5))) == Mark("4c1f-aa", 1234.5)


@pytest.mark.parametrize("text", ["", "12", "@", "x@boot", "12@"])
def test_what_is_no_mark_is_none(text: str) -> None:
    assert Mark.parse(text) is None


def test_two_processes_on_one_machine_count_from_the_same_start(tmp_path: Path) -> None:
    file = tmp_path / "boot_id"
    file.write_text("4c1f\n")
    first, second = SystemClock(file).mark(), SystemClock(file).mark()
    assert first.boot == second.boot == "4c1f"
    assert second.at >= first.at


def test_a_machine_without_a_name_for_its_start_counts_anew_in_each_process(tmp_path: Path) -> None:
    assert SystemClock(tmp_path / "none").mark().boot != SystemClock(tmp_path / "none").mark().boot


# --- the time things are tidied up by ---------------------------------------------------------------------------


def test_a_clock_that_is_set_forward_makes_nothing_old(clock: ManualClock) -> None:
    cautious = CautiousClock(clock)
    before = clock.now()
    clock.set_wall(by=86_400)
    clock.advance(10)
    assert cautious.now() == before + 10


def test_a_clock_that_is_set_back_makes_nothing_written_since_then_old(clock: ManualClock) -> None:
    cautious = CautiousClock(clock)
    clock.set_wall(by=-86_400)
    clock.advance(10)
    assert cautious.now() == clock.now()


def test_otherwise_time_passes_as_ever(clock: ManualClock) -> None:
    cautious = CautiousClock(clock)
    clock.advance(10)
    assert (cautious.now(), cautious.monotonic(), cautious.mark()) == (
        clock.now(),
        clock.monotonic(),
        clock.mark(),
    )
