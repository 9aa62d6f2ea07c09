"""Runs whose `observe` step hangs for ever: a kill and `limits.run_time` end their containers all the same."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.sandbox.researcher import Order, Researcher
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.images import script_image
from tests.lab.nesting import CALLS
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

pytestmark = pytest.mark.engine

RUN_TIME = 8
BOUND = 6
"""Seconds after which a step `observe` of this agent counts as stuck."""

ALGORITHM = f"""\
{CALLS}
time.sleep(json.load(open(env("INPUT_FILE")))["kwargs"]["seconds"])
open(env("OUTPUT_FILE"), "w").write("1")
"""

HANGS = f"""\
import pathlib, time
import node_agent.stuck
from node_agent.runtime.engine import DockerEngine

node_agent.stuck.STEP_SECONDS = dict(node_agent.stuck.STEP_SECONDS, observe={BOUND})
inspect = DockerEngine.inspect

def inspect_or_hang(self, container):
    report = inspect(self, container)
    while report is not None and pathlib.Path(__file__).with_name("hang-%s" % report.run_id).exists():
        time.sleep(0.2)
    return report

DockerEngine.inspect = inspect_or_hang
"""


@dataclass(frozen=True)
class Site:
    lab: SandboxLab
    agent: AgentProcess
    image: str
    hooks: Path

    def send(self, researcher: Researcher, seconds: float) -> int:
        organization = self.lab.organization_ids["alpha"]
        return researcher.send(
            Order(
                image=self.image,
                method="sleep",
                organizations=(organization,),
                collaboration_id=self.lab.collaboration_id,
                kwargs={"seconds": seconds},
            )
        )

    def hang(self, run_id: int) -> None:
        (self.hooks / f"hang-{run_id}").touch()

    def running(self) -> set[int]:
        labels = [each.labels for each in self.agent.containers(everything=False)]
        return {int(each["node-agent.run"]) for each in labels if "node-agent.run" in each}

    def stuck(self) -> list[str]:
        found = self.agent.command("status", "-c", str(self.agent.config_file), "--json")
        stuck: list[str] = json.loads(found.stdout)["stuck_steps"]
        return stuck


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        lab = stack.enter_context(SandboxLab(("alpha",)))
        agent = AgentProcess(
            server_url=lab.url,
            api_key=lab.api_keys["alpha"],
            settings={
                "limits": {"concurrent_runs": 2, "cpus": 1, "memory": "64MiB", "run_time": f"{RUN_TIME}s"}
            },
        )
        agent.environment["PYTHONPATH"] = str(tmp_path)
        yield Site(lab, stack.enter_context(agent), script_image(client, "sleeping", ALGORITHM), tmp_path)


def test_hanging_steps_keep_no_container_from_its_end_and_no_other_run_from_its_turn(site: Site) -> None:
    researcher = Researcher.at(site.lab.url, username="alpha", password=site.lab.server.passwords["alpha"])
    killed, overdue = site.send(researcher, 300), site.send(researcher, 300)
    runs = {task: researcher.runs(task)[0].id for task in (killed, overdue)}
    eventually(lambda: site.running() == set(runs.values()), within=30, what="both containers")
    for run_id in runs.values():
        site.hang(run_id)
    # every five seconds each container is looked at, and from then on each of the looks hangs
    eventually(lambda: len(site.stuck()) == 2, within=30, what="two stuck steps in `status`")
    researcher.kill(killed)
    other = site.send(researcher, 0)
    eventually(lambda: not site.running() & set(runs.values()), within=40, what="the end of both containers")
    eventually(lambda: researcher.runs(other)[0].status == "completed", within=40, what="the other run")
    eventually(lambda: researcher.runs(killed)[0].is_over, within=30, what="the end of the killed run")
    eventually(lambda: researcher.runs(overdue)[0].is_over, within=30, what="the end of the overdue run")
    assert "killed" in researcher.runs(killed)[0].status
    assert "this node allows 8" in (researcher.runs(overdue)[0].log or "")
    for run_id in runs.values():
        (site.hooks / f"hang-{run_id}").unlink()
    eventually(lambda: not site.stuck(), within=20, what="no stuck step")
    came_late = [line for line in site.agent.log_lines() if line.get("event") == "step_came_late"]
    assert len(came_late) == 2
