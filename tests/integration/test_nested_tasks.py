"""A task whose algorithm asks for a task whose algorithm asks for a task: one slot is enough for all of them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from node_agent.sandbox.researcher import Order, Researcher
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.counting import nothing_is_left
from tests.lab.images import script_image
from tests.lab.nesting import CALLS
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

pytestmark = pytest.mark.engine

DEPTH = 3
"""Tasks below the first one."""

ALGORITHM = f"""\
{CALLS}
call = once
with open("/mnt/tmp/starts", "a") as starts:
    starts.write("x")
asked = json.load(open(env("INPUT_FILE")))["kwargs"]
below = []
if asked["depth"]:
    task = done_below(asked)
    (found,) = call("GET", "/result?task_id=%d" % task)["data"]
    below = json.loads(base64.b64decode(found["result"]))
json.dump([asked["depth"], *below], open(env("OUTPUT_FILE"), "w"))
"""


@dataclass(frozen=True)
class Site:
    lab: SandboxLab
    agent: AgentProcess
    image: str


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        lab = stack.enter_context(SandboxLab(("alpha",)))
        agent = AgentProcess(
            server_url=lab.url,
            api_key=lab.api_keys["alpha"],
            settings={"limits": {"concurrent_runs": 1, "cpus": 1, "memory": "96MiB"}},
        )
        yield Site(lab, stack.enter_context(agent), script_image(client, "nesting", ALGORITHM))


def test_tasks_nested_three_deep_end_on_a_node_with_one_slot(site: Site) -> None:
    organization = site.lab.organization_ids["alpha"]
    researcher = Researcher.at(site.lab.url, username="alpha", password=site.lab.server.passwords["alpha"])
    task = researcher.send(
        Order(
            image=site.image,
            method="nest",
            organizations=(organization,),
            collaboration_id=site.lab.collaboration_id,
            kwargs={
                "depth": DEPTH,
                "image": site.image,
                "collaboration": site.lab.collaboration_id,
                "organization": organization,
            },
        )
    )
    eventually(lambda: researcher.runs(task)[0].is_over, within=60, what="the end of the outermost task")
    (run,) = researcher.runs(task)
    assert run.status == "completed", run.log
    assert researcher.results(task) == {run.id: [3, 2, 1, 0]}
    eventually(lambda: nothing_is_left(site.agent), within=20, what="nothing left")
    # all four are of one job, and share its folder
    (starts,) = site.agent.state_dir.glob("jobs/*/starts")
    assert starts.read_text() == "x" * (DEPTH + 1)
