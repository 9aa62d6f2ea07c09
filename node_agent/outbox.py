"""The outbox: final reports the server does not have yet; which go now, and what is in the way of the others.

They go in order of age, several at once, and large ones never take every place: one that is huge or hangs holds nobody up.
While the server is known to be away one at a time finds out whether that is still so. Used by the control thread alone.
Must not know how a report is sent, nor whether it is tried again.
"""

from collections import Counter
from collections.abc import Callable

from node_agent.availability import Availability
from node_agent.domain.run import Run, RunId

AT_ONCE = 4
LARGE_AT_ONCE = 2
BLAMED_OFTEN = 5
LARGE = 1024 * 1024
"""Bytes of result and log from which a report counts as large."""
LONGEST_PAUSE_SECONDS = 300.0
"""Whatever else the server answers ends the pause: only a server that answers nothing at all is left in peace so long."""


class Outbox:
    """The reports that are owed, and those that are on their way."""

    def __init__(self, *, server: Availability, size_of: Callable[[RunId], int]) -> None:
        self._server = server
        self._size_of = size_of
        self._sizes: dict[RunId, int] = {}
        self._ready: dict[RunId, Run] = {}
        self._on_the_way: set[RunId] = set()
        self._problems: dict[RunId, str] = {}
        self._blamed: Counter[RunId] = Counter()
        self._failures = 0
        self._paused_until = 0.0

    def enter(self, run: Run) -> None:
        """Take in a run whose report may be tried now."""
        self._ready[run.id] = run

    def begin(self, now: float) -> list[Run]:
        """Choose the reports that go now; *now* is monotonic, here and below."""
        if self._is_paused(now):
            return []
        chosen = []
        for run in sorted(self._ready.values(), key=_age):
            if self._has_place(run.id):
                self._on_the_way.add(run.id)
                chosen.append(run)
        for run in chosen:
            del self._ready[run.id]
        return chosen

    def _has_place(self, run_id: RunId) -> bool:
        if len(self._on_the_way) >= (1 if self._server.problem else AT_ONCE):
            return False
        large = sum(self.size(other) >= LARGE for other in self._on_the_way)
        return large < LARGE_AT_ONCE or self.size(run_id) < LARGE

    def came_back(self, run_id: RunId) -> None:
        """Note that a report is not on its way any more."""
        self._on_the_way.discard(run_id)

    def failed(self, run_id: RunId, reason: str, *, now: float) -> None:
        """Note why a report did not arrive, before the server is held to be away for it; all others then wait too."""
        self._problems[run_id] = reason
        if not self._server.problem:
            self._blamed[run_id] += 1
        self._failures += 1
        self._paused_until = now + min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** min(self._failures, 10))

    def may_hurry(self, run_id: RunId) -> bool:
        """Tell whether a report is tried at once when the server answers: not one by which alone it seems away."""
        return self._blamed[run_id] < BLAMED_OFTEN

    def hurry(self) -> None:
        """Forget the pause: the server answers."""
        self._failures = 0
        self._paused_until = 0.0

    def forget(self, run_id: RunId) -> None:
        """Let a run go whose report is delivered, or refused for good."""
        self._ready.pop(run_id, None)
        self._sizes.pop(run_id, None)
        self._problems.pop(run_id, None)
        self._blamed.pop(run_id, None)

    def _is_paused(self, now: float) -> bool:
        return bool(self._server.problem) and now < self._paused_until

    def next_at(self, now: float) -> float | None:
        """Say until when reports wait that could go; None when none waits for time."""
        return self._paused_until if self._ready and self._is_paused(now) else None

    @property
    def is_sending(self) -> bool:
        """Tell whether any report is on its way."""
        return bool(self._on_the_way)

    def size(self, run_id: RunId) -> int:
        """Give the bytes of a report's result and log."""
        if run_id not in self._sizes:
            self._sizes[run_id] = self._size_of(run_id)
        return self._sizes[run_id]

    @property
    def problem(self) -> str:
        """Why the oldest report that was tried has not arrived; empty when all that were tried did."""
        return self._problems[min(self._problems)] if self._problems else ""


def _age(run: Run) -> tuple[float, RunId]:
    return run.finished_at or 0.0, run.id
