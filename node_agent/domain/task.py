"""What a task asks for, as the rest of the agent sees it; nothing here knows how the server writes it down."""

from dataclasses import dataclass, field
from typing import Any, NewType

TaskId = NewType("TaskId", int)
JobId = NewType("JobId", int)
OrganizationId = NewType("OrganizationId", int)
JobKey = NewType("JobKey", str)
"""Names a job for good: the server gives the number of a deleted job to the next one, perhaps another user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseRequest:
    """One database a task asks for, with what the researcher wants from it."""

    label: str
    query: str | None = None
    sheet_name: str | None = None
    preprocessing: tuple[dict[str, Any], ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question to some organizations: image, databases, and who asks."""

    id: TaskId
    job_id: JobId
    image: str
    collaboration_id: int
    parent_id: TaskId | None = None
    init_org_id: OrganizationId | None = None
    init_user_id: int | None = None
    init_user_name: str | None = None
    """What the server calls the user; the servers of vantage6 do not tell nodes."""
    study_id: int | None = None
    store_id: int | None = None
    databases: tuple[DatabaseRequest, ...] = ()

    @property
    def job(self) -> JobKey:
        """Name the job so that no two users ever share one; subtasks inherit their user."""
        return JobKey(f"{self.job_id}-{self.init_user_id or 0}")
