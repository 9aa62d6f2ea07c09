"""The desk where jobs are taken in and handed out again: the compute API on one side, the agent's runs on the other.

To the agent it is where a run came from, as the coordinating server is for others: it lists what is open, is told how far
a run is, and takes the final report. To the API it is the place that knows every job. The books say what was promised;
the table of runs says how far it is. A job waits in the books until its environment has a free place; one thread, the
desk's own, hands jobs over.
"""

import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from node_agent.compute.admitting import Admitted, RawAlgorithm
from node_agent.compute.ledger import ComputeJobId, GrantUsedUp, JobRecord, Ledger, TooManyOpen
from node_agent.compute.objects import Environment, Load, environment_object, job_object
from node_agent.compute.results import ResultFile, ResultStore
from node_agent.compute.signatures import Address
from node_agent.compute.wishes import Refused, Wish, resource_name
from node_agent.domain.assets import CatalogueAlgorithm, JobContract
from node_agent.domain.jobstatus import (
    EXPIRED_IN_QUEUE,
    QUEUED,
    STOPPED_IN_QUEUE,
    JobEnding,
    ending_of,
    going_on,
)
from node_agent.domain.messages import JobsHandedOver, KillRequested, Message
from node_agent.domain.oceancontract import RAW
from node_agent.domain.ports import Clock, FinalReport, OpenRun
from node_agent.domain.run import FIRST_JOB_RUN, Outcome, Run, RunId, State
from node_agent.domain.task import DatabaseRequest, JobId, Task, TaskId
from node_agent.errors import NodeAgentError

log = structlog.get_logger()

MOST_LISTED = 100
TEND_SECONDS = 5.0
_OVERDUE_SECONDS = 10.0
"""A job that was handed over and has no run by then is handed over again: the agent could not write it down."""
_WITH_OUTPUTS = frozenset({Outcome.COMPLETED, Outcome.CRASHED, Outcome.OUT_OF_MEMORY})


class NoRoom(Exception):
    """There are as many jobs waiting as the owner allows."""


class NoFreePlace(Exception):
    """The environment is full, and the consumer does not want to wait."""


class JobDesk:
    """Takes jobs in, says how they are, and gives out what they left; every call may come from any thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        results: ResultStore,
        environments: Sequence[Environment],
        run_of: Callable[[RunId], Run | None],
        store_input: Callable[[RunId, Iterable[bytes]], object],
        post: Callable[[Message], None],
        follow: Callable[[Run], Iterator[bytes]],
        clock: Clock,
        max_waiting: int,
    ) -> None:
        self._ledger = ledger
        self._results = results
        self._environments = {environment.id: environment for environment in environments}
        self._run_of = run_of
        self._store_input = store_input
        self._post = post
        self._follow = follow
        self._clock = clock
        self._max_waiting = max_waiting
        self._news = threading.Event()
        self._handed_over: dict[int, float] = {}

    # --- the consumer's side ----------------------------------------------------------------------------------

    def environment(self, name: str) -> Environment:
        """Find an environment; an empty name means the first. Raises Refused."""
        if not name:
            return next(iter(self._environments.values()))
        if name not in self._environments:
            raise Refused("", "Compute environment does not exist")
        return self._environments[name]

    def take_in(self, wish: Wish, admitted: Admitted, *, owner: Address) -> JobRecord:
        """Write a job down and set it in motion. Raises Refused, NoRoom, NoFreePlace."""
        environment = self.environment(wish.environment)
        if wish.queue_patience == 0 and self._open_in(environment) >= environment.max_jobs:
            raise NoFreePlace
        grants = [order for order in admitted.orders if self._ledger.grant(order) is not None]
        try:
            job = self._ledger.add_job(
                ComputeJobId(secrets.token_hex(16)),
                owner=owner,
                at=self._clock.now(),
                wish=_written(wish, admitted, environment),
                content=_content(wish, admitted),
                grants=grants,
                most_open=self._max_waiting,
            )
        except GrantUsedUp:
            raise Refused(f"{resource_name(0)}.serviceId", "order_invalid") from None
        except TooManyOpen:
            raise NoRoom from None
        log.info(
            "job_accepted",
            job_id=job.id,
            run_id=run_id_of(job),
            consumer=owner,
            labels=job.wish["labels"],
            algorithm=job.wish["algorithm"] or RAW,
            orders=job.wish["orders"],
        )
        self._news.set()
        return job

    def find(self, job_id: str) -> JobRecord | None:
        """Find a job that was not deleted."""
        return self._ledger.job(job_id)

    def jobs_of(self, owner: Address) -> list[JobRecord]:
        """List the jobs of a consumer, newest first."""
        return self._ledger.jobs_of(owner, limit=MOST_LISTED)

    def shown(self, job: JobRecord, *, base: str) -> dict[str, Any]:
        """Show a job as it is now."""
        # the run first: an ending that is written meanwhile counts more than what the run was
        run = self._run_of(run_id_of(job))
        now = self._ledger.job_by_number(job.number) or job
        return job_object(
            now,
            status=going_on(run),
            files=self.files(now),
            started_at=(now.ending or {}).get("started_at") or (run.started_at if run else None),
            base=base,
        )

    def stop(self, job: JobRecord) -> None:
        """Have a job stopped at the consumer's wish; one that has ended stays as it is."""
        self._ledger.ask_stop(job.id)
        log.info("job_stop_asked", job_id=job.id, run_id=run_id_of(job))
        self._news.set()

    def delete(self, job: JobRecord) -> None:
        """Stop a job and let nothing of it remain."""
        self._ledger.ask_stop(job.id)
        self._ledger.remove_job(job.id)
        self._results.remove(job.id)
        log.info("job_deleted", job_id=job.id, run_id=run_id_of(job))
        self._news.set()

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
        runs = [self._run_of(run_id_of(job)) for job in self._ledger.open_jobs() if _is_in(job, environment)]
        running = sum(1 for run in runs if going_on(run) > QUEUED)
        return Load(running=running, queued=len(runs) - running)

    def _open_in(self, environment: Environment) -> int:
        return sum(_is_in(job, environment) for job in self._ledger.open_jobs())

    # --- the agent's side: runs -------------------------------------------------------------------------------

    def is_open(self, job: JobRecord) -> bool:
        """Tell whether the job has no ending yet."""
        now = self._ledger.job_by_number(job.number)
        return now is not None and now.finished_at is None

    def finish(self, job: JobRecord, run: Run, final: FinalReport) -> None:
        """Keep what a job left, and write down how it ended. Raises DiskFull."""
        if not self._is_deleted(job):
            if run.outcome not in _WITH_OUTPUTS:
                self._results.drop_collected(job.id)
            self._results.publish(job.id, result=final.result, log=final.log)
        self._end(job, ending_of(run))

    def _end(self, job: JobRecord, ending: JobEnding) -> None:
        at = self._clock.now()
        if self._ledger.finish_job(job.number, at=at, ending=asdict(ending)):
            log.info("job_ended", job_id=job.id, run_id=run_id_of(job), status=ending.status)
        if self._is_deleted(job):
            self._results.remove(job.id)
        self._news.set()

    def _is_deleted(self, job: JobRecord) -> bool:
        now = self._ledger.job_by_number(job.number)
        return now is None or now.removed

    # --- the agent's side: the queue --------------------------------------------------------------------------

    def tend_forever(self) -> None:
        """Hand jobs over as places become free, until the process ends."""
        while True:
            self._news.wait(TEND_SECONDS)
            self._news.clear()
            try:
                self.tend()
            except NodeAgentError as error:
                log.warning("jobs_not_handed_over", reason=str(error))
            except Exception:
                # one job that cannot be handed over must not be the last one
                log.exception("job_desk_bug")

    def tend(self) -> None:
        """Hand over what has a free place, end what waits in vain, and repeat the wish to stop what runs."""
        taken: Counter[str] = Counter()
        working: Counter[str] = Counter()
        waiting = []
        for job in self._ledger.open_jobs():
            if self._is_handed_over(job):
                taken[str(job.wish["environment"])] += 1
                working[job.owner] += 1
            else:
                waiting.append(job)
        for job in in_turn((job for job in waiting if not self._ended_in_queue(job)), working):
            if taken[str(job.wish["environment"])] < self._places_in(job):
                taken[str(job.wish["environment"])] += 1
                self._hand_over(job)

    def _is_handed_over(self, job: JobRecord) -> bool:
        run = self._run_of(run_id_of(job))
        until = self._handed_over.get(job.number, float("-inf")) + _OVERDUE_SECONDS
        if run is None and self._clock.monotonic() >= until:
            return False
        if run is not None:
            self._handed_over.pop(job.number, None)
        if job.stop_asked and (run is None or run.ending is None):
            self._post(KillRequested(frozenset({run_id_of(job)})))
        return True

    def _ended_in_queue(self, job: JobRecord) -> bool:
        """End a job that waits in vain; False when it waits on."""
        ending = self._ending_in_queue(job)
        if ending is not None:
            self._end(job, ending)
        return ending is not None

    def _ending_in_queue(self, job: JobRecord) -> JobEnding | None:
        if job.stop_asked:
            return STOPPED_IN_QUEUE
        patience = job.wish.get("queue_patience")
        waits_in_vain = patience is not None and self._clock.now() > job.created_at + patience
        return EXPIRED_IN_QUEUE if waits_in_vain else None

    def _places_in(self, job: JobRecord) -> int:
        """Say how many jobs may run where this one belongs; what the owner has taken away since gets one place."""
        environment = self._environments.get(str(job.wish["environment"]))
        return 1 if environment is None else environment.max_jobs

    def _hand_over(self, job: JobRecord) -> None:
        # it may have ended since it was listed, and its run with it
        if not self.is_open(job):
            return
        content = json.loads(self._ledger.content(job.number) or b"{}")
        self._store_input(run_id_of(job), (json.dumps(content.get("input", {})).encode(),))
        self._handed_over[job.number] = self._clock.monotonic()
        self._post(JobsHandedOver((open_run_of(job),)))

    # --- what is kept -----------------------------------------------------------------------------------------

    def forget_old(self, *, keep_jobs: float) -> int:
        """Delete what jobs left that ended longer ago than their environment keeps results; say how many.

        A job without results is forgotten *keep_jobs* seconds after its end.
        """
        forgotten = 0
        for job in self._ledger.with_results():
            if job.finished_at is not None and job.finished_at + _kept_for(job) < self._clock.now():
                self._results.remove(job.id)
                self._ledger.note_results_gone(job.number)
                log.info("job_results_expired", job_id=job.id)
                forgotten += 1
        self._ledger.forget_jobs(before=self._clock.now() - keep_jobs)
        self._remove_what_nobody_kept()
        return forgotten

    def _remove_what_nobody_kept(self) -> None:
        """Remove what is left of jobs whose deletion a death of the agent interrupted."""
        found = self._results.jobs()
        # in this order: a job that ends meanwhile is in one of them at least
        kept = [*self._ledger.open_jobs(), *self._ledger.with_results()]
        for job_id in found - {job.id for job in kept}:
            self._results.remove(job_id)


def in_turn(waiting: Iterable[JobRecord], working: Mapping[str, int]) -> list[JobRecord]:
    """Order jobs so that consumers take turns: each one's oldest first, and who has fewer at work before who has more.

    *waiting* are the oldest first, *working* is how many jobs of each consumer are handed over.
    """
    ahead: Counter[str] = Counter(working)
    turns = []
    for job in waiting:
        turns.append((ahead[job.owner], job.number, job))
        ahead[job.owner] += 1
    return [job for _, _, job in sorted(turns, key=lambda turn: turn[:2])]


def run_id_of(job: JobRecord) -> RunId:
    """Give the number of a job's run."""
    return RunId(FIRST_JOB_RUN + job.number)


def job_number_of(run_id: RunId) -> int:
    """Give the number of the job a run belongs to."""
    return run_id - FIRST_JOB_RUN


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
        # its number is never given to another job
        claimed_at=job.created_at,
    )


def _is_in(job: JobRecord, environment: Environment) -> bool:
    return bool(job.wish.get("environment") == environment.id)


def _kept_for(job: JobRecord) -> float:
    return float(job.wish.get("keep_results", 0))


def _content(wish: Wish, admitted: Admitted) -> bytes:
    algorithm = admitted.algorithm
    code = algorithm.code if isinstance(algorithm, RawAlgorithm) else None
    return json.dumps({"input": _input(wish.algorithm.custom, algorithm), "code": code}).encode()


def _input(custom: Mapping[str, Any], algorithm: CatalogueAlgorithm | RawAlgorithm) -> dict[str, Any]:
    """Give what the algorithm reads: its parameters, or a method's name with its arguments."""
    if isinstance(algorithm, RawAlgorithm) or algorithm.contract is JobContract.OCEAN:
        return dict(custom)
    return {
        "method": custom.get("method"),
        "args": custom.get("args") or [],
        "kwargs": custom.get("kwargs") or {},
    }


def _written(wish: Wish, admitted: Admitted, environment: Environment) -> dict[str, Any]:
    """Give a job the form in which the books keep it: everything looked up, nothing left to look up again."""
    longest = environment.longest if wish.longest is None else min(wish.longest, environment.longest)
    return {
        "labels": [data_set.label for data_set in admitted.data_sets],
        "inputs": [data_set.did for data_set in admitted.data_sets],
        "orders": list(admitted.orders),
        **_written_algorithm(admitted.algorithm),
        "user_data": [dict(entry.user_data) for entry in wish.data_sets],
        "environment": environment.id,
        "limits": {"cpus": environment.cpus, "memory": environment.memory, "disk": environment.disk},
        "longest": longest,
        "keep_results": environment.keep_results,
        "share_log": all(data_set.share_log for data_set in admitted.data_sets),
        "metadata": dict(wish.metadata),
        "viewers": list(wish.viewers),
        "queue_patience": wish.queue_patience,
        "newer": wish.newer,
    }


def _written_algorithm(algorithm: CatalogueAlgorithm | RawAlgorithm) -> dict[str, Any]:
    image = {"image": algorithm.image, "digest": algorithm.digest, "entrypoint": algorithm.entrypoint}
    if isinstance(algorithm, RawAlgorithm):
        return {**image, "algorithm": "", "contract": str(JobContract.OCEAN)}
    return {
        **image,
        "algorithm": algorithm.did,
        "contract": str(algorithm.contract),
        "code_file": None if algorithm.code is None else str(algorithm.code),
        "files_checksum": algorithm.files_checksum,
    }
