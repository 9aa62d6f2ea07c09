"""Which runs with subtasks wait for them, and which work on: judged by the CPU that their containers use.

`ParentWatch` belongs to the control thread; `weigh` asks the engine and runs in a thread of its own.
"""

from collections.abc import Callable, Iterable, Mapping

from node_agent.domain.messages import ParentsWeighed
from node_agent.domain.ports import Runtime
from node_agent.domain.run import Run, RunId
from node_agent.errors import NodeAgentError

IDLE_SHARE = 0.15
"""Of one CPU: an algorithm that asks the server again and again stays far below, one that computes far above."""
SPAN_SECONDS = 0.4
"""Two readings must be so far apart to say anything."""
FRESH_SECONDS = 30.0
"""So long a judgement or a reading counts."""


class ParentWatch:
    """Judges parents by two readings of their CPU time; a parent nobody has judged yet counts as working."""

    def __init__(self) -> None:
        self._readings: dict[RunId, tuple[float, float]] = {}
        self._idle_since: dict[RunId, float] = {}

    def note(self, readings: Mapping[RunId, float | None], *, at: float) -> None:
        """Take in the CPU seconds of parents at the time *at*; None: the engine could not tell, so it counts as idle."""
        for run_id, seconds in readings.items():
            if seconds is None:
                self._idle_since[run_id] = at
            else:
                self._compare(run_id, seconds, at)

    def _compare(self, run_id: RunId, seconds: float, at: float) -> None:
        before = self._readings.get(run_id)
        if before is not None and at - before[0] < SPAN_SECONDS:
            return
        self._readings[run_id] = (at, seconds)
        if before is None or at - before[0] > FRESH_SECONDS:
            return
        if (seconds - before[1]) / (at - before[0]) < IDLE_SHARE:
            self._idle_since[run_id] = at
        else:
            self._idle_since.pop(run_id, None)

    def idle(self, now: float) -> frozenset[RunId]:
        """Return the parents that use next to no CPU."""
        return frozenset(run_id for run_id, at in self._idle_since.items() if now - at <= FRESH_SECONDS)

    def keep_only(self, parents: Iterable[RunId]) -> None:
        """Forget everything about runs that are no parents any more."""
        kept = set(parents)
        self._readings = {run_id: known for run_id, known in self._readings.items() if run_id in kept}
        self._idle_since = {run_id: at for run_id, at in self._idle_since.items() if run_id in kept}


def weigh(parents: Iterable[Run], runtime: Runtime, now: Callable[[], float]) -> ParentsWeighed:
    """Read the CPU time of the parents' containers."""
    readings = {run.id: _cpu_seconds(run, runtime) for run in parents}
    return ParentsWeighed(readings, now())


def _cpu_seconds(run: Run, runtime: Runtime) -> float | None:
    try:
        return None if run.container is None else runtime.cpu_seconds(run.container)
    except NodeAgentError:
        return None
