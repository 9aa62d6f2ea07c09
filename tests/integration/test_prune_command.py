"""`node-agent prune`: what it shows is what goes, whether an agent runs or not, and nothing else does."""

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound, NotFound

from node_agent.runtime.spec import LABEL_NAME, LABEL_RUN
from node_agent.sandbox.researcher import Order, Researcher
from tests.integration.machine import small_image
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.counting import nothing_is_left
from tests.lab.registry import Registry, registry
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Site:
    lab: SandboxLab
    agent: AgentProcess
    client: docker.DockerClient
    shop: Registry
    prefix: str

    def offer(self, name: str) -> str:
        """Put an image into the registry that is not on this machine; nothing in it can run."""
        source = small_image(self.client, self.prefix, f"{name}-{secrets.token_hex(4)}")
        pushed = self.shop.push(self.client, source, f"{self.prefix}/{name}:1")
        for reference in (pushed.reference, pushed.pinned, source):
            with contextlib.suppress(ImageNotFound):
                self.client.images.remove(reference)
        return pushed.reference

    def run(self, image: str) -> int:
        """Have the node pull the image; what can follow is only that it does not start."""
        researcher = Researcher.at(
            self.lab.url, username="alpha", password=self.lab.server.passwords["alpha"]
        )
        task = researcher.send(
            Order(
                image=image,
                method="none",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
            )
        )
        eventually(lambda: researcher.runs(task)[0].is_over, within=60, what="the end of the task")
        (run,) = researcher.runs(task)
        assert run.status == "start failed", run.log
        eventually(lambda: nothing_is_left(self.agent), within=30, what="nothing left")
        return int(run.id)

    def has(self, reference: str) -> bool:
        try:
            self.client.images.get(reference)
        except ImageNotFound:
            return False
        return True

    def prune(self, *options: str) -> dict[str, Any]:
        done = self.agent.command("prune", "--json", *options)
        assert done.returncode == 0, (done.stdout, done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        shop = stack.enter_context(registry())
        lab = stack.enter_context(SandboxLab(("alpha",)))
        agent = AgentProcess(
            server_url=lab.url,
            api_key=lab.api_keys["alpha"],
            settings={
                "policy": {"algorithms": [f"{shop.host}/*"]},
                "images": {"pull": "always", "keep": "0s", "disk_pressure": "100%"},
                "keep": {"runs": "1h"},
            },
        )
        made = Site(lab, agent, client, shop, f"cmd{os.getpid()}{secrets.token_hex(2)}")
        stack.callback(_clear, made)
        stack.enter_context(agent)
        yield made


def _clear(site: Site) -> None:
    for image in site.client.images.list():
        for tag in image.tags:
            if site.prefix in tag:
                site.client.images.remove(tag, force=True)


def names(answer: dict[str, Any], kind: str) -> list[str]:
    return [entry["name"] for entry in answer["removed"] if entry["kind"] == kind]


def test_a_running_agent_is_asked_and_only_what_it_pulled_goes(site: Site) -> None:
    pulled, before = site.offer("pulled"), site.offer("before")
    site.client.images.pull(before)
    for image in (pulled, before):
        site.run(image)
    shown = site.prune("--dry-run")
    assert names(shown, "image") == [pulled]
    assert site.has(pulled)
    assert names(site.prune(), "image") == [pulled]
    assert not site.has(pulled)
    assert site.has(before)
    site.agent.wait_for("stray_removed", within=30, kind="image", name=pulled, why="not used for long")
    # the same image again is just another pull
    site.run(pulled)
    assert site.has(pulled)
    assert site.agent.is_running


def test_without_an_agent_the_command_does_it_and_leaves_those_of_another_agent(site: Site) -> None:
    image = site.offer("any")
    site.client.images.pull(image)
    idle = AgentProcess(server_url=site.lab.url, api_key="unused")
    (idle.state_dir / "runs").mkdir(parents=True)
    made = [
        site.client.containers.create(image, ["/x"], labels={LABEL_NAME: owner, LABEL_RUN: "4711"})
        for owner in (idle.name, f"{idle.name}-b")
    ]
    try:
        done = idle.command("prune")
        assert done.stdout.startswith(f"removed container {made[0].id[:12]} of run 4711: ")
        assert done.returncode == 0
        with pytest.raises(NotFound):
            made[0].reload()
        made[1].reload()
    finally:
        for container in made:
            with contextlib.suppress(NotFound):
                container.remove(force=True)
        idle.clean_up()


def test_old_runs_leave_the_journal_while_the_agent_works(site: Site) -> None:
    old = site.run(site.offer("aged"))
    kept = site.run(site.offer("young"))
    with contextlib.closing(sqlite3.connect(site.agent.state_dir / "journal.sqlite", timeout=30)) as journal:
        journal.execute("UPDATE run SET finished_at = finished_at - 7200 WHERE run_id = ?", (old,))
        journal.commit()
    assert site.prune()["runs"] == 1
    left = {run["run_id"] for run in site.agent.runs()}
    assert kept in left
    assert old not in left
