"""Two agents with one API key: each run is started by one of them, whoever claims it when."""

import pytest

from node_agent.company import PROBLEM, Company, take_beside_another
from node_agent.domain.claims import SETTLE_SECONDS, claim_time, is_own_claim
from node_agent.domain.lifecycle import Wait
from node_agent.domain.run import Run, RunId
from node_agent.errors import RunClosed
from tests.doubles.clock import ManualClock
from tests.doubles.core import ServerBook, make_open_run, make_run

RUN = RunId(1)
OURS, THEIRS = 1_700_000_000.123456, 1_700_000_000.654321


@pytest.fixture
def server() -> ServerBook:
    book = ServerBook()
    book.add(make_open_run(1))
    return book


def received(at: float) -> Run:
    return make_run(1, received_at=at)


@pytest.mark.parametrize("now", [OURS, OURS + 0.5, OURS + 0.9, OURS + 86_400.25, 1_800_000_000.0])
def test_a_claim_is_known_again_by_the_moment_the_run_was_received(now: float) -> None:
    claimed_at = claim_time(OURS, now=now)
    assert now - 1 < claimed_at <= now
    assert is_own_claim(OURS, claimed_at)
    assert not is_own_claim(THEIRS, claimed_at)


def test_a_mark_at_the_turn_of_a_second_survives_its_way_as_microseconds() -> None:
    assert is_own_claim(1_700_000_000.9999997, 1_700_000_005.0)
    assert is_own_claim(1_700_000_000.0, 1_700_000_004.9999996)


def test_a_free_run_is_claimed_and_taken_only_when_the_claim_has_stood(
    server: ServerBook, clock: ManualClock
) -> None:
    run = received(clock.now() - 0.25)
    assert take_beside_another(run, server=server, clock=clock) == Wait({}, seconds=SETTLE_SECONDS)
    assert take_beside_another(run, server=server, clock=clock) == Wait({}, seconds=SETTLE_SECONDS)
    clock.advance(SETTLE_SECONDS)
    assert take_beside_another(run, server=server, clock=clock) == server.entries[RUN].claimed_at


def test_a_run_that_the_other_has_is_left_to_it(server: ServerBook, clock: ManualClock) -> None:
    server.claim(RUN, at=clock.now() + 0.5)
    with pytest.raises(RunClosed, match="Another agent"):
        take_beside_another(received(clock.now()), server=server, clock=clock)
    assert server.entries[RUN].claimed_at == clock.now() + 0.5


def test_whoever_claims_last_has_the_run_and_the_other_lets_it_go(
    server: ServerBook, clock: ManualClock
) -> None:
    ours, theirs = received(clock.now() - 0.125), received(clock.now() - 0.625)
    take_beside_another(ours, server=server, clock=clock)
    server.claim(RUN, at=claim_time(theirs.received_at, now=clock.now()))
    clock.advance(SETTLE_SECONDS + 1)
    with pytest.raises(RunClosed):
        take_beside_another(ours, server=server, clock=clock)
    assert take_beside_another(theirs, server=server, clock=clock) == server.entries[RUN].claimed_at


def test_an_agent_that_died_after_its_claim_knows_it_again(server: ServerBook, clock: ManualClock) -> None:
    run = received(clock.now() - 0.25)
    server.claim(RUN, at=claim_time(run.received_at, now=clock.now()))
    clock.advance(SETTLE_SECONDS + 60)
    assert take_beside_another(run, server=server, clock=clock) == server.entries[RUN].claimed_at


def test_a_run_that_is_over_is_not_taken(server: ServerBook, clock: ManualClock) -> None:
    server.entries.clear()
    with pytest.raises(RunClosed):
        take_beside_another(received(clock.now()), server=server, clock=clock)


def test_company_is_a_problem_until_it_leaves() -> None:
    company = Company()
    assert (company.is_there(), company.problem) == (False, "")
    company.came("online")
    company.came("online")
    assert (company.is_there(), company.problem) == (True, PROBLEM)
    company.left()
    company.left()
    assert (company.is_there(), company.problem) == (False, "")
