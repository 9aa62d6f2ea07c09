"""The runs that may not begin yet: whose turn it is, and why the others wait.

Belongs to the control thread. Must not know how a run is begun; domain/turns.py has the rules.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count, islice

import structlog

from node_agent.domain.run import Run, RunId, State
from node_agent.domain.turns import (
    Bounds,
    Cause,
    Hindrance,
    Kind,
    Line,
    Load,
    Researcher,
    Standing,
    admitted,
    depths,
    hindrance,
    in_turn,
    line_of,
    load_of,
    works,
)
from node_agent.runtable import RunTable

log = structlog.get_logger()

_GRAVE = frozenset({Cause.ENGINE, Cause.DISK})
_DRAINING = Hindrance(
    Cause.DRAIN, "the agent takes nothing new while it drains; the next start goes on with them"
)


class WaitingRoom:
    """Who waits among *runs*; *bounds* may be replaced at any time."""

    def __init__(self, runs: RunTable, bounds: Bounds) -> None:
        self.bounds = bounds
        self._runs = runs
        self._waiting: dict[RunId, Line] = {}
        self._lines: Counter[Line] = Counter()
        self._beginning: set[RunId] = set()
        self._held: dict[Cause, str] = {}
        self._why: Hindrance | None = None
        self._working: Counter[Line] = Counter()
        self._since: dict[Line, int] = {}
        self._counter = count(1)
        self._in_a_row = 0

    @property
    def reason(self) -> str:
        """Why runs wait; empty when none does."""
        return "" if self._why is None else self._why.text

    def enter(self, run: Run) -> None:
        """Have the run wait for its turn."""
        self._step_out(run.id)
        line = self._waiting[run.id] = line_of(run)
        self._lines[line] += 1
        if line not in self._since:
            self._since[line] = next(self._counter)

    def leave(self, run_id: RunId) -> None:
        """Note that the run neither waits nor begins any more: a step of it was done, or another one is."""
        self._step_out(run_id)
        self._beginning.discard(run_id)

    def _step_out(self, run_id: RunId) -> None:
        line = self._waiting.pop(run_id, None)
        if line is not None:
            self._lines[line] -= 1
            if not self._lines[line]:
                del self._lines[line]

    def hold(self, cause: Cause, text: str) -> None:
        """Have everything wait because of *cause*; an empty *text* takes that back."""
        if text:
            self._held[cause] = text
        else:
            self._held.pop(cause, None)

    def places(self, limit: int) -> tuple[RunId, ...]:
        """Give the next *limit* runs in the order of their turns."""
        return tuple(run.id for run in islice(in_turn(self._everyone(), self._standing()), limit))

    def begin(self) -> list[Run]:
        """Give the runs whose turn it is, and say so when there is a new reason for the others to wait."""
        return self._begin(self._everyone, otherwise=None) if self._waiting else self._nobody()

    def begin_awaited(self) -> list[Run]:
        """Do so while the agent drains: only what running work waits for, which would never end without it."""
        return self._begin(self._awaited, otherwise=_DRAINING) if self._waiting else self._nobody()

    def _nobody(self) -> list[Run]:
        self._tell(None)
        return []

    def _begin(self, candidates: Callable[[], list[Run]], *, otherwise: Hindrance | None) -> list[Run]:
        held = next((Hindrance(cause, self._held[cause]) for cause in Cause if cause in self._held), None)
        in_flight = self._in_flight()
        load = load_of(in_flight, beginning=self._beginning)
        self._note_who_works(in_flight)
        begun = [] if held is not None else self._admitted(candidates, load)
        for run in begun:
            self._had_its_turn(run)
        load = Load(load.working + len(begun), load.parents)
        self._tell((held or self._hindrance(load) or otherwise) if self._waiting else None)
        return begun

    def _admitted(self, candidates: Callable[[], list[Run]], load: Load) -> list[Run]:
        # nobody asks who waits while there is no room: that would cost every turn as much as all who wait
        if all(hindrance(kind, load, self.bounds) is not None for kind in Kind):
            return []
        return list(admitted(candidates(), self._standing(), load, self.bounds))

    def _had_its_turn(self, run: Run) -> None:
        kind, _ = line = self._waiting[run.id]
        self._step_out(run.id)
        self._beginning.add(run.id)
        self._working[line] += 1
        self._since[line] = next(self._counter)
        self._in_a_row = self._in_a_row + 1 if kind is Kind.SUBTASK else 0

    def _note_who_works(self, in_flight: Iterable[Run]) -> None:
        """Count who works; a turn lasts until its run does not, so that who came meanwhile is before who had it."""
        before = self._working
        self._working = Counter(line_of(run) for run in in_flight if works(run, beginning=self._beginning))
        self._since |= {line: next(self._counter) for line in before - self._working}
        self._since = {
            line: since for line, since in self._since.items() if line in self._lines or line in self._working
        }

    # --- what the rules ask for -------------------------------------------------------------------------------

    def _everyone(self) -> list[Run]:
        return [self._runs[run_id] for run_id in self._waiting]

    def _awaited(self) -> list[Run]:
        """Give those that a run waits for which had its turn."""
        at_work = {run.task.id for run in self._runs.begun()}
        return [run for run in self._everyone() if run.task.parent_id in at_work]

    def _in_flight(self) -> list[Run]:
        """Give the runs that had their turn, those among them whose admission is under way."""
        beginning = [self._runs[run_id] for run_id in self._beginning]
        return [*self._runs.begun(), *(run for run in beginning if run.state is State.RECEIVED)]

    def _standing(self) -> Standing:
        working: Counter[Researcher] = Counter()
        for (_, who), number in self._working.items():
            working[who] += number
        return Standing(working=working, since=self._since, depth=depths(self._runs), in_a_row=self._in_a_row)

    # --- why --------------------------------------------------------------------------------------------------

    def _hindrance(self, load: Load) -> Hindrance | None:
        kinds = {kind for kind, _ in self._lines}
        found = (hindrance(kind, load, self.bounds) for kind in Kind if kind in kinds)
        return next(filter(None, found), None)

    def _tell(self, why: Hindrance | None) -> None:
        before, self._why = self._why, why
        if why is None:
            if before is not None:
                log.info("runs_wait_no_longer")
        elif before is None or before.cause is not why.cause:
            facts = {"cause": str(why.cause), "reason": why.text, "waiting": len(self._waiting)}
            if why.cause in _GRAVE:
                log.warning("runs_wait", **facts)
            else:
                log.info("runs_wait", **facts)
