"""The agent's process dies beside its calls to the real server and the engine; the server hears each final report once.

The embedded server is used to die at every single place (tests/integration/test_crash_points.py); here are those where it
matters what the other side has done already.
"""

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask, eventually
from tests.lab.counting import NOTE_REPORTS, nothing_is_left
from tests.lab.mortal_agents import MortalAgent

pytestmark = pytest.mark.interop

PLACES = (
    "after journal.insert",
    "after server.claim",
    "within engine.ensure_container: POST /containers/create",
    "after engine.ensure_container",
    "within engine.ensure_started: POST /containers/ID/start",
    "after engine.ensure_started",
    "after server.announce",
    "after folders.capture_output",
    "within server.report: PATCH /api/run/N",
    "after server.report",
    "after engine.remove",
)
COUNTED = "starts = count_start(); time.sleep(0.3); write({'starts': starts})"


@pytest.fixture
def books(real: Stage) -> Iterator[sqlite3.Connection]:
    """The server's database, which counts the final reports from here on."""
    file = real.server.log.with_name("database.sqlite")
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as database:
        for statement in NOTE_REPORTS:
            database.execute(statement)
        database.commit()
        yield database
        database.executescript("DROP TRIGGER note_report; DROP TABLE accepted;")


@pytest.fixture
def agent(real: Stage) -> Iterator[MortalAgent]:
    with MortalAgent(
        server_url=real.server.url,
        api_key=real.server.api_keys["alpha"],
        settings={"limits": SMALL_LIMITS},
    ) as made:
        yield made


def test_wherever_the_process_dies_the_server_accepts_one_report_of_one_start(
    real: Stage, agent: MortalAgent, books: sqlite3.Connection
) -> None:
    tasks: list[SubmittedTask] = []
    for place in PLACES:
        tasks.append(real.submit(COUNTED))
        agent.die(place, run=tasks[-1].run["id"])
    agent.begin()
    assert [task.result() for task in tasks] == [{"starts": 1}] * len(PLACES)
    eventually(lambda: nothing_is_left(agent), within=20, what="nothing left")
    accepted = dict(books.execute("SELECT run_id, count(*) FROM accepted GROUP BY run_id").fetchall())
    assert accepted == {task.run["id"]: 1 for task in tasks}
    assert [file.read_text() for file in agent.state_dir.glob("jobs/*/starts")] == ["x"] * len(PLACES)
