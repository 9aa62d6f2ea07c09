"""The thread that lists open runs at the server.

It owns one queue of wishes and turns each into one listing. Inputs go to disk page by page, so that neither the mailbox
nor the journal ever holds one. It decides nothing: what a listing means is the control loop's business.
"""

import queue
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import structlog

from node_agent.domain.messages import ListingFailed, Message, RunsListed
from node_agent.domain.ports import Clock, OpenRun, RunFolders, Server
from node_agent.domain.run import RunId
from node_agent.domain.task import TaskId
from node_agent.errors import InputUnreadable, NodeAgentError, Transient

log = structlog.get_logger()

_EVERYTHING = None


class Lister:
    """Lists open runs when asked; wishes that wait already are not repeated."""

    def __init__(
        self,
        *,
        server: Server,
        folders: RunFolders,
        clock: Clock,
        is_open: Callable[[RunId], bool],
        post: Callable[[Message], None],
    ) -> None:
        self._server = server
        self._folders = folders
        self._clock = clock
        self._is_open = is_open
        self._post = post
        self._wishes: queue.SimpleQueue[TaskId | None] = queue.SimpleQueue()
        self._waiting: set[TaskId | None] = set()

    def ask(self, task_id: TaskId | None = _EVERYTHING) -> None:
        """Wish for the open runs of one task, or of all; called by the control thread."""
        if task_id not in self._waiting:
            self._waiting.add(task_id)
            self._wishes.put(task_id)

    def serve_forever(self) -> None:
        """Turn wishes into listings until the process ends."""
        while True:
            self.serve_one(self._wishes.get())

    def serve_one(self, task_id: TaskId | None) -> None:
        """Make one listing and post it, or post why there is none."""
        # A wish that arrives from here on is a new one: this listing may have missed its reason.
        self._waiting.discard(task_id)
        asked_at = self._clock.monotonic()
        try:
            # closed, so that what it keeps on disk is gone also when an input could not be stored
            with closing(self._server.open_runs(task_id)) as listed:
                runs = tuple(self._without_input(run) for run in listed)
        except NodeAgentError as error:
            self._post(ListingFailed(error, task_id))
        except Exception as error:
            # A listing that stumbles over one run must not be the last one.
            log.exception("listing_bug")
            self._post(ListingFailed(Transient(f"A listing failed ({type(error).__name__})."), task_id))
        else:
            self._post(RunsListed(runs, complete=task_id is _EVERYTHING, asked_at=asked_at))

    def _without_input(self, run: OpenRun) -> OpenRun:
        """Store the input of a run that is new here; what lies in a blob store is fetched once the run is admitted."""
        if run.fault or run.input_blob is not None or self._is_open(run.id):
            return replace(run, input=())
        try:
            self._folders.store_input(run.id, run.input)
        except InputUnreadable as error:
            return replace(run, input=(), fault=str(error))
        return replace(run, input=())
