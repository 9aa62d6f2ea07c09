"""The agent dies with a job at each of its numbers and beside them: the job ends right, once, and its result is there.

The places are those of `tests.lab.mortal`. Each death is met by a job of its own, started at the life that ends there,
while those of earlier deaths go on.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests

from node_agent.compute.ledger import FILE_NAME
from node_agent.domain.run import FIRST_JOB_RUN
from tests.interop.stage import eventually
from tests.lab.consumer import Consumer, Job, Refused, raw_code
from tests.lab.counting import left_in_engine, nothing_is_left
from tests.lab.job_site import JobSite, Offer, did_of, job_site
from tests.lab.mortal_agents import MortalAgent
from tests.parts import engine_client

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

CUT = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
"""What a caller sees of an agent that dies, before or after the head of its answer."""
PATIENCE = 90.0
KEPT = 60
PATIENTS = did_of("patients")
COUNT = """\
printf x >> /data/outputs/starts
cat /data/inputs/*/0 > /data/outputs/rows
echo started
"""
LONG = "exec sleep 100\n"
ROWS = b"patient\n1\n"

AT_NUMBERS = {
    1: "before journal.update RECEIVED to ADMITTED",
    10: "before journal.update ADMITTED to PULLED",
    20: "before journal.update PULLED to CREATED",
    30: "before journal.update CREATED to RUNNING",
    40: "before journal.update RUNNING to CAPTURED",
    50: "before journal.update CAPTURED to FINISHED",
    60: "before journal.update FINISHED to REPORTED",
}
WRITTEN_DOWN = "after books.add_job"
"""The job is there, it has no number that could be known before, and nobody was told of it."""
BESIDE = (
    WRITTEN_DOWN,
    "before folders.store_input",
    "before journal.insert",
    "within folders.furnish: rename algorithm",
    "within results.collect: rename files.json",
    "within results.publish: rename ID",
    "before books.finish_job",
    "before journal.update REPORTED to REMOVED",
)
"""Between acceptance and hand-over, and inside of what takes longer."""


@dataclass(kw_only=True)
class Lives:
    """An agent that dies with jobs, and the consumer who starts them."""

    site: JobSite
    agent: MortalAgent
    anne: Consumer
    started: int = 0

    def begin(self, *, number: int | None = None, place: str | None = None) -> None:
        """Let a life begin, and wait until it takes jobs in."""
        self.agent.begin(run=None if number is None else FIRST_JOB_RUN + number, place=place)
        self.agent.wait_for("compute_api_listening", within=PATIENCE)

    def start(self, code: str = COUNT) -> None:
        """Start a job; the agent may die before it can answer."""
        with contextlib.suppress(requests.ConnectionError):
            self.anne.start([PATIENTS], raw_code(self.site.shelf.python, code, entrypoint="sh $ALGO"))
        self.started += 1

    def next_number(self) -> int:
        with contextlib.closing(self.books()) as books:
            ((last,),) = books.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'job'")
        return int(last) + 1

    def books(self) -> sqlite3.Connection:
        return sqlite3.connect(self.agent.state_dir / FILE_NAME, timeout=PATIENCE)

    def die_at(self, place: str) -> None:
        """Start a job and die with it."""
        self.begin(number=None if place == WRITTEN_DOWN else self.next_number(), place=place)
        self.start()
        self.agent.die_now(place)

    def die_stopping(self) -> Job:
        """Have a job stopped and die when that is written down."""
        place = "after books.ask_stop"
        self.begin(number=self.next_number(), place=place)
        self.start(LONG)
        job = self.anne.reached(self.anne.jobs()[0], 40)
        with pytest.raises(CUT):
            self.anne.stop(job)
        self.agent.die_now(place)
        return job

    def die_deleting(self, job: Job, place: str) -> None:
        """Delete a job and die while that is done."""
        with pytest.raises(CUT):
            self.anne.delete(job)
        self.agent.die_now(place)
        self.started -= 1

    def live(self) -> list[Job]:
        """Live undisturbed until every job is over and nothing of any run is left, and give the jobs."""
        self.begin()
        over = [self.anne.ended(job) for job in self.anne.jobs()]
        eventually(lambda: nothing_is_left(self.agent), within=PATIENCE, what="nothing left of the runs")
        assert len(over) == self.started
        return over


@pytest.fixture
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    file = tmp_path_factory.mktemp("data") / "patients.csv"
    file.write_bytes(ROWS)
    file.chmod(0o644)
    offer = Offer(label="patients", path=file, extras={"raw_algorithms": True, "share_log": True})
    api = {"environments": [{"id": "default", "keep_results": f"{KEPT}s", "max_jobs": 4}]}
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        site = stack.enter_context(job_site(client, [offer], api=api, agent_class=MortalAgent))
        assert isinstance(site.agent, MortalAgent)
        made = Lives(site=site, agent=site.agent, anne=site.consumer())
        # a job before all deaths makes the books
        made.begin()
        made.start()
        (job,) = made.anne.jobs()
        made.anne.ended(job)
        made.agent.rest()
        yield made


def test_wherever_the_agent_dies_with_a_job_it_ends_right_and_once_and_its_result_can_be_fetched(
    lives: Lives,
) -> None:
    for place in (*AT_NUMBERS.values(), *BESIDE):
        lives.die_at(place)
    stopped = lives.die_stopping()
    deleted = die_while_deleting(lives)
    over = {job["jobId"]: job for job in lives.live()}
    shown = over.pop(stopped["jobId"])
    assert (shown["status"], shown["stopreq"], shown["statusText"]) == (70, 1, "Job stopped")
    jobs = list(over.values())
    for job in jobs:
        assert_it_ended_right(lives, job)
    assert not lives.anne.memory.faults
    assert not any(left_in_engine(lives.agent).values())
    assert_nothing_remains_of(lives, deleted)
    lives.agent.rest()
    assert_results_go_when_they_were_kept_long_enough(lives, jobs)


def assert_it_ended_right(lives: Lives, shown: Job) -> None:
    assert (shown["status"], shown["stopreq"]) == (70, 0), shown
    assert shown["terminationDetails"] == {"exitCode": 0, "OOMKilled": False}
    outputs = lives.anne.outputs(shown)
    assert outputs == {"rows": ROWS, "starts": b"x", "algorithm.log": b"started\n"}


def die_while_deleting(lives: Lives) -> tuple[Job, Job]:
    """Die while an ended job is deleted, and while one is that goes on."""
    place = "before results.remove"
    lives.begin(place=place)
    over = lives.anne.jobs()[-1]
    lives.die_deleting(over, place)
    place = "after books.remove_job"
    lives.begin(number=lives.next_number(), place=place)
    lives.start(LONG)
    going_on = lives.anne.reached(lives.anne.jobs()[0], 40)
    lives.die_deleting(going_on, place)
    return over, going_on


def assert_nothing_remains_of(lives: Lives, deleted: tuple[Job, Job]) -> None:
    results = lives.agent.state_dir / "compute"
    listed = {job["jobId"] for job in lives.anne.jobs()}
    for job in deleted:
        assert job["jobId"] not in listed
        eventually(
            lambda name=job["jobId"]: not list(results.glob(f"{name}*")), within=PATIENCE, what="no results"
        )


def assert_results_go_when_they_were_kept_long_enough(lives: Lives, jobs: list[Job]) -> None:
    """Let the ends of all jobs lie further back than results are kept, but one's."""
    *old, young = jobs
    with contextlib.closing(lives.books()) as books, books:
        books.execute(
            "UPDATE job SET finished_at = finished_at - ? WHERE job_id <> ?", (2 * KEPT, young["jobId"])
        )
    lives.begin()
    results = lives.agent.state_dir / "compute"
    eventually(
        lambda: [folder.name for folder in results.iterdir()] == [young["jobId"]],
        within=PATIENCE,
        what="results that go",
    )
    shown = next(job for job in lives.anne.jobs() if job["jobId"] == old[0]["jobId"])
    assert (shown["removed"], shown["results"], shown["status"]) == (1, [], 70)
    with pytest.raises(Refused):
        lives.anne.result(old[0], 0)
    assert lives.anne.outputs(lives.anne.look(young))["starts"] == b"x"
