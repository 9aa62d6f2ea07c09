"""The engine goes away under running algorithms, or somebody takes their containers: each run ends once, with a reason."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from node_agent.sandbox.researcher import Order, Researcher, RunSeen
from tests.interop.stage import eventually
from tests.lab.counting import ALGORITHM, ENDED_RUNS, counted, nothing_is_left
from tests.lab.engine import EngineError
from tests.lab.mortal_agents import MortalAgent
from tests.lab.sandbox import SandboxLab
from tests.lab.second_engine import SecondEngine, imported_image, second_engine
from tests.parts import or_missing

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

LIMITS = {"concurrent_runs": 8, "cpus": 1, "memory": "64MiB", "tmp_size": "4MiB", "output_size": "256KiB"}
LONG = 600.0
ENDS_WHEN_ASKED = f"trap 'exit 143' TERM\n{ALGORITHM}".replace("\necho", " & wait $!\necho")
"""An engine that stops gives its containers ten seconds, which nobody wants to wait for."""
WITHIN = 120


@dataclass(frozen=True)
class Place:
    """An engine of our own, a server, and an agent between them that lives."""

    engine: SecondEngine
    lab: SandboxLab
    agent: MortalAgent
    researcher: Researcher
    image: str

    def send(self, seconds: float) -> int:
        """Send a task and give its number, which is its run's too."""
        return self.researcher.send(
            Order(
                image=self.image,
                method="count",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
                kwargs={"seconds": seconds},
            )
        )

    def working(self, seconds: float = LONG) -> int:
        """Send a task and wait until its algorithm has noted its start."""
        before = self.starts().count("x")
        task = self.send(seconds)
        eventually(lambda: self.run(task).status == "active", within=WITHIN, what=f"task {task} at work")
        # the container runs before its algorithm has done anything
        eventually(lambda: self.starts().count("x") > before, within=WITHIN, what=f"task {task} to note it")
        return task

    def starts(self) -> list[str]:
        """Read what every algorithm wrote at its starts."""
        return [file.read_text() for file in self.agent.state_dir.glob("jobs/*/starts")]

    def run(self, task: int) -> RunSeen:
        """Read how the run of a task is."""
        (run,) = self.researcher.runs(task)
        return run

    def ended(self, task: int) -> RunSeen:
        """Wait for the run's end at the server."""
        eventually(lambda: self.run(task).is_over, within=WITHIN, what=f"the end of task {task}")
        return self.run(task)

    def container(self, task: int) -> Any:
        """Give the container of a task's run."""
        (found,) = [
            c for c in self.agent.containers() if c.labels["node-agent.run"] == str(self.run(task).id)
        ]
        return found

    def status(self) -> dict[str, Any]:
        """Ask the agent how it is."""
        said: dict[str, Any] = json.loads(self.agent.command("status", "--json").stdout)
        return said

    def assert_each_was_reported_and_started_once(self, *tasks: int) -> None:
        """Look into the server's books and the algorithms' own."""
        eventually(lambda: nothing_is_left(self.agent), within=WITHIN, what="nothing left")
        rows = self.lab.server.database.rows(ENDED_RUNS, self.lab.node_ids["alpha"])
        assert {row["id"]: row["accepted"] for row in rows if row["id"] in tasks} == dict.fromkeys(tasks, 1)
        assert set(self.starts()) == {"x"}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        with or_missing(EngineError):
            engine = stack.enter_context(second_engine())
        client = stack.enter_context(contextlib.closing(engine.client()))
        image = imported_image(client, "counting", ENDS_WHEN_ASKED)
        lab = counted(stack.enter_context(SandboxLab(("alpha",))))
        agent = stack.enter_context(
            MortalAgent(
                server_url=lab.url,
                api_key=lab.api_keys["alpha"],
                settings={"limits": LIMITS, "docker_host": engine.host},
            )
        )
        researcher = Researcher.at(lab.url, username="alpha", password=lab.server.passwords["alpha"])
        agent.begin()
        agent.wait_until_ready()
        yield Place(engine, lab, agent, researcher, image)


def kill(container: Any) -> None:
    container.kill()


def ask_to_stop(container: Any) -> None:
    container.stop(timeout=1)


def remove(container: Any) -> None:
    container.remove(force=True)


@pytest.mark.parametrize("take", [kill, ask_to_stop, remove])
def test_a_container_that_somebody_ends_is_told_as_ended_from_outside(
    place: Place, take: Callable[[Any], None]
) -> None:
    task = place.working()
    take(place.container(task))
    run = place.ended(task)
    assert run.status == "unknown error"
    assert "somebody" in run.log
    assert "docker rm" in run.log
    assert "memory" not in run.log
    place.assert_each_was_reported_and_started_once(task)


def test_a_container_that_is_paused_for_a_while_goes_on_and_completes(place: Place) -> None:
    task = place.working(2.0)
    container = place.container(task)
    container.pause()
    eventually(lambda: place.container(task).status == "paused", within=WITHIN, what="the pause")
    assert not place.run(task).is_over
    container.unpause()
    assert place.ended(task).status == "completed"
    place.assert_each_was_reported_and_started_once(task)


def test_a_paused_run_can_be_killed(place: Place) -> None:
    task = place.working()
    place.container(task).pause()
    place.researcher.kill(task)
    assert place.ended(task).status == "killed by user"
    place.assert_each_was_reported_and_started_once(task)


@pytest.mark.parametrize("end", [SecondEngine.stop, SecondEngine.kill])
def test_runs_that_end_with_their_engine_say_so_and_work_goes_on_after_it_is_back(
    place: Place, end: Callable[[SecondEngine], None]
) -> None:
    tasks = [place.working(), place.working()]
    end(place.engine)
    try:
        eventually(lambda: place.status()["engine_problem"], within=WITHIN, what="the engine to be missed")
        waiting = place.send(0.1)
    finally:
        place.engine.start()
    for task in tasks:
        run = place.ended(task)
        assert run.status == "unknown error"
        assert "restarted" in run.log
        assert "memory" not in run.log
    assert place.ended(waiting).status == "completed"
    eventually(lambda: not place.status()["engine_problem"], within=WITHIN, what="the engine to be back")
    place.assert_each_was_reported_and_started_once(*tasks, waiting)


@pytest.fixture
def with_live_restore(place: Place) -> Iterator[None]:
    """Let the engine leave its containers alone when it ends, for this test only."""
    place.engine.stop()
    place.engine.start("--live-restore")
    try:
        yield
    finally:
        place.engine.stop()
        place.engine.start()


@pytest.mark.usefixtures("with_live_restore")
def test_algorithms_outlive_an_engine_with_live_restore(place: Place) -> None:
    eventually(lambda: not place.status()["engine_problem"], within=WITHIN, what="the engine to be back")
    ends_meanwhile, ends_later = place.working(0.5), place.working(15.0)
    place.engine.stop()
    try:
        eventually(lambda: place.status()["engine_problem"], within=WITHIN, what="the engine to be missed")
    finally:
        place.engine.start("--live-restore")
    assert place.ended(ends_later).status == "completed"
    ended = place.ended(ends_meanwhile)
    # what ends in the very moment the engine does may be forgotten by it
    assert ended.status == "completed" or "restarted" in ended.log
    place.assert_each_was_reported_and_started_once(ends_meanwhile, ends_later)
