"""The life of a run as tables: which state follows which, which step comes next, what the server is told.

Rules of this file: the tables are total, states only grow, every state can reach REMOVED, and no function here
looks at anything but its arguments. The diagram in the documentation is drawn from EDGES.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from node_agent.domain.run import Goal, Outcome, Run, State, Status
from node_agent.errors import IllegalTransition

EDGES: Mapping[State, frozenset[State]] = {
    State.RECEIVED: frozenset({State.ADMITTED, State.FINISHED}),
    State.ADMITTED: frozenset({State.PULLED, State.FINISHED}),
    State.PULLED: frozenset({State.CREATED, State.FINISHED}),
    State.CREATED: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.CAPTURED, State.FINISHED}),
    State.CAPTURED: frozenset({State.FINISHED}),
    State.FINISHED: frozenset({State.REPORTED}),
    State.REPORTED: frozenset({State.REMOVED}),
    State.REMOVED: frozenset(),
}

STEPS: Mapping[State, Mapping[Goal, str | None]] = {
    State.RECEIVED: {Goal.RUN: "admit", Goal.STOP: "stop"},
    State.ADMITTED: {Goal.RUN: "pull", Goal.STOP: "stop"},
    State.PULLED: {Goal.RUN: "create", Goal.STOP: "stop"},
    State.CREATED: {Goal.RUN: "start", Goal.STOP: "stop"},
    State.RUNNING: {Goal.RUN: "observe", Goal.STOP: "stop"},
    State.CAPTURED: {Goal.RUN: "filter", Goal.STOP: "stop"},
    State.FINISHED: {Goal.RUN: "report", Goal.STOP: "report"},
    State.REPORTED: {Goal.RUN: "remove", Goal.STOP: "remove"},
    State.REMOVED: {Goal.RUN: None, Goal.STOP: None},
}

STATUS_OF_STATE: Mapping[State, Status] = {
    State.RECEIVED: Status.PENDING,
    State.ADMITTED: Status.INITIALIZING,
    State.PULLED: Status.INITIALIZING,
    State.CREATED: Status.INITIALIZING,
    State.RUNNING: Status.ACTIVE,
    State.CAPTURED: Status.ACTIVE,
}

STATUS_OF_OUTCOME: Mapping[Outcome, Status] = {
    Outcome.COMPLETED: Status.COMPLETED,
    Outcome.CRASHED: Status.CRASHED,
    Outcome.OUT_OF_MEMORY: Status.CRASHED,
    Outcome.FAILED: Status.FAILED,
    Outcome.NOT_ALLOWED: Status.NOT_ALLOWED,
    Outcome.IMAGE_MISSING: Status.NO_DOCKER_IMAGE,
    Outcome.DATABASE_MISSING: Status.FAILED,
    Outcome.START_FAILED: Status.START_FAILED,
    Outcome.OUTPUT_TOO_LARGE: Status.FAILED,
    Outcome.TIME_LIMIT: Status.FAILED,
    Outcome.KILLED: Status.KILLED,
    Outcome.LOST: Status.UNKNOWN_ERROR,
    Outcome.CLOSED: Status.KILLED,
    Outcome.BUG: Status.UNKNOWN_ERROR,
}


@dataclass(frozen=True, slots=True)
class Advance:
    """A step got the run to state *to*; *facts* are the fields of the run it learned."""

    to: State
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something happens to the run, or until *seconds* from now.

    *facts* are fields of the run the step learned without moving it.
    """

    facts: Mapping[str, Any]
    seconds: float | None = None


StepResult = Advance | Wait


def advance(run: Run, step: Advance) -> Run:
    """Move *run* along one edge, or refuse."""
    if step.to not in EDGES[run.state]:
        raise IllegalTransition(f"Run {run.id} cannot go from {run.state.name} to {step.to.name}.")
    moved = replace(run, state=step.to, **step.facts)
    if (moved.outcome is not None) != (moved.state >= State.FINISHED):
        raise IllegalTransition(f"Run {run.id} in {moved.state.name} has outcome {moved.outcome}.")
    if run.outcome is not None and moved.outcome is not run.outcome:
        raise IllegalTransition(f"The outcome of run {run.id} is written already.")
    return moved


def status_of(run: Run) -> Status:
    """Say what the server is told about *run*."""
    if run.outcome is not None:
        return STATUS_OF_OUTCOME[run.outcome]
    return STATUS_OF_STATE[run.state]


_ORDER = (Status.PENDING, Status.INITIALIZING, Status.ACTIVE)


def needs_announcement(run: Run) -> bool:
    """Tell whether the server has an older word for *run* than the one that is true now."""
    if run.is_job:
        return False  # whoever wants to know of a job asks
    if run.goal is Goal.STOP or run.state >= State.FINISHED or run.announced not in _ORDER:
        return False
    return _ORDER.index(status_of(run)) > _ORDER.index(run.announced)


def next_step(run: Run, *, may_announce: bool) -> str | None:
    """Choose the one step that brings *run* closer to its end; *may_announce* is off after a failed try."""
    if may_announce and needs_announcement(run):
        return "announce"
    return STEPS[run.state][run.goal]
