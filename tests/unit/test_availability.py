"""What is said of a party that comes and goes: each change once, absence once an hour, unsteadiness once."""

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.availability import (
    MANY_CHANGES,
    REMIND_SECONDS,
    UNSTEADY_SECONDS,
    connection_availability,
    server_availability,
)
from tests.doubles.clock import ManualClock


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


def events(logged: list[Any]) -> list[str]:
    return [entry["event"] for entry in logged]


def test_a_loss_and_a_return_are_one_line_each(clock: ManualClock, logged: list[Any]) -> None:
    party = server_availability(clock.monotonic)
    for _ in range(100):
        party.lost("no answer")
        clock.advance(2)
        party.look()
    assert party.problem == "no answer"
    assert party.back()
    assert not party.back()
    assert events(logged) == ["server_lost", "server_back"]


def test_a_long_absence_is_said_again_each_hour_and_no_more(clock: ManualClock, logged: list[Any]) -> None:
    party = server_availability(clock.monotonic)
    party.lost("no answer")
    for _ in range(60 * 3600 // 30):
        clock.advance(30)
        party.lost("no route")
        party.look()
    assert events(logged) == ["server_lost", *["server_still_lost"] * 60]
    assert logged[-1]["seconds"] == 60 * REMIND_SECONDS
    assert logged[-1]["reason"] == "no route"


def test_what_comes_and_goes_all_the_time_is_called_unsteady_once(
    clock: ManualClock, logged: list[Any]
) -> None:
    party = server_availability(clock.monotonic)
    for _ in range(600):
        party.lost("no answer")
        clock.advance(1)
        party.back()
        clock.advance(1)
        party.look()
    assert len(logged) == MANY_CHANGES
    assert events(logged)[-1] == "server_unsteady"
    assert party.problem == ""


@pytest.mark.parametrize(("away", "said"), [(True, "server_lost"), (False, "server_back")])
def test_what_has_settled_is_said_as_it_is(
    clock: ManualClock, logged: list[Any], away: bool, said: str
) -> None:
    party = server_availability(clock.monotonic)
    for _ in range(MANY_CHANGES):
        party.lost("no answer")
        party.back()
    if away:
        party.lost("gone")
    before = len(logged)
    clock.advance(UNSTEADY_SECONDS - 1)
    party.look()
    assert len(logged) == before
    clock.advance(1)
    party.look()
    assert events(logged)[before:] == [said]
    party.look()
    assert len(logged) == before + 1


def test_changes_far_apart_are_not_unsteady(clock: ManualClock, logged: list[Any]) -> None:
    party = server_availability(clock.monotonic)
    for _ in range(MANY_CHANGES):
        party.lost("no answer")
        party.back()
        clock.advance(UNSTEADY_SECONDS)
    assert "server_unsteady" not in events(logged)


def test_of_a_connection_nothing_is_said_before_it_stood_once(clock: ManualClock, logged: list[Any]) -> None:
    party = connection_availability(clock.monotonic)
    clock.advance(10 * REMIND_SECONDS)
    party.lost("no connection")
    party.look()
    assert logged == []
    assert party.back()
    assert events(logged) == ["server_online"]
