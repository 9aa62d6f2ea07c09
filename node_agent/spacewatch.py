"""Watches the disks that runs fill: no further run begins while one is short, and runs that filled it are ended.

Owns the choice of the run that has to end, and the pace of looking. Must not know how a run is ended. Everything here
happens in one thread, which may wait for disks and for the engine.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from node_agent.diskuse import DiskUses
from node_agent.domain.container import Phase
from node_agent.domain.diskuse import RunUse
from node_agent.domain.messages import Message, SpaceFell, SpaceSeen, SpaceTaken
from node_agent.domain.ports import Clock, RunFolders, Runtime
from node_agent.domain.run import Run, State
from node_agent.errors import OutputTooLarge
from node_agent.runtable import RunTable
from node_agent.space import amount, seen_free, shortage

log = structlog.get_logger()

LOOK_SECONDS: Final = 1.0
CLOSE_LOOK_SECONDS: Final = 0.25
"""While any algorithm works: a look costs microseconds, and a disk takes a gigabyte in a second."""
FALL: Final = 64 * 2**20
"""With so many bytes less than before, the limits of all running runs are looked at again."""
PATIENCE_SECONDS: Final = 10.0
"""So long an ended run may take to give its space back, before another one is ended."""
RECORD_SECONDS: Final = 1.0
"""After this the journal has the decision, unless the disk takes nothing any more."""
NOTEWORTHY: Final = 2**20
"""Who filled less is not to blame."""

_AGAIN = "The algorithm itself need not be at fault: the task can be sent again later."


@dataclass(frozen=True, slots=True)
class _Ended:
    """A run that was chosen to end."""

    run: Run
    reason: str
    at: float
    free: int


@dataclass(frozen=True, slots=True)
class _Suspect:
    run: Run
    use: RunUse


class SpaceWatch:
    """Looks at the disks; *places* come with that of the runs' folders first."""

    def __init__(
        self,
        *,
        places: Callable[[], Mapping[str, Path]],
        least: Callable[[], int],
        runs: RunTable,
        folders: RunFolders,
        uses: DiskUses,
        runtime: Runtime,
        post: Callable[[Message], None],
        clock: Clock,
        free: Callable[[Path], int | None] = seen_free,
    ) -> None:
        self._places = places
        self._least = least
        self._runs = runs
        self._folders = folders
        self._uses = uses
        self._runtime = runtime
        self._post = post
        self._clock = clock
        self._free = free
        self._told = ""
        self._trouble = ""
        self._free_before: int | None = None
        self._ended: _Ended | None = None

    def serve_forever(self) -> None:
        """Look again and again."""
        while True:
            time.sleep(self.look_safely())

    def look_safely(self) -> float:
        """Look once; whatever prevents it is said, and the next look is another try."""
        try:
            pause, trouble = self.look(), ""
        except Exception as error:  # noqa: BLE001 - without this thread nothing bounds the disk
            pause, trouble = LOOK_SECONDS, f"{type(error).__name__}: {error}"
        if trouble and trouble != self._trouble:
            log.warning("space_not_seen", reason=trouble)
        self._trouble = trouble
        return pause

    def look(self) -> float:
        """Look once, and return the seconds until the next look."""
        places, least = self._places(), self._least()
        self._tell(shortage(places, least=least, free=self._free))
        running = self._runs.running()
        free = self._free(next(iter(places.values())))
        if free is None:
            return LOOK_SECONDS
        if self._fell(free) and running:
            self._post(SpaceFell())
        if self._ended is not None:
            if not self._is_awaited(self._ended, free, least):
                self._ended = None  # what it gave back counts at the next look
        elif free < least:
            self._relieve(free, least, running)
        self._uses.forget_all_but({run.id for run in running})
        return CLOSE_LOOK_SECONDS if running else LOOK_SECONDS

    def _tell(self, found: str) -> None:
        if found != self._told:
            self._told = found
            self._post(SpaceSeen(found))

    def _fell(self, free: int) -> bool:
        before = free if self._free_before is None else self._free_before
        fell = free < before - FALL
        if fell or free > before or self._free_before is None:
            self._free_before = free
        return fell

    # --- while space is short -----------------------------------------------------------------------------------

    def _relieve(self, free: int, least: int, running: list[Run]) -> None:
        """End the one run that is most to blame."""
        ranked = _by_suspicion(self._suspects(running), is_critical=free < least // 2)
        suspect = next((suspect for suspect in ranked if self._works(suspect.run)), None)
        if suspect is None:
            return
        reason = _reason(suspect, free=free, least=least)
        log.warning(
            "run_ended_for_space",
            run_id=suspect.run.id,
            free=free,
            least=least,
            grown=suspect.use.grown,
            written=suspect.use.written,
        )
        self._ended = _Ended(suspect.run, reason, self._clock.monotonic(), free)
        self._post(SpaceTaken(suspect.run.id, reason))

    def _is_awaited(self, ended: _Ended, free: int, least: int) -> bool:
        now = self._runs.get(ended.run.id)
        if now is None or now.state >= State.FINISHED:
            self._give_job_folder_back(ended.run)
            return False
        waited = self._clock.monotonic() - ended.at
        if now.state is State.RUNNING and now.ending is None and waited >= RECORD_SECONDS:
            self._end_unrecorded(now, ended)
        is_falling = free < least and free <= ended.free - least // 4
        return waited < PATIENCE_SECONDS and not is_falling

    def _give_job_folder_back(self, run: Run) -> None:
        if not self._runs.job_goes_on(run.task.job):
            self._folders.discard_job(run.task.job)

    def _end_unrecorded(self, run: Run, ended: _Ended) -> None:
        """End a run whose ending nobody can write down: a disk that is full to the last byte has to get space first."""
        if run.container is not None:
            self._runtime.stop(run.container)
        self._folders.discard_work(run.id)
        self._post(SpaceTaken(run.id, ended.reason))

    def _works(self, run: Run) -> bool:
        """Check whether the container goes on: what an ended one leaves is about to be taken over and removed."""
        report = None if run.container is None else self._runtime.inspect(run.container)
        return report is not None and report.phase is Phase.RUNNING

    def _suspects(self, running: list[Run]) -> list[_Suspect]:
        return [_Suspect(run, self._use_of(run)) for run in running]

    def _use_of(self, run: Run) -> RunUse:
        try:
            return self._uses.measured(run, self._folders)
        except OutputTooLarge:  # too many folders within each other to count what lies in them
            return RunUse(total=2**63, grown=2**63, written=0, is_complete=False)
        except OSError:
            return RunUse(total=0, grown=0, written=0, is_complete=False)


def _by_suspicion(suspects: list[_Suspect], *, is_critical: bool) -> list[_Suspect]:
    """Order the runs that may have to end: those that grew, most first; in need also, newest first, what cannot be seen."""
    grown = [suspect for suspect in suspects if suspect.use.grown >= NOTEWORTHY]
    hidden = [
        suspect
        for suspect in suspects
        if suspect not in grown and (suspect.use.written >= NOTEWORTHY or not suspect.use.is_complete)
    ]
    return [
        *sorted(grown, key=lambda suspect: suspect.use.grown, reverse=True),
        *(sorted(hidden, key=lambda suspect: suspect.run.id, reverse=True) if is_critical else ()),
    ]


def _reason(suspect: _Suspect, *, free: int, least: int) -> str:
    found = (
        f"The algorithm was stopped because the disk of this node was running full: {amount(free)} were left, "
        f"and this node keeps {amount(least)} free (limits.min_free_disk)."
    )
    if suspect.use.grown >= NOTEWORTHY:
        shown = "" if suspect.use.grown >= 2**62 else f", by {amount(suspect.use.grown)}"
        return f"{found} Of the runs on this node it had grown most{shown}. {_AGAIN}"
    return f"{found} It was the newest of the runs that may have filled it. {_AGAIN}"
