"""The agent as a process dies at every call it makes for a run, and inside each of them; every run ends once all the same.

A first run shows which places there are: the moment before each call to the server, the engine, the folders, the journal
and the channel, and, below each call, the moment before each request, rename, new folder and removal. (The moment after a
call is the one before the next: between two of them nothing changes that outlives the process.) Then a run is sent for
each place, and the process that takes it up dies there; while later lives go on with what earlier ones left.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from node_agent.sandbox.researcher import Order, Researcher
from tests.lab.counting import (
    ENDED_RUNS,
    NOTE_REPORTS,
    counting_image,
    nothing_is_left,
    reckon,
)
from tests.lab.engine import EngineError, engine
from tests.lab.mortal_agents import MortalAgent
from tests.lab.sandbox import SandboxLab

pytestmark = [pytest.mark.engine, pytest.mark.timeout(200)]

ORGANIZATIONS = ("alpha", "beta")
"""Each has a node, and each node dies at every second place: the machine has two processors."""

OF_NO_RUN = (
    "before journal.load",
    "before server.identify",
    "after server.identify",
    "before server.open_runs",
    "after server.open_runs",
    "before engine.find_image",
)
"""Where an agent dies before, or without saying, which run it is about."""

NOT_EACH_TIME = ("GET /version", "GET /info", "folders.used_bytes")
"""What is asked once by a thread or a process, and what is only done when the algorithm is still at work."""

WORK_SECONDS = 0.3

LIMITS = {"concurrent_runs": 8, "cpus": 1, "memory": "64MiB", "tmp_size": "4MiB", "output_size": "256KiB"}
END_SECONDS = 60


@dataclass(frozen=True)
class Node:
    """One node: its agent, and the researcher who sends it runs."""

    lab: SandboxLab
    organization: str
    agent: MortalAgent
    researcher: Researcher
    image: str

    def send(self) -> int:
        """Send a task and give the number of its run."""
        task_id = self.researcher.send(
            Order(
                image=self.image,
                method="count",
                organizations=(self.lab.organization_ids[self.organization],),
                collaboration_id=self.lab.collaboration_id,
                kwargs={"seconds": WORK_SECONDS},
            )
        )
        (run,) = self.researcher.runs(task_id)
        # a container's token is asked for by task, and every call must be known as one of its run
        assert run.id == task_id
        return run.id

    def rows(self) -> list[dict[str, object]]:
        node_id = self.lab.node_ids[self.organization]
        return [dict(row) for row in self.lab.server.database.rows(ENDED_RUNS, node_id)]

    def live_until_all_is_over(self) -> None:
        """Live undisturbed until every run has ended and nothing is left of any."""
        self.agent.begin()
        deadline = time.monotonic() + END_SECONDS
        while not (all(row["accepted"] for row in self.rows()) and nothing_is_left(self.agent)):
            assert time.monotonic() < deadline, self.agent.log_tail()
            time.sleep(0.1)
        self.agent.rest()

    def die_at(self, places: Sequence[str]) -> None:
        """Send a run for each place, and die there with it."""
        for place in places:
            run = self.send()
            self.agent.die(place, run=None if place in OF_NO_RUN else run)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, ...]]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(engine())
        except EngineError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"missing in CI: {error}")
            pytest.skip(f"missing: {error}")
        client = stack.enter_context(contextlib.closing(found.client()))
        image = counting_image(client)
        lab = stack.enter_context(SandboxLab(ORGANIZATIONS))
        for statement in NOTE_REPORTS:
            lab.server.database.change(statement)
        yield tuple(
            Node(lab, name, stack.enter_context(_agent(lab, name)), _researcher(lab, name), image)
            for name in ORGANIZATIONS
        )


def _agent(lab: SandboxLab, organization: str) -> MortalAgent:
    return MortalAgent(server_url=lab.url, api_key=lab.api_keys[organization], settings={"limits": LIMITS})


def _researcher(lab: SandboxLab, organization: str) -> Researcher:
    password = lab.server.passwords[organization]
    return Researcher.at(lab.url, username=organization, password=password)


@pytest.fixture(scope="module")
def places(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """Every place one undisturbed run passes, in order."""
    run = nodes[0].send()
    nodes[0].live_until_all_is_over()
    passed = [place for of_run, place in nodes[0].agent.places() if of_run == run]
    chosen = [place for place in passed if is_chosen(place)]
    return (*OF_NO_RUN, *dict.fromkeys(chosen), passed[-1])


def is_chosen(place: str) -> bool:
    """Leave out what the next place stands for, and what not every run comes to."""
    return not place.startswith("after ") and not place.endswith(NOT_EACH_TIME)


def test_there_is_a_place_at_every_step_and_inside_of_it(places: tuple[str, ...]) -> None:
    print(f"\n{len(places)} places:", *places, sep="\n")
    assert set(places) >= {
        "before folders.store_input",
        "within folders.store_input: rename input",
        "before journal.insert",
        "within server.claim: PATCH /api/run/N",
        "before journal.update RECEIVED to ADMITTED",
        "within server.container_token: POST /api/token/container",
        "within folders.prepare: rename token",
        "within engine.ensure_container: POST /containers/create",
        "before journal.update PULLED to CREATED",
        "within engine.ensure_started: POST /containers/ID/start",
        "before journal.update CREATED to RUNNING",
        "before channel.tell_status active",
        "within folders.capture_output: rename result",
        "before journal.update RUNNING to CAPTURED",
        "within folders.final_log: rename log.final",
        "within server.report: PATCH /api/run/N",
        "before journal.update FINISHED to REPORTED",
        "within engine.remove: DELETE /containers/ID",
        "before folders.remove",
        "after journal.update REPORTED to REMOVED",
    }


def test_wherever_the_process_dies_every_run_is_started_and_reported_once_and_nothing_is_left(
    nodes: tuple[Node, ...], places: tuple[str, ...]
) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(len(nodes)) as both:
        shares = [places[at :: len(nodes)] for at in range(len(nodes))]
        list(both.map(Node.die_at, nodes, shares))
        print(f"\n{len(places)} deaths in {time.monotonic() - started:.0f} s")
        list(both.map(Node.live_until_all_is_over, nodes))
    print(f"over after {time.monotonic() - started:.0f} s")
    for node in nodes:
        reckoning = reckon(node.agent, node.rows())
        assert reckoning.is_clean, reckoning
    assert sum(len(node.rows()) for node in nodes) == len(places) + 1
