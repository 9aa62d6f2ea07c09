"""An agent under siege: one node, as root or as the service's ordinary user, and two people who send it hostile tasks.

Owns the agent and the people's clients. Must not know any single attack.
"""

import grp
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask
from tests.lab.agents import AgentProcess
from tests.lab.client import ClientWorker

SERVICE = 64300
"""The user of an agent that runs as a service without root."""
ENGINE_GROUP = "docker"
CANARY = "canary of the owner: never to be read"


@dataclass(frozen=True)
class Siege:
    """The agent, and alice and bob: people of two organizations who may send tasks to the same node."""

    stage: Stage
    agent: AgentProcess
    alice: ClientWorker
    bob: ClientWorker
    image: str
    canary: Path
    """A file that the agent may read and nobody else."""

    def send(self, who: ClientWorker, face: str, **arguments: Any) -> SubmittedTask:
        """Have *who* send a task that shows *face*."""
        task = who.create_task(
            image=self.image,
            method="face",
            arguments={"face": face, **arguments},
            organizations=[self.stage.server.organization_ids["alpha"]],
            databases=[],
        )
        return SubmittedTask(task, who)


@contextmanager
def siege(stage: Stage, *, user: int, image: str) -> Iterator[Siege]:
    """Run an agent of alpha as *user*; alice is of alpha, bob of beta."""
    agent = stage.agent(settings={"limits": {**SMALL_LIMITS, "run_time": "150s"}})
    try:
        if user:
            _become(agent, user)
        canary = agent.folder / "canary"
        canary.write_text(CANARY)
        canary.chmod(0o600)
        os.chown(canary, user, user)
        with ClientWorker(stage.server, "beta") as bob:
            agent.start()
            yield Siege(stage, agent, stage.client, bob, image, canary)
            agent.stop()
    finally:
        agent.clean_up()


def _become(agent: AgentProcess, user: int) -> None:
    """Let the agent run as an ordinary user of the engine's group; the firewall rule is root's, as for the service."""
    prepared = agent.command("network", "ensure")
    assert prepared.returncode == 0, prepared.stderr
    group = grp.getgrnam(ENGINE_GROUP).gr_gid
    agent.before = ("setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={group}", "--inh-caps=-all")
    for path in (agent.folder, *agent.folder.rglob("*")):
        os.chown(path, user, user)
