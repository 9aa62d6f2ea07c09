"""The compute API of one agent, put together: books, desk, listener, and what the steps of jobs work with.

Owns which part is made from which setting. The parts know nothing of each other's making.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import structlog

from node_agent import __version__
from node_agent.compute.desk import JobDesk, job_number_of, open_run_of
from node_agent.compute.documents import document
from node_agent.compute.jobcontracts import JobVantage6Contract, OceanContract
from node_agent.compute.ledger import JobRecord, Ledger
from node_agent.compute.offer import assets_of, environments_of
from node_agent.compute.origin import JobOrigin
from node_agent.compute.readiness import require_ready
from node_agent.compute.results import ResultStore
from node_agent.compute.signatures import Address
from node_agent.config import Settings
from node_agent.domain.assets import JobContract
from node_agent.domain.messages import Message
from node_agent.domain.ports import Clock, RunFolders, Runtime
from node_agent.domain.run import Run, RunId, State
from node_agent.domain.runlogs import LogMask, LogSharing
from node_agent.errors import NodeAgentError, RunClosed
from node_agent.stepports import Contract, Ports, StepSettings

log = structlog.get_logger()

_ABOVE_DISK = 1 << 20
_STRICTNESS = (LogSharing.FULL, LogSharing.ERRORS, LogSharing.OFF)


class ComputeService:
    """The jobs of one agent, and the API that takes them in."""

    def __init__(
        self,
        settings: Settings,
        *,
        run_of: Callable[[RunId], Run | None],
        runtime: Runtime,
        folders: RunFolders,
        post: Callable[[Message], None],
        clock: Clock,
        mask: LogMask,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._mask = mask
        self._clock = clock
        self._assets = assets_of(settings)
        self._results = ResultStore(settings.state_dir)
        with ExitStack() as stack:
            self._ledger = stack.enter_context(closing(Ledger(settings.state_dir)))
            self._desk = JobDesk(
                ledger=self._ledger,
                results=self._results,
                environments=environments_of(settings),
                run_of=run_of,
                store_input=folders.store_input,
                post=post,
                follow=self._follow,
                clock=clock,
                max_waiting=settings.compute_api.max_waiting,
            )
            self._own_address = Address("0x" + self._ledger.secret("address", secrets.token_bytes(20)).hex())
            # stop() closes the ledger from here on; until here a failure does
            self._stack = stack.pop_all()

    def start(self) -> None:
        """Hand over what waits, and listen where the owner wants that. Raises ConfigError."""
        threading.Thread(target=self._desk.tend_forever, name="jobs", daemon=True).start()
        if self._settings.compute_api.listen is not None:
            require_ready(self._settings)
            # what only the listener needs comes with an extra
            from node_agent.compute.assembly import listener_of

            listener = listener_of(
                self._settings,
                desk=self._desk,
                ledger=self._ledger,
                assets=self._assets,
                clock=self._clock,
                own_address=self._own_address,
                version=__version__,
            )
            self._stack.callback(listener.stop)
            listener.start()

    def stop(self) -> None:
        """Stop listening; not started is fine."""
        self._stack.close()

    def forget_old(self) -> int:
        """Delete results that were kept long enough; say of how many jobs."""
        return self._desk.forget_old(keep_jobs=self._settings.keep.runs)

    # --- what the steps of a job work with --------------------------------------------------------------------

    def ports_of(self, run: Run, usual: Ports) -> Ports:
        """Return what the steps of a job's run work with; *usual* is what those of other runs do. Raises RunClosed."""
        job = self._ledger.job_by_number(job_number_of(run.id))
        if job is not None and run.ending is None and run.state < State.FINISHED:
            _require_as_asked(run, job)
        origin = JobOrigin(self._desk, job, run)
        ports = replace(
            usual,
            server=origin,
            admission=replace(usual.admission, server=origin),
            seal=None,
            has_company=lambda: False,
        )
        if job is None:
            return ports
        return replace(ports, contract=self._contract_of(job), settings=_settings_of(job, usual.settings))

    def _contract_of(self, job: JobRecord) -> Contract:
        if job.wish["contract"] == JobContract.VANTAGE6:
            return JobVantage6Contract(job)
        return OceanContract(
            job,
            # every step asks for its contract, and only one reads what may be a mebibyte of code
            content=partial(self._ledger.content, job.number),
            results=self._results,
            document=self._document,
        )

    def _document(self, did: str) -> bytes | None:
        found = document(self._assets, did, base="", own_address=self._own_address)
        return None if found is None else json.dumps(found).encode()

    def _follow(self, run: Run) -> Iterator[bytes]:
        """Give what a container writes while it writes it, masked, and not more of it than of any log."""
        if run.container is None:
            return
        left = self._settings.limits.log_size
        try:
            with closing(self._runtime.follow_log(run.container, since="")) as written:
                for piece in self._mask(entry.content for entry in written):
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
        except NodeAgentError as error:
            log.info("live_log_interrupted", run_id=run.id, reason=str(error))


def _require_as_asked(run: Run, job: JobRecord) -> None:
    """Check whether a run asks for the image and the data that the books name for its job. Raises RunClosed."""
    in_books = open_run_of(job).task
    if (run.task.image, run.task.databases) != (in_books.image, in_books.databases):
        log.error("job_not_as_asked", run_id=run.id, image=run.task.image)
        raise RunClosed("The run asks for another image or other data than the job in the books.")


def _settings_of(job: JobRecord, usual: StepSettings) -> StepSettings:
    limits = job.wish["limits"]
    disk = int(limits["disk"])
    shared = LogSharing.FULL if job.wish["share_log"] else LogSharing.OFF
    return replace(
        usual,
        limits=replace(
            usual.limits,
            cpus=float(limits["cpus"]),
            memory=int(limits["memory"]),
            # a little more: an algorithm that dies of it has filled its disk, and that is found by what it left
            file_size=disk + _ABOVE_DISK,
        ),
        output_size=disk,
        disk_size=disk + usual.limits.tmp_size,
        run_time=float(job.wish["longest"]),
        limit_words={
            "limits.run_time": "maxJobDuration",
            "limits.output_size": f"disk of the environment {job.wish['environment']}",
            "limits.memory": f"memory of the environment {job.wish['environment']}",
        },
        log_sharing=max(shared, usual.log_sharing, key=_STRICTNESS.index),
    )
