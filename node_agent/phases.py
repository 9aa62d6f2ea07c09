"""How long each run takes to begin: until its image is here, and then until its container runs.

Counts only time in which the server could be asked, in this process: an agent that starts anew counts anew. What a phase
that lasts too long ends with stands here too. Must not know how a run is ended.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from node_agent.domain.run import Outcome, Run, RunId, State
from node_agent.domain.turns import Bounds


class Phase(StrEnum):
    """What has its own limit of time before a run works."""

    PULL = "pull"
    START = "start"


PHASE_OF_STATE: Mapping[State, Phase] = {
    State.ADMITTED: Phase.PULL,
    State.PULLED: Phase.START,
    State.CREATED: Phase.START,
}
_OUTCOME: Mapping[Phase, Outcome] = {Phase.PULL: Outcome.TIME_LIMIT, Phase.START: Outcome.START_FAILED}
_WORDS: Mapping[Phase, str] = {
    Phase.PULL: "This node could not get the image and the input ready within {limit:.0f} seconds (limits.pull_time).",
    Phase.START: "This node could not have the container started within {limit:.0f} seconds (limits.start_time).",
}


def _limit(phase: Phase, bounds: Bounds) -> float:
    return bounds.pull_time if phase is Phase.PULL else bounds.start_time


@dataclass(frozen=True, slots=True)
class Overdue:
    """A run whose phase lasts too long, and how it ends."""

    run: Run
    phase: Phase
    limit: float
    trouble: str
    """What was last in the way; empty when nothing was told."""

    @property
    def outcome(self) -> Outcome:
        """Give the outcome it means."""
        return _OUTCOME[self.phase]

    @property
    def reason(self) -> str:
        """Say why, for the researcher."""
        words = _WORDS[self.phase].format(limit=self.limit)
        return f"{words} {self.trouble}".rstrip()


class PhaseWatch:
    """Adds up the time of the phases; belongs to the control thread."""

    def __init__(self, *, now: float) -> None:
        self._looked_at = now
        self._spent: dict[RunId, tuple[Phase, float]] = {}
        self._troubles: dict[RunId, str] = {}

    def note(self, run_id: RunId, trouble: str) -> None:
        """Remember what was last in the way of a run; an empty text takes it back."""
        if trouble:
            self._troubles[run_id] = trouble
        else:
            self._troubles.pop(run_id, None)

    def skip(self, now: float) -> None:
        """Let the time until now not count."""
        self._looked_at = now

    def overdue(self, runs: Iterable[Run], bounds: Bounds, *, now: float) -> list[Overdue]:
        """Count the time until now, and give the runs whose phase lasts too long."""
        passed, self._looked_at = now - self._looked_at, now
        in_phase = [(run, PHASE_OF_STATE[run.state]) for run in runs if _counts(run)]
        before = self._spent
        self._spent = {run.id: (phase, _longer(before.get(run.id), phase, passed)) for run, phase in in_phase}
        self._troubles = {run_id: text for run_id, text in self._troubles.items() if run_id in self._spent}
        return [
            Overdue(run, phase, _limit(phase, bounds), self._troubles.get(run.id, ""))
            for run, phase in in_phase
            if self._spent[run.id][1] > _limit(phase, bounds)
        ]


def _counts(run: Run) -> bool:
    return run.state in PHASE_OF_STATE and run.ending is None


def _longer(before: tuple[Phase, float] | None, phase: Phase, passed: float) -> float:
    """Add what passed; a phase that was not there at the last look begins with it."""
    return before[1] + passed if before is not None and before[0] is phase else 0.0
