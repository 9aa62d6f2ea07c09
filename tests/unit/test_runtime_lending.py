"""Which run may have which network namespace."""

import pytest

from node_agent.domain.run import ContainerId
from node_agent.runtime.lending import REPLACING_SECONDS, UNUSED_SECONDS, Lending
from tests.doubles.clock import ManualClock

A, B, C = ContainerId("a"), ContainerId("b"), ContainerId("c")
RUN, OTHER = ContainerId("run"), ContainerId("other")
MINE, YOURS = "average for me", "average for you"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def books(clock: ManualClock, *holders: ContainerId, most: int = 3) -> Lending:
    lending = Lending(most, now=clock.monotonic)
    for holder in holders:
        lending.add(holder)
    return lending


def used(lending: Lending, series: str, *, ended_well: bool = True) -> ContainerId:
    """Let a run of *series* come and go."""
    holder = lending.take(series)
    assert holder is not None
    lending.joined(RUN, holder)
    assert lending.left(RUN, ended_well=ended_well)
    return holder


def test_a_fresh_namespace_is_for_anybody_and_for_one_run_at_a_time(clock: ManualClock) -> None:
    lending = books(clock, A)
    assert lending.take(MINE) == A
    assert lending.take(MINE) is None
    assert lending.take(YOURS) is None


def test_a_namespace_is_handed_on_within_its_series(clock: ManualClock) -> None:
    lending = books(clock, A)
    assert [used(lending, MINE), used(lending, MINE), lending.take(MINE)] == [A, A, A]


def test_a_namespace_is_never_handed_on_to_another_series(clock: ManualClock) -> None:
    lending = books(clock, A)
    used(lending, MINE)
    assert lending.take(YOURS) is None


def test_a_run_prefers_the_namespace_of_its_series_to_a_fresh_one(clock: ManualClock) -> None:
    lending = books(clock, A, B)
    used(lending, MINE)
    assert lending.take(MINE) == A
    assert lending.take(YOURS) == B


def test_a_namespace_whose_run_did_not_end_well_is_for_nobody_and_goes(clock: ManualClock) -> None:
    lending = books(clock, A)
    used(lending, MINE, ended_well=False)
    assert lending.take(MINE) is None
    assert lending.let_go() == [A]


def test_a_namespace_that_nobody_joined_can_be_lent_again_within_the_series(clock: ManualClock) -> None:
    lending = books(clock, A)
    lending.take(MINE)
    lending.give_back(A)
    assert lending.take(YOURS) is None
    assert lending.take(MINE) == A


def test_a_container_leaves_once(clock: ManualClock) -> None:
    lending = books(clock, A)
    used(lending, MINE)
    lending.take(MINE)
    lending.joined(OTHER, A)
    # the first is removed only now
    assert not lending.left(RUN, ended_well=False)
    assert lending.take(MINE) is None


def test_one_is_wanted_while_there_is_room_and_none_fresh(clock: ManualClock) -> None:
    lending = books(clock, most=2)
    assert lending.is_one_wanted()
    lending.add(A)
    assert not lending.is_one_wanted()
    lending.take(MINE)
    assert lending.is_one_wanted()
    lending.add(B)
    lending.take(MINE)
    assert not lending.is_one_wanted()


def test_none_is_wanted_where_none_is_allowed(clock: ManualClock) -> None:
    assert not books(clock, most=0).is_one_wanted()


def test_what_waited_too_long_for_its_series_goes_and_what_is_fresh_stays(clock: ManualClock) -> None:
    lending = books(clock, A, B)
    used(lending, MINE)
    clock.advance(UNUSED_SECONDS - 1)
    assert lending.let_go() == []
    clock.advance(1)
    assert lending.let_go() == [A]
    assert lending.fresh == B


def test_what_waited_longest_makes_room_for_a_fresh_one_when_all_are_used(clock: ManualClock) -> None:
    lending = books(clock, A, B, most=2)
    used(lending, MINE)
    clock.advance(1)
    used(lending, YOURS)
    assert lending.let_go() == [A]
    assert lending.is_one_wanted()


def test_room_is_made_only_so_often(clock: ManualClock) -> None:
    lending = books(clock, A, most=1)
    used(lending, MINE)
    assert lending.let_go() == [A]
    lending.add(B)
    used(lending, YOURS)
    assert lending.let_go() == []
    clock.advance(REPLACING_SECONDS)
    assert lending.let_go() == [B]


def test_no_room_is_made_at_the_cost_of_a_run(clock: ManualClock) -> None:
    lending = books(clock, A, most=1)
    lending.take(MINE)
    assert lending.let_go() == []


def test_namespaces_of_runs_that_went_on_are_theirs_and_then_nobody_s(clock: ManualClock) -> None:
    lending = books(clock)
    lending.take_over({RUN: A})
    assert lending.has_joined(RUN)
    assert lending.take(MINE) is None
    assert lending.let_go() == []
    lending.left(RUN, ended_well=True)
    assert lending.take(MINE) is None
    assert lending.let_go() == [A]


def test_a_namespace_whose_holder_is_dead_is_not_lent_and_its_run_is_told(clock: ManualClock) -> None:
    lending = books(clock, A, B)
    lending.joined(RUN, lending.take(MINE) or C)
    assert lending.drop_all_but({B}) == [A]
    assert not lending.has_joined(RUN)
    assert lending.take(MINE) == B
    # what is noticed late does no harm
    assert not lending.left(RUN, ended_well=True)


def test_at_the_end_only_those_of_running_runs_stay(clock: ManualClock) -> None:
    lending = books(clock, A, B, C)
    lending.joined(RUN, lending.take(MINE) or C)
    assert lending.close() == [B, C]
    assert not lending.is_one_wanted()
    assert lending.holders == {A}
