"""Collaborations, plain and encrypted, with our agent in one place and nobody but a plain client in the other.

Owns how they are set up, once for those parts that share them. Must not know what is sent.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from node_agent.domain.run import State
from node_agent.payload.envelope import seal
from node_agent.payload.keys import create_private_key
from tests.bench.machine import Peak
from tests.bench.own import moments_of
from tests.bench.plainly import EmptyPlace
from tests.bench.researcher import Job, Researcher
from tests.bench.stage import AGENT_NAME_LABEL, RUN_LABEL, Stage, agent_for
from tests.bench.watching import CREATED, ENDED
from tests.lab.agents import AgentProcess
from tests.lab.vantage6 import RealServer

WITHIN = 600
Seal = Callable[[bytes], str]


@dataclass(frozen=True)
class EndedRun:
    """The moments of a run, and how far the agent's memory rose meanwhile, in MB."""

    answered: float
    """When the server had taken the task."""
    created: float
    ended: float
    states: Mapping[str, float]
    memory: float


@dataclass(frozen=True)
class Place:
    """One collaboration, plain or encrypted: our agent for `alpha`, nobody but a plain client for `plain`."""

    stage: Stage
    server: RealServer
    agent: AgentProcess
    researcher: Researcher
    empty: EmptyPlace
    folder: Path
    is_encrypted: bool

    def ended_run(self, job: Job) -> "EndedRun":
        """Send a task to our agent and wait until it has reported."""
        peak = Peak(self.agent.pid)
        task = self.researcher.post("alpha", job)
        answered = time.time()
        (run_id,) = self.researcher.await_all([task], within=WITHIN)
        moments = moments_of(self.agent, run_id, until=State.REPORTED)
        above = peak.above
        labels = {AGENT_NAME_LABEL: self.agent.name, RUN_LABEL: str(run_id)}
        engine = self.stage.watch.one_with(labels, CREATED, ENDED).moments
        return EndedRun(answered, engine[CREATED], engine[ENDED], moments, above)


def plain_place(stage: Stage) -> Place:
    """Return the collaboration without encryption."""
    return stage.shared("plain", lambda stage, stack: _made(stage, stack, {}, None))


def encrypted_place(stage: Stage) -> Place:
    """Return the encrypted one."""
    return stage.shared("encrypted", _encrypted)


def _encrypted(stage: Stage, stack: ExitStack) -> Place:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-key-")))
    key = create_private_key(folder / "alpha.pem")
    settings = {"encryption": {"private_key": str(folder / "alpha.pem")}}
    return _made(stage, stack, settings, lambda plain: b"".join(seal([plain], key.public)).decode())


def _made(stage: Stage, stack: ExitStack, settings: Mapping[str, Any], seal_with: Seal | None) -> Place:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-sizes-")))
    server = stack.enter_context(RealServer(("alpha", "plain"), encrypted=seal_with is not None))
    agent = stack.enter_context(agent_for(server, "alpha", settings))
    researcher = stack.enter_context(contextlib.closing(Researcher(server, seal=seal_with)))
    empty = stack.enter_context(contextlib.closing(EmptyPlace(server, "plain")))
    return Place(stage, server, agent, researcher, empty, folder, seal_with is not None)
