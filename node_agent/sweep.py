"""The sweep: what carries our name but belongs to no open run is removed.

Strays come from crashes between two steps, from listings that were overtaken, and from journals that were lost. A
container is made only for a run that is known, so an unknown one is a stray at once; a folder may be younger than the
message that will make its run known, and gets some grace.
"""

from collections.abc import Callable

from node_agent.domain.ports import Clock, RunFolders, Runtime
from node_agent.domain.run import RunId
from node_agent.domain.task import JobKey

FOLDER_GRACE_SECONDS = 600.0
JOB_KEEP_SECONDS = 86400.0
"""A job may send its next subtask much later: its temporary folder stays this long after the last run began."""


def sweep(
    *,
    runtime: Runtime,
    folders: RunFolders,
    clock: Clock,
    run_is_open: Callable[[RunId], bool],
    job_is_open: Callable[[JobKey], bool],
) -> int:
    """Remove strays and give their number. Raises EngineUnreachable, DiskFull."""
    removed = 0
    for container in runtime.list_containers():
        if container.run_id is not None and not run_is_open(container.run_id):
            runtime.remove(container.id)
            removed += 1
    for run_id in folders.stored_runs(before=clock.now() - FOLDER_GRACE_SECONDS):
        if not run_is_open(run_id):
            folders.remove(run_id)
            removed += 1
    for job in folders.idle_jobs(before=clock.now() - JOB_KEEP_SECONDS):
        if not job_is_open(job):
            folders.remove_job(job)
            removed += 1
    return removed
