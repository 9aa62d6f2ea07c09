"""The desk where jobs are taken in and handed out again: the compute API on one side, the agent's runs on the other.

To the agent it is where a run came from, as the coordinating server is for others: it lists what is open, is told how far
a run is, and takes the final report. To the API it is the place that knows every job. The books say what was promised;
the table of runs says how far it is.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from node_agent.compute.admitting import Admitted, RawAlgorithm
from node_agent.compute.ledger import ComputeJobId, GrantUsedUp, JobRecord, Ledger
from node_agent.compute.objects import Environment, Load, environment_object, job_object
from node_agent.compute.results import ResultFile, ResultStore
from node_agent.compute.signatures import Address
from node_agent.compute.wishes import Refused, Wish, resource_name
from node_agent.domain.assets import JobContract
from node_agent.domain.jobstatus import going_on
from node_agent.domain.messages import KillRequested, Message, RunsListed
from node_agent.domain.ports import Clock, OpenRun
from node_agent.domain.run import Run, RunId, State
from node_agent.domain.task import DatabaseRequest, JobId, Task, TaskId

log = structlog.get_logger()

FIRST_RUN = 1 << 40
"""Runs of jobs are counted from here: no coordinating server gives such numbers."""
MOST_LISTED = 100


class NoRoom(Exception):
    """There are as many jobs waiting as the owner allows."""


class JobDesk:
    """Takes jobs in, says how they are, and gives out what they left; every call may come from any thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        results: ResultStore,
        environments: Sequence[Environment],
        run_of: Callable[[RunId], Run | None],
        post: Callable[[Message], None],
        follow: Callable[[Run], Iterator[bytes]],
        clock: Clock,
        max_waiting: int,
    ) -> None:
        self._ledger = ledger
        self._results = results
        self._environments = {environment.id: environment for environment in environments}
        self._run_of = run_of
        self._post = post
        self._follow = follow
        self._clock = clock
        self._max_waiting = max_waiting

    # --- the consumer's side ----------------------------------------------------------------------------------

    def environment(self, name: str) -> Environment:
        """Find an environment; an empty name means the first. Raises Refused."""
        if not name:
            return next(iter(self._environments.values()))
        if name not in self._environments:
            raise Refused("", "Compute environment does not exist")
        return self._environments[name]

    def take_in(self, wish: Wish, admitted: Admitted, *, owner: Address) -> JobRecord:
        """Write a job down and set it in motion. Raises Refused, NoRoom."""
        if self._ledger.count_open() >= self._max_waiting:
            raise NoRoom
        environment = self.environment(wish.environment)
        written = _written(wish, admitted, environment)
        grants = [order for order in admitted.orders if self._ledger.grant(order) is not None]
        try:
            job = self._ledger.add_job(
                ComputeJobId(secrets.token_hex(16)),
                owner=owner,
                at=self._clock.now(),
                wish=written,
                grants=grants,
            )
        except GrantUsedUp:
            raise Refused(f"{resource_name(0)}.serviceId", "order_invalid") from None
        log.info("job_accepted", job_id=job.id, run_id=run_id_of(job), consumer=owner)
        self._post(RunsListed((open_run_of(job),), complete=False, asked_at=self._clock.monotonic()))
        return job

    def find(self, job_id: str) -> JobRecord | None:
        """Find a job that was not deleted."""
        return self._ledger.job(job_id)

    def jobs_of(self, owner: Address) -> list[JobRecord]:
        """List the jobs of a consumer, newest first."""
        return self._ledger.jobs_of(owner, limit=MOST_LISTED)

    def shown(self, job: JobRecord, *, base: str) -> dict[str, Any]:
        """Show a job as it is now."""
        run = None if job.finished_at is not None else self._run_of(run_id_of(job))
        return job_object(
            job,
            status=going_on(run),
            files=self.files(job),
            started_at=(job.ending or {}).get("started_at") or (run.started_at if run else None),
            base=base,
        )

    def stop(self, job: JobRecord) -> None:
        """Stop a job at the consumer's wish; one that has ended stays as it is."""
        self._ledger.ask_stop(job.id)
        self._post(KillRequested(frozenset({run_id_of(job)})))

    def delete(self, job: JobRecord) -> None:
        """Stop a job and let nothing of it remain."""
        if job.finished_at is None:
            self.stop(job)
        self._ledger.remove_job(job.id)
        self._results.remove(job.id)
        log.info("job_deleted", job_id=job.id, run_id=run_id_of(job))

    def files(self, job: JobRecord) -> tuple[ResultFile, ...]:
        """List what an ended job left; nothing before it ended."""
        return self._results.files(job.id) if job.finished_at is not None else ()

    def path(self, job: JobRecord, index: int) -> Path:
        """Say where a file of an ended job lies."""
        return self._results.path(job.id, index)

    def live_log(self, job: JobRecord) -> Iterator[bytes] | None:
        """Follow the log of a job that runs now; None when it does not, or when its log is not shared."""
        run = self._run_of(run_id_of(job))
        if run is None or run.state is not State.RUNNING or not job.wish.get("share_log"):
            return None
        return self._follow(run)

    def environments_shown(self, own_address: Address) -> list[dict[str, Any]]:
        """Show every environment as it is now."""
        return [
            environment_object(one, self.load(one), own_address=own_address, now=self._clock.now())
            for one in self._environments.values()
        ]

    def load(self, environment: Environment) -> Load:
        """Say how much goes on in an environment."""
        runs = [
            self._run_of(run_id_of(job))
            for job in self._ledger.open_jobs()
            if job.wish.get("environment") == environment.id
        ]
        running = sum(1 for run in runs if run is not None and going_on(run) > 1)
        return Load(running=running, queued=len(runs) - running)

    # --- the agent's side -------------------------------------------------------------------------------------

    def open_runs(self) -> Iterator[OpenRun]:
        """List the runs of every job that has not ended, oldest first."""
        return map(open_run_of, self._ledger.open_jobs())

    def forget_old(self) -> int:
        """Delete what jobs left that ended longer ago than their environment keeps results; say how many."""
        forgotten = 0
        for job in self._ledger.finished_before(self._clock.now()):
            kept = float(job.wish.get("keep_results", 0))
            if job.finished_at is not None and job.finished_at + kept < self._clock.now():
                self._results.remove(job.id)
                self._ledger.remove_job(job.id)
                forgotten += 1
        return forgotten


def run_id_of(job: JobRecord) -> RunId:
    """Give the number of a job's run."""
    return RunId(FIRST_RUN + job.number)


def job_number_of(run_id: RunId) -> int | None:
    """Give the number of the job a run belongs to; None when it came from the coordinating server."""
    return run_id - FIRST_RUN if run_id > FIRST_RUN else None


def open_run_of(job: JobRecord) -> OpenRun:
    """Give a job the form in which the agent takes runs in."""
    wish = job.wish
    number = run_id_of(job)
    return OpenRun(
        id=number,
        task=Task(
            id=TaskId(number),
            job_id=JobId(number),
            image=f"{wish['image']}@{wish['digest']}",
            collaboration_id=0,
            init_user_name=job.owner,
            databases=tuple(DatabaseRequest(label=label) for label in wish["labels"]),
        ),
        input=(json.dumps(wish["input"]).encode(),),
    )


def _written(wish: Wish, admitted: Admitted, environment: Environment) -> dict[str, Any]:
    """Give a job the form in which the books keep it: everything looked up, nothing left to look up again."""
    algorithm = admitted.algorithm
    raw = isinstance(algorithm, RawAlgorithm)
    longest = environment.longest if wish.longest is None else min(wish.longest, environment.longest)
    return {
        "labels": [data_set.label for data_set in admitted.data_sets],
        "inputs": [data_set.did for data_set in admitted.data_sets],
        "orders": list(admitted.orders),
        "algorithm": "" if isinstance(algorithm, RawAlgorithm) else algorithm.did,
        "image": algorithm.image,
        "digest": algorithm.digest,
        "entrypoint": algorithm.entrypoint,
        "contract": str(JobContract.OCEAN if isinstance(algorithm, RawAlgorithm) else algorithm.contract),
        "input": dict(wish.algorithm.custom),
        "code": algorithm.code if isinstance(algorithm, RawAlgorithm) else None,
        "user_data": [dict(entry.user_data) for entry in wish.data_sets],
        "environment": environment.id,
        "limits": {"cpus": environment.cpus, "memory": environment.memory, "disk": environment.disk},
        "longest": longest,
        "keep_results": environment.keep_results,
        "share_log": all(data_set.share_log for data_set in admitted.data_sets),
        "metadata": dict(wish.metadata),
        "viewers": list(wish.viewers),
        "newer": wish.newer,
        "raw": raw,
    }
