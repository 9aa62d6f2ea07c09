"""The tables of the lifecycle, walked: total, only upwards, and every state comes to its end."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from node_agent.domain.jobstatus import (
    NUMBER_OF_OUTCOME,
    NUMBER_OF_STATE,
    PUBLISHING,
    RUNNING,
    WORDS,
    ending_of,
    going_on,
    number_of,
)
from node_agent.domain.lifecycle import (
    EDGES,
    STATUS_OF_OUTCOME,
    STATUS_OF_STATE,
    STEPS,
    Advance,
    advance,
    needs_announcement,
    next_step,
    status_of,
)
from node_agent.domain.run import FIRST_JOB_RUN, ContainerId, Goal, Outcome, State, Status
from node_agent.errors import IllegalTransition, RunFailed
from node_agent.steps import STEP_FUNCTIONS
from tests.doubles.core import make_run

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"
BEFORE_THE_END = [state for state in State if state < State.FINISHED]
AFTER_THE_END = [state for state in State if state >= State.FINISHED]


def outcome_in(state: State) -> Outcome | None:
    return Outcome.COMPLETED if state >= State.FINISHED else None


# --- the tables -----------------------------------------------------------------------------------------------


def test_the_tables_are_total() -> None:
    assert set(EDGES) == set(State)
    assert set(STEPS) == set(State)
    assert all(set(steps) == set(Goal) for steps in STEPS.values())
    assert set(NUMBER_OF_STATE) == set(State)
    assert set(STATUS_OF_OUTCOME) == set(Outcome)
    assert set(STATUS_OF_STATE) == set(BEFORE_THE_END)
    assert set(NUMBER_OF_OUTCOME) == set(Outcome)


def test_states_only_grow() -> None:
    assert all(after > before for before, followers in EDGES.items() for after in followers)


def test_every_state_reaches_removed_and_nothing_else_is_an_end() -> None:
    for state in State:
        reached = {state}
        while new := {after for before in reached for after in EDGES[before]} - reached:
            reached |= new
        assert State.REMOVED in reached
    assert [state for state in State if not EDGES[state]] == [State.REMOVED]


def test_no_run_is_removed_before_it_was_reported() -> None:
    assert [before for before in State if State.REMOVED in EDGES[before]] == [State.REPORTED]
    assert [before for before in State if State.REPORTED in EDGES[before]] == [State.FINISHED]


def test_every_run_can_be_ended_before_its_end() -> None:
    assert all(State.FINISHED in EDGES[state] for state in BEFORE_THE_END)


def test_every_step_of_the_table_is_a_function() -> None:
    named = {step for steps in STEPS.values() for step in steps.values() if step is not None}
    assert named | {"announce", "verify"} == set(STEP_FUNCTIONS)


def test_codes_grow_with_the_states() -> None:
    codes = [NUMBER_OF_STATE[state] for state in State]
    assert codes == sorted(codes)


def test_every_failure_of_a_run_has_an_outcome_with_a_status() -> None:
    kinds = RunFailed.__subclasses__()
    assert len(kinds) >= 8
    assert all(kind.outcome in STATUS_OF_OUTCOME for kind in kinds)
    assert Outcome.COMPLETED not in {kind.outcome for kind in kinds}


# --- moving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_a_run_moves_along_edges_and_no_other_way(before: State, after: State) -> None:
    run = make_run(state=before, outcome=outcome_in(before))
    step = Advance(after, {"outcome": outcome_in(after)})
    if after in EDGES[before]:
        assert advance(run, step).state is after
    else:
        with pytest.raises(IllegalTransition, match=f"{before.name} to {after.name}"):
            advance(run, step)


def test_moving_carries_the_facts_and_keeps_the_rest() -> None:
    moved = advance(make_run(has_subtasks=True), Advance(State.ADMITTED, {"claimed_at": 5.0}))
    assert (moved.claimed_at, moved.has_subtasks, moved.state) == (5.0, True, State.ADMITTED)


def test_no_run_finishes_without_an_outcome() -> None:
    with pytest.raises(IllegalTransition, match="outcome None"):
        advance(make_run(), Advance(State.FINISHED, {}))


def test_no_run_has_an_outcome_before_it_finished() -> None:
    with pytest.raises(IllegalTransition, match="outcome killed"):
        advance(make_run(), Advance(State.ADMITTED, {"outcome": Outcome.KILLED}))


@pytest.mark.parametrize("new", [Outcome.KILLED, None])
def test_an_outcome_is_written_once(new: Outcome | None) -> None:
    run = make_run(state=State.FINISHED, outcome=Outcome.COMPLETED)
    with pytest.raises(IllegalTransition):
        advance(run, Advance(State.REPORTED, {"outcome": new}))


# --- what is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", BEFORE_THE_END)
def test_before_the_end_the_state_is_told(state: State) -> None:
    assert status_of(make_run(state=state)) is STATUS_OF_STATE[state]
    assert number_of(make_run(state=state)) == NUMBER_OF_STATE[state]


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("state", AFTER_THE_END)
def test_after_the_end_the_outcome_is_told(state: State, outcome: Outcome) -> None:
    run = make_run(state=state, outcome=outcome)
    assert status_of(run) is STATUS_OF_OUTCOME[outcome]
    if state >= State.REPORTED:
        assert number_of(run) == NUMBER_OF_OUTCOME[outcome]


# --- numbers ----------------------------------------------------------------------------------------------------

MARKS: list[dict[str, object]] = [
    {},
    {"claimed_at": 1.0},
    {"image_id": "sha256:1"},
    {"container": ContainerId("c")},
    {"started_at": 2.0},
    {"exit_code": 1},
]
"""What a run has learned when it is in each of its states."""


def is_bad(outcome: Outcome) -> bool:
    return NUMBER_OF_OUTCOME[outcome] != NUMBER_OF_OUTCOME[Outcome.COMPLETED]


WAYS = [
    (last, outcome)
    for last in BEFORE_THE_END
    for outcome in Outcome
    # an image, for example, cannot be missing once it was started
    if not is_bad(outcome) or min(NUMBER_OF_STATE[last], RUNNING) < NUMBER_OF_OUTCOME[outcome]
]


@pytest.mark.parametrize(("last", "outcome"), WAYS)
def test_numbers_never_fall_wherever_and_however_a_run_ends(last: State, outcome: Outcome) -> None:
    bad = is_bad(outcome)
    seen, facts = [], {}
    for state, learned in zip(BEFORE_THE_END[:last], MARKS, strict=False):
        facts |= learned if bad or "exit_code" not in learned else {"exit_code": 0}
        seen.append(number_of(make_run(state=state, **facts)))
    seen += [number_of(make_run(state=state, outcome=outcome, **facts)) for state in AFTER_THE_END]
    assert seen == sorted(seen)
    assert seen[-1] == NUMBER_OF_OUTCOME[outcome] == ending_of(make_run(outcome=outcome)).status


def test_a_job_that_nobody_began_waits() -> None:
    assert going_on(None) == NUMBER_OF_STATE[State.RECEIVED]


def test_every_number_has_its_words() -> None:
    assert {*NUMBER_OF_STATE.values(), *NUMBER_OF_OUTCOME.values()} <= set(WORDS)


def test_no_job_is_over_before_its_last_word_was_written() -> None:
    run = make_run(state=State.REMOVED, outcome=Outcome.COMPLETED)
    assert going_on(run) == PUBLISHING


def test_the_run_of_a_job_is_announced_to_nobody() -> None:
    run = make_run(number=FIRST_JOB_RUN, state=State.RUNNING, announced=Status.INITIALIZING)
    assert run.is_job
    assert not needs_announcement(run)


@pytest.mark.parametrize(
    ("state", "announced", "needed"),
    [
        (State.RECEIVED, Status.PENDING, False),
        (State.ADMITTED, Status.PENDING, True),
        (State.CREATED, Status.INITIALIZING, False),
        (State.RUNNING, Status.INITIALIZING, True),
        (State.RUNNING, Status.PENDING, True),
        (State.RUNNING, Status.ACTIVE, False),
        (State.ADMITTED, Status.ACTIVE, False),
        (State.RUNNING, Status.KILLED, False),
    ],
)
def test_only_a_later_word_is_announced(state: State, announced: Status, *, needed: bool) -> None:
    run = make_run(state=state, announced=announced)
    assert needs_announcement(run) is needed
    assert (next_step(run, may_announce=True) == "announce") is needed
    assert next_step(run, may_announce=False) == STEPS[state][Goal.RUN]


def test_a_run_that_is_to_end_announces_nothing() -> None:
    run = make_run(state=State.RUNNING, announced=Status.INITIALIZING, ending=Outcome.KILLED)
    assert next_step(run, may_announce=True) == "stop"


@pytest.mark.parametrize("state", AFTER_THE_END)
def test_the_final_word_is_reported_and_not_announced(state: State) -> None:
    run = make_run(state=state, outcome=Outcome.COMPLETED, announced=Status.INITIALIZING)
    assert next_step(run, may_announce=True) == STEPS[state][Goal.RUN]


@pytest.mark.parametrize("state", State)
def test_a_run_is_to_stop_as_soon_as_its_ending_is_decided(state: State) -> None:
    run = make_run(state=state, ending=Outcome.KILLED, outcome=outcome_in(state))
    assert run.goal is Goal.STOP
    expected = "stop" if state < State.FINISHED else STEPS[state][Goal.RUN]
    assert next_step(run, may_announce=True) == expected


def test_the_undisturbed_way_passes_every_state() -> None:
    way = [State.RECEIVED]
    while followers := EDGES[way[-1]]:
        way.append(min(followers))
    assert way == list(State)
    assert all(STEPS[before][Goal.RUN] for before, _ in pairwise(way))


# --- the page -------------------------------------------------------------------------------------------------


def drawn_diagram() -> str:
    """Draw EDGES: solid lines are the undisturbed way, dotted ones the early end."""
    lines = ["```mermaid", "flowchart LR"]
    for before, followers in EDGES.items():
        for after in sorted(followers):
            early = after is State.FINISHED and before is not State.CAPTURED
            arrow = "-. stop .->" if early else f"-- {STEPS[before][Goal.RUN]} -->"
            lines.append(f"  {before.name} {arrow} {after.name}")
    return "\n".join([*lines, "```"])


def drawn_states() -> str:
    rows = [
        "| State | Step when it goes on | Step when it is to end | Status told | Status code |",
        "|---|---|---|---|---|",
    ]
    for state in State:
        going, ending = (_code(STEPS[state][goal]) for goal in (Goal.RUN, Goal.STOP))
        told = STATUS_OF_STATE.get(state, "by outcome")
        rows.append(f"| `{state.name}` | {going} | {ending} | {told} | {NUMBER_OF_STATE[state]} |")
    return "\n".join(rows)


def drawn_outcomes() -> str:
    rows = ["| Outcome | Status told | Status code |", "|---|---|---|"]
    for outcome in Outcome:
        code = NUMBER_OF_OUTCOME.get(outcome, NUMBER_OF_STATE[State.REPORTED])
        rows.append(f"| `{outcome}` | {STATUS_OF_OUTCOME[outcome]} | {code} |")
    return "\n".join(rows)


def _code(step: str | None) -> str:
    return f"`{step}`" if step else "—"


DRAWN = {"diagram": drawn_diagram, "states": drawn_states, "outcomes": drawn_outcomes}


@pytest.mark.parametrize("part", DRAWN)
def test_the_page_shows_what_the_tables_say(part: str) -> None:
    match = re.search(f"<!-- {part} -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert match is not None, f"{PAGE} has no part {part}"
    assert match[1] == DRAWN[part](), "the page is older than the tables: put the text above in its place"
