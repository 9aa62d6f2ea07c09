"""The runs that may not begin yet: whose turn it is, and why the others wait.

Belongs to the control thread. Must not know how a run is begun; domain/turns.py has the rules.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import count, islice

import structlog

from node_agent.domain.run import Run, RunId, State
from node_agent.domain.task import TaskId
from node_agent.domain.turns import (
    Bounds,
    Cause,
    Hindrance,
    Kind,
    Line,
    Lines,
    Load,
    Place,
    Researcher,
    Standing,
    admitted,
    depth_of,
    hindrance,
    in_turn,
    line_of,
    load_of,
    place_of,
    works,
)
from node_agent.parents import ParentWatch
from node_agent.runtable import RunTable

log = structlog.get_logger()

_GRAVE = frozenset({Cause.ENGINE, Cause.DISK})
_DRAINING = Hindrance(
    Cause.DRAIN, "the agent takes nothing new while it drains; the next start goes on with them"
)


class WaitingRoom:
    """Who waits among *runs*; *bounds* may be replaced at any time; *now* is the monotonic time."""

    def __init__(self, runs: RunTable, bounds: Bounds, now: Callable[[], float]) -> None:
        self.bounds = bounds
        self._runs = runs
        self._now = now
        self._waiting: dict[RunId, tuple[Line, Place]] = {}
        self._lines: dict[Line, list[Place]] = {}
        self._beginning: set[RunId] = set()
        self._parents = ParentWatch()
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
        line, place = line_of(run), place_of(run, depth_of(run, self._begun_run_of))
        self._waiting[run.id] = line, place
        insort(self._lines.setdefault(line, []), place)
        if line not in self._since:
            self._since[line] = next(self._counter)

    def _begun_run_of(self, task: TaskId) -> Run | None:
        run = self._runs.of_task(task)
        return None if run is None or run.state is State.RECEIVED else run

    def leave(self, run_id: RunId) -> None:
        """Note that the run neither waits nor begins any more: a step of it was done, or another one is."""
        self._step_out(run_id)
        self._beginning.discard(run_id)

    def _step_out(self, run_id: RunId) -> None:
        line, place = self._waiting.pop(run_id, (None, None))
        if line is None or place is None:
            return
        places = self._lines[line]
        del places[bisect_left(places, place)]
        if not places:
            del self._lines[line]

    def hold(self, cause: Cause, text: str) -> None:
        """Have everything wait because of *cause*; an empty *text* takes that back."""
        if text:
            self._held[cause] = text
        else:
            self._held.pop(cause, None)

    def places(self, limit: int) -> tuple[RunId, ...]:
        """Return the next *limit* runs in the order of their turns."""
        return tuple(islice(in_turn(self._lines, self._standing(self._in_flight())), limit))

    # --- parents ----------------------------------------------------------------------------------------------

    def parents_to_weigh(self) -> list[Run]:
        """Return the parents whose CPU time decides whether a run that waits may begin; none while none waits."""
        if not self._waiting or self._held:
            return []
        return [
            run
            for run in self._runs.begun()
            if run.has_subtasks and run.state is State.RUNNING and run.container is not None
        ]

    def weighed(self, readings: Mapping[RunId, float | None], *, at: float) -> None:
        """Take in how many CPU seconds parents have used; None where the engine could not tell."""
        self._parents.note(readings, at=at)
        self._parents.keep_only(run.id for run in self._runs.begun() if run.has_subtasks)

    # --- turns ------------------------------------------------------------------------------------------------

    def begin(self) -> list[Run]:
        """Return the runs whose turn it is; log it when the others have a new reason to wait."""
        return self._begin(lambda: self._lines, otherwise=None) if self._waiting else self._nobody()

    def begin_awaited(self) -> list[Run]:
        """Do so while the agent drains: only what running work waits for, which would never end without it."""
        return self._begin(self._awaited, otherwise=_DRAINING) if self._waiting else self._nobody()

    def _nobody(self) -> list[Run]:
        self._tell(None)
        return []

    def _begin(self, candidates: Callable[[], Lines], *, otherwise: Hindrance | None) -> list[Run]:
        held = next((Hindrance(cause, self._held[cause]) for cause in Cause if cause in self._held), None)
        in_flight = self._in_flight()
        self._note_who_works(in_flight)
        begun = [] if held is not None else self._admitted(candidates, in_flight)
        for run in begun:
            self._had_its_turn(run)
        if not self._waiting:
            self._tell(None)
        else:
            self._tell(held or hindrance(self._load(self._in_flight()), self.bounds) or otherwise)
        return begun

    def _admitted(self, candidates: Callable[[], Lines], in_flight: list[Run]) -> list[Run]:
        load = self._load(in_flight)
        # the lines are not looked at while nobody may begin: that would cost every turn as much as all who wait
        if load.working and hindrance(load, self.bounds) is not None:
            return []
        chosen = admitted(candidates(), self._standing(in_flight), load, self.bounds)
        return [self._runs[run_id] for run_id in chosen]

    def _had_its_turn(self, run: Run) -> None:
        (kind, _), _ = self._waiting[run.id]
        line = line_of(run)
        self._step_out(run.id)
        self._beginning.add(run.id)
        self._working[line] += 1
        self._since[line] = next(self._counter)
        self._in_a_row = self._in_a_row + 1 if kind is Kind.SUBTASK else 0

    def _note_who_works(self, in_flight: Iterable[Run]) -> None:
        """Recount the runs at work in each line; a line whose run just ended goes behind all that queued meanwhile."""
        before, idle = self._working, self._idle()
        self._working = Counter(
            line_of(run) for run in in_flight if works(run, beginning=self._beginning, idle=idle)
        )
        self._since |= {line: next(self._counter) for line in before - self._working}
        self._since = {
            line: since for line, since in self._since.items() if line in self._lines or line in self._working
        }

    # --- what the rules ask for -------------------------------------------------------------------------------

    def _awaited(self) -> Lines:
        """Return the lines of those that a run waits for which had its turn."""
        at_work = {run.task.id for run in self._runs.begun()}
        lines: dict[Line, list[Place]] = {}
        for run_id, (line, place) in self._waiting.items():
            if self._runs[run_id].task.parent_id in at_work:
                insort(lines.setdefault(line, []), place)
        return lines

    def _in_flight(self) -> list[Run]:
        """Return the runs that had their turn, those among them whose admission is under way."""
        beginning = [self._runs[run_id] for run_id in self._beginning]
        return [*self._runs.begun(), *(run for run in beginning if run.state is State.RECEIVED)]

    def _idle(self) -> frozenset[RunId]:
        return self._parents.idle(self._now())

    def _load(self, in_flight: Iterable[Run]) -> Load:
        return load_of(in_flight, beginning=self._beginning, idle=self._idle())

    def _standing(self, in_flight: Iterable[Run]) -> Standing:
        working: Counter[Researcher] = Counter()
        for (_, who), number in self._working.items():
            working[who] += number
        return Standing(
            working=working,
            held=self._load(in_flight).held,
            since=self._since,
            in_a_row=self._in_a_row,
            share=self.bounds.share,
        )

    # --- why --------------------------------------------------------------------------------------------------

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
