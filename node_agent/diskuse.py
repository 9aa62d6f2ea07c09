"""How much of the disk each running run uses, and how much of that came since it began.

Owns the memory of the beginnings. Must not know how open files are found, or what follows from what is measured.
"""

from collections.abc import Callable, Collection
from typing import Final

from node_agent.domain.diskuse import Held, RunUse
from node_agent.domain.ports import RunFolders
from node_agent.domain.run import ContainerId, Run, RunId

BEGINNING_SECONDS: Final = 2.0
"""What is measured within this time of the start is the run's beginning."""


def _nothing_seen(_container: ContainerId, _pid: int | None) -> Held:
    return Held()


class DiskUses:
    """Measures what runs use; any thread may ask."""

    def __init__(self, held: Callable[[ContainerId, int | None], Held] = _nothing_seen) -> None:
        self._held = held
        self._at_first: dict[RunId, int] = {}

    def measured(
        self,
        run: Run,
        folders: RunFolders,
        *,
        pid: int | None = None,
        running_for: float | None = None,
    ) -> RunUse:
        """Measure a run with a container; *pid* is its first process, if known. Raises OutputTooLarge."""
        held = Held() if run.container is None else self._held(run.container, pid)
        total = folders.used_bytes(run.id, run.task.job) + held.unnamed
        if running_for is not None and running_for < BEGINNING_SECONDS:
            self._at_first.setdefault(run.id, total)
        return RunUse(
            total=total,
            grown=max(0, total - self._at_first.get(run.id, 0)),
            written=held.written,
            is_complete=held.is_complete,
        )

    def forget_all_but(self, run_ids: Collection[RunId]) -> None:
        """Forget the beginnings of all other runs."""
        for run_id in self._at_first.keys() - run_ids:
            self._at_first.pop(run_id, None)
