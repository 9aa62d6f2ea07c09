"""Where the runs of jobs come from and go to: the job desk in the form in which steps know a server.

Nothing here leaves this machine. Must not know how a container is made.
"""

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from node_agent.compute.ledger import JobRecord
from node_agent.domain.ports import FinalReport
from node_agent.domain.run import BlobId, Run, RunId, Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId, TaskId
from node_agent.errors import InputUnreadable, RunClosed


class Endings(Protocol):
    """Who hears how jobs end."""

    def is_open(self, job: JobRecord) -> bool:
        """Tell whether the job has no ending yet."""

    def finish(self, job: JobRecord, run: Run, final: FinalReport) -> None:
        """Keep what a job left, and write down how it ended. Raises DiskFull."""


class JobOrigin:
    """The origin of one job's run; *job* is None when the books know nothing of it: then nobody waits for it."""

    def __init__(self, endings: Endings, job: JobRecord | None, run: Run) -> None:
        self._endings = endings
        self._job = job
        self._run = run

    def is_open(self, run_id: RunId) -> bool:
        """Tell whether the job is still wanted."""
        del run_id
        return self._job is not None and self._endings.is_open(self._job)

    def claimed_at(self, run_id: RunId) -> None:
        """Say that nobody else could have taken the run."""
        del run_id

    def claim(self, run_id: RunId, *, at: float) -> None:
        """Make sure that the job is still wanted. Raises RunClosed."""
        del at
        if not self.is_open(run_id):
            raise RunClosed("The job is closed.")

    def announce(self, run_id: RunId, status: Status) -> None:
        """Say nothing: whoever wants to know of a job asks."""
        del run_id, status

    def container_token(self, task_id: TaskId, image: str) -> Secret:
        """Give a credential that nobody knows, so that it opens nothing: jobs have nothing to say to a server."""
        del task_id, image
        return Secret(secrets.token_urlsafe(32))

    def open_input(self, blob: BlobId) -> AbstractContextManager[Iterator[bytes]]:
        """Refuse: the input of a job is never in a blob store."""
        del blob
        raise InputUnreadable("The input of a job cannot be in a blob store.")

    def store_result(self, run_id: RunId, final: FinalReport) -> BlobId:
        """Refuse: the result of a job is never in a blob store."""
        del run_id, final
        raise RunClosed("The result of a job cannot be in a blob store.")

    def report(self, run_id: RunId, final: FinalReport) -> None:
        """Hand over what the job left. Raises RunClosed, DiskFull."""
        del run_id
        if self._job is None:
            raise RunClosed("The books of the compute API know nothing of this job.")
        self._endings.finish(self._job, self._run, final)

    def find_task(self, task_id: TaskId) -> None:
        """Know no other tasks."""
        del task_id

    def organization_name(self, organization_id: OrganizationId) -> None:
        """Know no organizations."""
        del organization_id

    def store_url(self, store_id: int) -> None:
        """Know no algorithm stores."""
        del store_id
