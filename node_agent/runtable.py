"""The open runs, as the agent knows them now.

Written by the control thread alone. Other threads may ask the questions of the first section at any time: each is one
look into a dictionary, so an answer is never half of one.
"""

from collections.abc import Iterator, Sequence

from node_agent.domain.keeping import PulledImage
from node_agent.domain.policy import parse_image
from node_agent.domain.run import Run, RunId, State
from node_agent.domain.task import JobKey, TaskId

REMEMBERED = 1000
"""So many runs that are over are still known: the server may list some of them for a while."""


class RunTable:
    """Runs that are not REMOVED, by id, and the container tokens that are good now."""

    def __init__(self) -> None:
        self._runs: dict[RunId, Run] = {}
        self._begun: dict[RunId, Run] = {}
        self._of_task: dict[TaskId, RunId] = {}
        self._tokens: dict[str, RunId] = {}
        self._over: dict[RunId, None] = {}

    # --- what any thread may ask ------------------------------------------------------------------------------

    def is_open(self, run_id: RunId) -> bool:
        """Tell whether the run is here and not yet removed."""
        return run_id in self._runs

    def was_open(self, run_id: RunId) -> bool:
        """Tell whether the run was here and is over, as far back as that is remembered."""
        return run_id in self._over

    def is_wanted(self, run_id: RunId) -> bool:
        """Tell whether the run still goes on: its ending is not decided."""
        run = self._runs.get(run_id)
        return run is not None and run.ending is None

    def running(self) -> list[Run]:
        """List the runs whose algorithm works and is to go on."""
        begun = list(self._begun.values())
        return [run for run in begun if run.state is State.RUNNING and run.ending is None]

    def job_goes_on(self, job: JobKey) -> bool:
        """Check whether any run of the job may still use the job's folder."""
        return any(run.task.job == job and run.state < State.FINISHED for run in list(self._runs.values()))

    def job_is_open(self, job: JobKey) -> bool:
        """Tell whether any open run belongs to the job."""
        return any(run.task.job == job for run in list(self._runs.values()))

    def run_of_token(self, token_hash: str) -> RunId | None:
        """Find the living run a container token belongs to."""
        return self._tokens.get(token_hash)

    def run_by_token(self, token_hash: str) -> Run | None:
        """Return the living run a container token belongs to."""
        run_id = self._tokens.get(token_hash)
        return None if run_id is None else self._runs.get(run_id)

    def asks_for(self, run_id: RunId, label: str) -> bool:
        """Tell whether the run is here, goes on, and asked for the database *label*."""
        run = self._runs.get(run_id)
        return (
            run is not None
            and run.ending is None
            and any(request.label == label for request in run.task.databases)
        )

    def needs_image(self, names: Sequence[PulledImage]) -> bool:
        """Tell whether any open run is made from the image, or may turn out to be: it is pinned to none yet."""
        contents = {name.image_id for name in names}
        repositories = {_repository(name.reference) for name in names}
        return any(
            run.image_id in contents or (run.image_id is None and _repository(run.task.image) in repositories)
            for run in list(self._runs.values())
        )

    # --- what the control thread asks and does ----------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __getitem__(self, run_id: RunId) -> Run:
        return self._runs[run_id]

    def get(self, run_id: RunId) -> Run | None:
        """Give the run; None when it is not here."""
        return self._runs.get(run_id)

    def of_task(self, task: TaskId) -> Run | None:
        """Return the run of the task, the newest of several; None when none is here."""
        run_id = self._of_task.get(task)
        return None if run_id is None else self._runs.get(run_id)

    def begun(self) -> list[Run]:
        """Return the runs that had their turn, in that order: few, however many wait, so this is cheap."""
        return list(self._begun.values())

    def keep(self, run: Run) -> None:
        """Take a run in, or its newer form."""
        self._runs[run.id] = run
        self._of_task[run.task.id] = run.id
        if run.state > State.RECEIVED:
            self._begun[run.id] = run
        if run.token_hash is None or run.is_job:
            return  # jobs have nothing to say to the server
        if State.CREATED <= run.state <= State.RUNNING and run.ending is None:
            self._tokens[run.token_hash] = run.id
        else:
            self._tokens.pop(run.token_hash, None)

    def drop(self, run_id: RunId) -> None:
        """Let a run go that is REMOVED."""
        dropped = self._runs.pop(run_id, None)
        if dropped is not None and self._of_task.get(dropped.task.id) == run_id:
            del self._of_task[dropped.task.id]
        self._begun.pop(run_id, None)
        self._over[run_id] = None
        if len(self._over) > REMEMBERED:
            del self._over[next(iter(self._over))]


def _repository(reference: str) -> str:
    image = parse_image(reference)
    return reference if image is None else image.name
