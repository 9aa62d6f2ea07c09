"""A researcher whose algorithm makes subtasks nobody waits for, to have more containers than the owner allows."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from node_agent.domain.turns import MAX_NESTING
from node_agent.sandbox.researcher import Order, Researcher
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.images import script_image
from tests.lab.nesting import CALLS
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

pytestmark = pytest.mark.engine

FITTING = 2
"""Runs that `total_memory` has room for."""

ALGORITHM = f"""\
{CALLS}
asked = json.load(open(env("INPUT_FILE")))["kwargs"]

def ask_and_leave():
    text = base64.b64encode(json.dumps({{"method": "grow", "args": [], "kwargs": asked}}).encode()).decode()
    once("POST", "/task", {{
        "name": "grown", "image": asked["image"], "collaboration_id": asked["collaboration"], "databases": [],
        "organizations": [{{"id": asked["organization"], "input": text}}],
    }})

if asked["how"] != "honest":
    ask_and_leave()
    ask_and_leave()
    until = time.time() + 60
    while time.time() < until:
        time.sleep(1) if asked["how"] == "idle" else None
open(env("OUTPUT_FILE"), "w").write("1")
"""


@dataclass(frozen=True)
class Site:
    lab: SandboxLab
    agent: AgentProcess
    image: str

    def researcher(self, name: str) -> Researcher:
        return Researcher.at(self.lab.url, username=name, password=self.lab.server.passwords[name])

    def send(self, researcher: Researcher, how: str) -> int:
        organization = self.lab.organization_ids["alpha"]
        collaboration = self.lab.collaboration_id
        return researcher.send(
            Order(
                image=self.image,
                method="grow",
                organizations=(organization,),
                collaboration_id=collaboration,
                kwargs={
                    "how": how,
                    "image": self.image,
                    "collaboration": collaboration,
                    "organization": organization,
                },
            )
        )

    def running(self) -> int:
        return sum("node-agent.run" in each.labels for each in self.agent.containers(everything=False))

    def most_running(self, seconds: float) -> int:
        """Return how many containers of runs were there at most within the next *seconds*."""
        until, most = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            most = max(most, self.running())
            time.sleep(0.2)
        return most


@pytest.fixture
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        lab = stack.enter_context(SandboxLab(("alpha", "beta")))
        agent = AgentProcess(
            server_url=lab.url,
            api_key=lab.api_keys["alpha"],
            settings={
                "limits": {
                    "concurrent_runs": 1,
                    "cpus": 0.5,
                    "memory": "64MiB",
                    "total_memory": f"{64 * FITTING}MiB",
                }
            },
        )
        yield Site(lab, stack.enter_context(agent), script_image(client, "growing", ALGORITHM))


def end_all(site: Site, tasks: tuple[tuple[Researcher, int], ...]) -> None:
    for researcher, task in tasks:
        for each in (task, *_below(researcher, task)):
            with contextlib.suppress(Exception):
                researcher.kill(each)


def _below(researcher: Researcher, task: int) -> list[int]:
    found = researcher.subtasks(task)
    return found + [deeper for each in found for deeper in _below(researcher, each)]


def test_runs_that_ask_for_subtasks_and_compute_on_have_no_more_containers_than_slots(site: Site) -> None:
    greedy = site.researcher("alpha")
    task = site.send(greedy, "busy")
    eventually(lambda: site.running() > 0, within=30, what="the first container")
    assert site.most_running(12) == 1
    end_all(site, ((greedy, task),))


def test_runs_that_ask_for_subtasks_and_sleep_are_bounded_and_another_researcher_is_next(
    site: Site,
) -> None:
    greedy, other = site.researcher("alpha"), site.researcher("beta")
    task = site.send(greedy, "idle")
    eventually(lambda: site.running() > FITTING, within=60, what="more containers than fit")
    honest = site.send(other, "honest")
    eventually(
        lambda: other.runs(honest)[0].status == "completed", within=40, what="the run of the other researcher"
    )
    assert site.most_running(8) <= FITTING + MAX_NESTING
    end_all(site, ((greedy, task),))
    eventually(lambda: not site.running(), within=60, what="no container left")
