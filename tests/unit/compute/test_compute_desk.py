"""The job desk: what is handed over to the agent and when, how jobs end in the queue, and what is kept of them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from node_agent.compute.admitting import Admitted, RawAlgorithm
from node_agent.compute.desk import JobDesk, NoFreePlace, NoRoom, job_number_of, run_id_of
from node_agent.compute.ledger import Grant, JobRecord, Ledger
from node_agent.compute.objects import Environment
from node_agent.compute.origin import JobOrigin
from node_agent.compute.results import ResultStore
from node_agent.compute.signatures import Address
from node_agent.compute.wishes import Refused, Wish, WishedAlgorithm
from node_agent.domain.assets import CatalogueAlgorithm, DataSet, JobContract, derived_did
from node_agent.domain.messages import JobsHandedOver, KillRequested, Message
from node_agent.domain.ports import FinalReport, OpenRun
from node_agent.domain.run import FIRST_JOB_RUN, Outcome, Run, RunId, State, Status
from node_agent.domain.task import TaskId
from node_agent.errors import RunClosed
from node_agent.store.untrusted.opening import opened_folder
from tests.doubles.clock import ManualClock
from tests.doubles.core import make_run

ANNE = Address("0x" + "a" * 40)
BERT = Address("0x" + "b" * 40)
DIGEST = "sha256:" + "12" * 32
DATA = DataSet(did=derived_did("data"), label="patients", service_id="0", share_log=True)
RAW = RawAlgorithm(
    image="registry.example/python", digest=DIGEST, entrypoint="python $ALGO", code="print('hello')"
)
TABLE = CatalogueAlgorithm(
    did=derived_did("table"),
    owner=ANNE,
    service_id="0",
    image="registry.example/table",
    digest=DIGEST,
    entrypoint="",
    contract=JobContract.VANTAGE6,
)
PLACES = 2


class Scene:
    """A desk with its books, and an agent that does nothing on its own."""

    def __init__(self, state_dir: Path) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(state_dir)
        self.results = ResultStore(state_dir)
        self.folder = state_dir
        self.inputs: dict[RunId, bytes] = {}
        self.posted: list[Message] = []
        self.runs: dict[RunId, Run] = {}
        self.desk = self.fresh_desk()

    def fresh_desk(self) -> JobDesk:
        """Sit down at the same books anew, as a process that was killed does."""
        return JobDesk(
            ledger=self.ledger,
            results=self.results,
            environments=[
                Environment(
                    id="small",
                    cpus=1,
                    memory=2**30,
                    disk=2**20,
                    longest=60,
                    max_jobs=PLACES,
                    keep_results=3600,
                )
            ],
            run_of=self.runs.get,
            store_input=self.store_input,
            post=self.posted.append,
            follow=lambda _: iter(()),
            clock=self.clock,
            max_waiting=4,
        )

    def store_input(self, run_id: RunId, content: Iterable[bytes]) -> None:
        self.inputs[run_id] = b"".join(content)

    def start(
        self,
        *,
        algorithm: Any = RAW,
        custom: Mapping[str, Any] | None = None,
        orders: Any = (),
        owner: Address = ANNE,
        **more: Any,
    ) -> JobRecord:
        wish = Wish(data_sets=(), algorithm=WishedAlgorithm(custom=custom or {}), **more)
        admitted = Admitted(data_sets=(DATA,), orders=orders, algorithm=algorithm)
        return self.desk.take_in(wish, admitted, owner=owner)

    def tend(self) -> list[OpenRun]:
        """Let the desk look once and give what it handed over."""
        self.posted.clear()
        self.desk.tend()
        return [run for message in self.posted if isinstance(message, JobsHandedOver) for run in message.runs]

    def begin(self, job: JobRecord, **facts: Any) -> Run:
        """Let the agent have the job's run."""
        run = self.runs[run_id_of(job)] = make_run(run_id_of(job), **facts)
        return run

    def end(self, job: JobRecord, **facts: Any) -> None:
        """Let the job's run come to its end."""
        how = {"state": State.FINISHED, "outcome": Outcome.COMPLETED, "exit_code": 0, **facts}
        run = self.begin(job, **how)
        self.desk.finish(job, run, final_report())
        del self.runs[run.id]

    def shown(self, job: JobRecord) -> dict[str, Any]:
        return self.desk.shown(job, base="")


def final_report(**more: Any) -> FinalReport:
    facts = {
        "status": Status.COMPLETED,
        "result": None,
        "log": None,
        "started_at": 1.0,
        "finished_at": 2.0,
        "init_org_id": None,
        **more,
    }
    return FinalReport(**facts)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.ledger.close()


# --- handing over -------------------------------------------------------------------------------------------------


def test_a_job_becomes_a_run_of_its_pinned_image_and_its_databases(scene: Scene) -> None:
    job = scene.start(custom={"a": 1})
    (run,) = scene.tend()
    assert run.id == run_id_of(job) > FIRST_JOB_RUN
    assert job_number_of(run.id) == job.number
    assert run.task.image == f"registry.example/python@{DIGEST}"
    assert [request.label for request in run.task.databases] == ["patients"]
    assert run.task.init_user_name == ANNE
    assert json.loads(scene.inputs[run.id]) == {"a": 1}


def test_a_job_of_the_vantage6_contract_gets_method_and_arguments_and_nothing_else(scene: Scene) -> None:
    job = scene.start(algorithm=TABLE, custom={"method": "count", "kwargs": {"b": 2}, "database": "x"})
    scene.tend()
    assert json.loads(scene.inputs[run_id_of(job)]) == {"method": "count", "args": [], "kwargs": {"b": 2}}


def test_jobs_begin_in_order_as_places_become_free(scene: Scene) -> None:
    jobs = [scene.start() for _ in range(4)]
    assert [run.id for run in scene.tend()] == [run_id_of(job) for job in jobs[:PLACES]]
    assert scene.tend() == []
    scene.end(jobs[1])
    assert [run.id for run in scene.tend()] == [run_id_of(jobs[2])]


def test_consumers_take_turns(scene: Scene) -> None:
    anne = [scene.start() for _ in range(3)]
    scene.tend()
    bert = scene.start(owner=BERT)
    scene.end(anne[0])
    assert [run.id for run in scene.tend()] == [run_id_of(bert)]


def test_a_job_that_waits_is_1_and_has_no_end(scene: Scene) -> None:
    jobs = [scene.start() for _ in range(3)]
    scene.tend()
    shown = scene.shown(jobs[2])
    assert (shown["status"], shown["dateFinished"]) == (1, None)


def test_what_was_handed_over_and_has_no_run_is_handed_over_again_after_a_while(scene: Scene) -> None:
    job = scene.start()
    scene.tend()
    assert scene.tend() == []
    scene.clock.advance(11)
    assert [run.id for run in scene.tend()] == [run_id_of(job)]


def test_after_a_restart_what_has_no_run_yet_is_handed_over_and_what_has_one_is_not(scene: Scene) -> None:
    jobs = [scene.start() for _ in range(2)]
    scene.begin(jobs[0])
    scene.desk = scene.fresh_desk()
    assert [run.id for run in scene.tend()] == [run_id_of(jobs[1])]


def test_a_job_whose_end_was_written_is_never_handed_over_again(scene: Scene) -> None:
    job = scene.start()
    scene.tend()
    scene.end(job)
    scene.clock.advance(100)
    scene.desk = scene.fresh_desk()
    assert scene.tend() == []


def test_only_so_many_jobs_may_be_open(scene: Scene) -> None:
    for _ in range(4):
        scene.start()
    with pytest.raises(NoRoom):
        scene.start()


def test_who_does_not_want_to_wait_is_refused_when_no_place_is_free(scene: Scene) -> None:
    for _ in range(PLACES):
        scene.start(queue_patience=0)
    with pytest.raises(NoFreePlace):
        scene.start(queue_patience=0)
    scene.start()


def test_a_grant_that_was_used_up_meanwhile_refuses_and_leaves_no_job(scene: Scene) -> None:
    scene.ledger.add_grant(
        Grant(id="g", consumer=ANNE, data_set=DATA.did, uses_left=1, expires_at=None, created_at=1.0)
    )
    scene.start(orders=("g",))
    with pytest.raises(Refused):
        scene.start(orders=("g",))
    assert scene.ledger.count_open() == 1


# --- stopping -----------------------------------------------------------------------------------------------------


def test_a_job_that_waits_and_is_stopped_ends_without_a_run(scene: Scene) -> None:
    jobs = [scene.start() for _ in range(3)]
    scene.tend()
    scene.desk.stop(jobs[2])
    assert scene.tend() == []
    shown = scene.shown(jobs[2])
    assert (shown["status"], shown["statusText"], shown["stopreq"]) == (70, "Job stopped", 1)
    assert shown["dateFinished"] is not None


def test_a_job_that_runs_and_is_stopped_is_killed_until_its_ending_is_decided(scene: Scene) -> None:
    job = scene.start()
    scene.tend()
    run = scene.begin(job, state=State.RUNNING)
    scene.desk.stop(job)
    for _ in range(2):
        scene.tend()
        assert scene.posted == [KillRequested(frozenset({run.id}))]
    scene.begin(job, state=State.RUNNING, ending=Outcome.KILLED)
    scene.tend()
    assert scene.posted == []


def test_a_wish_to_stop_outlives_the_process(scene: Scene) -> None:
    job = scene.start()
    run = scene.begin(job, state=State.RUNNING)
    scene.desk.stop(job)
    scene.desk = scene.fresh_desk()
    scene.tend()
    assert scene.posted == [KillRequested(frozenset({run.id}))]


def test_a_job_whose_consumer_would_not_wait_longer_expires(scene: Scene) -> None:
    jobs = [scene.start() for _ in range(PLACES)] + [scene.start(queue_patience=30)]
    scene.tend()
    scene.clock.advance(31)
    for job in jobs[:PLACES]:
        scene.begin(job)
    scene.tend()
    shown = scene.shown(jobs[-1])
    assert (shown["status"], shown["stopreq"]) == (2, 0)
    assert shown["dateFinished"] is not None


# --- endings ------------------------------------------------------------------------------------------------------


def test_an_end_is_written_once(scene: Scene) -> None:
    job = scene.start()
    scene.end(job)
    first = scene.shown(job)
    scene.clock.advance(50)
    scene.end(job, outcome=Outcome.CRASHED, exit_code=3)
    assert scene.shown(job) == first


def test_a_crash_shows_its_exit_code(scene: Scene) -> None:
    job = scene.start()
    scene.end(job, outcome=Outcome.CRASHED, exit_code=3, reason="it ended badly")
    shown = scene.shown(job)
    assert (shown["status"], shown["terminationDetails"]["exitCode"]) == (41, 3)


def collected(scene: Scene, job: JobRecord) -> None:
    outputs = scene.folder / "outputs"
    outputs.mkdir()
    (outputs / "b.txt").write_text("b")
    (outputs / "a.txt").write_text("a")
    with opened_folder(outputs) as opened:
        scene.results.collect(job.id, outputs=opened, limit=100)


def test_outputs_and_log_are_there_from_the_end_on(scene: Scene) -> None:
    job = scene.start()
    collected(scene, job)
    assert scene.shown(job)["results"] == []
    log = scene.folder / "log"
    log.write_text("said\n")
    run = scene.begin(job, state=State.FINISHED, outcome=Outcome.COMPLETED)
    for _ in range(2):
        scene.desk.finish(job, run, final_report(log=log))
    names = [(entry["index"], entry["filename"], entry["type"]) for entry in scene.shown(job)["results"]]
    assert names == [(0, "a.txt", "output"), (1, "b.txt", "output"), (2, "algorithm.log", "algorithmLog")]
    assert scene.desk.path(job, 1).read_text() == "b"


@pytest.mark.parametrize("outcome", [Outcome.TIME_LIMIT, Outcome.KILLED, Outcome.OUTPUT_TOO_LARGE])
def test_a_job_that_was_ended_leaves_no_outputs(scene: Scene, outcome: Outcome) -> None:
    job = scene.start()
    collected(scene, job)
    scene.end(job, outcome=outcome)
    assert scene.shown(job)["results"] == []


def test_a_deleted_job_leaves_nothing_when_its_run_ends_later(scene: Scene) -> None:
    job = scene.start()
    scene.tend()
    scene.begin(job, state=State.RUNNING)
    scene.desk.delete(job)
    collected(scene, job)
    scene.end(job, outcome=Outcome.KILLED)
    assert scene.desk.find(job.id) is None
    assert list((scene.folder / "compute").iterdir()) == []


# --- retention ----------------------------------------------------------------------------------------------------


def test_results_go_when_they_were_kept_long_enough_and_the_job_says_so(scene: Scene) -> None:
    job = scene.start()
    collected(scene, job)
    scene.end(job)
    assert scene.desk.forget_old(keep_jobs=10_000) == 0
    scene.clock.advance(3601)
    assert scene.desk.forget_old(keep_jobs=10_000) == 1
    shown = scene.shown(job)
    assert (shown["status"], shown["results"], shown["removed"]) == (70, [], 1)
    assert list((scene.folder / "compute").iterdir()) == []


def test_what_a_death_amid_a_deletion_left_behind_goes_when_old_results_do(scene: Scene) -> None:
    deleted, going_on = scene.start(), scene.start()
    for job in (deleted, going_on):
        scene.results.collect(job.id, outputs=None, limit=100)
    scene.end(deleted)
    scene.ledger.remove_job(deleted.id)
    scene.desk.forget_old(keep_jobs=10_000)
    assert [folder.name for folder in (scene.folder / "compute").iterdir()] == [f"{going_on.id}.new"]


def test_a_job_is_forgotten_when_it_was_over_for_long(scene: Scene) -> None:
    job = scene.start()
    scene.end(job)
    scene.clock.advance(10_001)
    scene.desk.forget_old(keep_jobs=10_000)
    assert scene.desk.find(job.id) is None


# --- the origin of runs -------------------------------------------------------------------------------------------


def test_a_run_of_a_job_that_is_over_is_closed(scene: Scene) -> None:
    job = scene.start()
    origin = JobOrigin(scene.desk, job, make_run(run_id_of(job)))
    assert origin.is_open(run_id_of(job))
    origin.claim(run_id_of(job), at=1.0)
    scene.end(job)
    assert not origin.is_open(run_id_of(job))
    with pytest.raises(RunClosed):
        origin.claim(run_id_of(job), at=1.0)


def test_a_run_the_books_know_nothing_of_has_nobody_to_report_to(scene: Scene) -> None:
    origin = JobOrigin(scene.desk, None, make_run(FIRST_JOB_RUN + 7))
    assert not origin.is_open(RunId(FIRST_JOB_RUN + 7))
    with pytest.raises(RunClosed):
        origin.report(RunId(FIRST_JOB_RUN + 7), final_report())


def test_no_two_containers_get_the_same_credential(scene: Scene) -> None:
    origin = JobOrigin(scene.desk, scene.start(), make_run(FIRST_JOB_RUN))
    tokens = {origin.container_token(TaskId(1), "image").reveal() for _ in range(3)}
    assert len(tokens) == 3
