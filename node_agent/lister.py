"""The thread that lists open runs at the server.

It owns one queue of wishes and turns each into one listing. Inputs go to disk page by page, so that neither the mailbox
nor the journal ever holds one. It decides nothing: what a listing means is the control loop's business.
"""

import queue
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import structlog

from node_agent.domain.messages import ListingFailed, Message, RunsListed
from node_agent.domain.ports import Clock, OpenRun, RunFolders, Server
from node_agent.domain.run import RunId
from node_agent.domain.task import TaskId
from node_agent.errors import (
    InputChanged,
    InputUnreadable,
    ListingShifted,
    NodeAgentError,
    ServerUnreachable,
    Transient,
)

log = structlog.get_logger()

LISTING_SECONDS = 60.0
"""While the server is away, a whole listing is tried so often; in between it is only knocked at."""
BATCH = 25
"""So many new runs are passed on before the listing they stand in is read to its end: of a long one the first can begin."""
MANY_WISHES = 3
"""More than so many at once, after a burst of new tasks, are one listing of everything."""
_EVERYTHING = None


@dataclass(frozen=True, slots=True)
class _Silence:
    """The server is away: why, how long it asked to be left alone, when a whole listing was last tried."""

    error: ServerUnreachable
    until: float
    listed_at: float


class Lister:
    """Lists open runs when asked; wishes that wait already are not repeated."""

    def __init__(
        self,
        *,
        server: Server,
        folders: RunFolders,
        clock: Clock,
        is_open: Callable[[RunId], bool],
        was_open: Callable[[RunId], bool],
        post: Callable[[Message], None],
    ) -> None:
        self._server = server
        self._folders = folders
        self._clock = clock
        self._is_open = is_open
        self._was_open = was_open
        self._post = post
        self._wishes: queue.SimpleQueue[TaskId | None] = queue.SimpleQueue()
        self._waiting: set[TaskId | None] = set()
        self._silence: _Silence | None = None

    def ask(self, task_id: TaskId | None = _EVERYTHING) -> None:
        """Wish for the open runs of one task, or of all; called by the control thread."""
        if task_id not in self._waiting:
            self._waiting.add(task_id)
            self._wishes.put(task_id)

    def serve_forever(self) -> None:
        """Turn wishes into listings until the process ends."""
        while True:
            self.serve_waiting()

    def serve_waiting(self) -> None:
        """Wait for a wish and serve all there are by then: many of them by one listing of everything."""
        wishes = [self._wishes.get()]
        with suppress(queue.Empty):
            while True:
                wishes.append(self._wishes.get_nowait())
        if len(wishes) > MANY_WISHES:
            # wishes that arrive from here on are new ones
            self._waiting.difference_update(wishes)
            wishes = [_EVERYTHING]
        for wish in wishes:
            self.serve_one(wish)

    def serve_one(self, task_id: TaskId | None) -> None:
        """Make one listing and post it, or post why there is none."""
        # A wish that arrives from here on is a new one: this listing may have missed its reason.
        self._waiting.discard(task_id)
        asked_at = self._clock.monotonic()
        try:
            self._knock_first(asked_at)
            # closed, so that what it keeps on disk is gone also when an input could not be stored
            with closing(self._server.open_runs(task_id)) as listed:
                runs, all_of_them = self._read(listed, asked_at)
        except NodeAgentError as error:
            self._note(error, asked_at)
            self._post(ListingFailed(error, task_id))
        except Exception as error:
            # A listing that stumbles over one run must not be the last one.
            log.exception("listing_bug")
            self._post(ListingFailed(Transient(f"A listing failed ({type(error).__name__})."), task_id))
        else:
            self._silence = None
            complete = all_of_them and task_id is _EVERYTHING
            self._post(RunsListed(runs, complete=complete, asked_at=asked_at))

    def _read(self, listed: Iterable[OpenRun], asked_at: float) -> tuple[tuple[OpenRun, ...], bool]:
        """Store the inputs of what is listed, pass new ones on meanwhile, and say whether these were all."""
        runs: list[OpenRun] = []
        try:
            for run in listed:
                runs.append(self._without_input(run))
                if len(runs) % BATCH == 0 and not self._is_open(run.id):
                    self._post(RunsListed(tuple(runs[-BATCH:]), complete=False, asked_at=asked_at))
        except ListingShifted as error:
            log.debug("listing_shifted", runs=len(runs), reason=str(error))
            return tuple(runs), False
        return tuple(runs), True

    def _knock_first(self, now: float) -> None:
        """While the server is away, ask for next to nothing; now and then for all of it, in case only that works."""
        if self._silence is None:
            return
        if now < self._silence.until:
            raise self._silence.error
        if now < self._silence.listed_at + LISTING_SECONDS:
            self._server.knock()

    def _note(self, error: NodeAgentError, now: float) -> None:
        """Remember that the server is away, since when nothing but a knock was tried, and how long it wants to be left."""
        if not isinstance(error, ServerUnreachable):
            self._silence = None
            return
        before = self._silence
        if before is not None and now < before.until:
            return
        recent = before is not None and now < before.listed_at + LISTING_SECONDS
        listed_at = before.listed_at if before is not None and recent else now
        self._silence = _Silence(error, until=now + error.after, listed_at=listed_at)

    def _without_input(self, run: OpenRun) -> OpenRun:
        """Store the input of a run that is new here; what lies in a blob store is fetched once the run is admitted."""
        # a number that is claimed and was here is that run's, not another one's: nobody would ever fetch its input
        is_over = run.claimed_at is not None and self._was_open(run.id)
        if run.fault or run.input_blob is not None or self._is_open(run.id) or is_over:
            return replace(run, input=())
        try:
            digest = self._folders.store_input(run.id, run.input)
        except InputUnreadable as error:
            return replace(run, input=(), fault=str(error))
        except InputChanged as error:
            log.warning("input_changed", run_id=run.id, reason=error.message)
            return replace(run, input=(), fault=str(error))
        return replace(run, input=(), input_digest=digest)
