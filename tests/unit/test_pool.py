"""The threads that do steps, and which settings each step gets."""

import queue
from dataclasses import dataclass
from typing import Any, cast

from node_agent.domain.lifecycle import Wait
from node_agent.domain.messages import Message, StepDone
from node_agent.domain.run import RunId
from node_agent.errors import RunClosed
from node_agent.pool import StepPool
from node_agent.stepports import Ports
from tests.doubles.core import make_run

SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A server that knows a run, or does not."""

    open: bool

    def is_open(self, _run_id: RunId) -> bool:
        return self.open


@dataclass(frozen=True)
class OnlyAServer:
    """As much of the ports as the step `verify` touches."""

    server: Any


def ports(server: Server) -> Ports:
    return cast("Ports", OnlyAServer(server))


def test_a_step_keeps_the_settings_it_was_submitted_with_and_the_next_one_gets_the_new_ones() -> None:
    posted: queue.Queue[Message] = queue.Queue()
    pool = StepPool(ports_of=lambda _: ports(Server(open=False)), post=posted.put, threads=0)
    pool.submit("verify", make_run(1))
    pool.renew(ports_of=lambda _: ports(Server(open=True)), threads=1)
    pool.submit("verify", make_run(2))
    first, second = (cast("StepDone", posted.get(timeout=SECONDS)) for _ in range(2))
    assert isinstance(first.error, RunClosed)
    assert second == StepDone(RunId(2), "verify", Wait({}, seconds=0), None)


def test_fewer_threads_are_no_fewer_threads() -> None:
    posted: queue.Queue[Message] = queue.Queue()
    pool = StepPool(ports_of=lambda _: ports(Server(open=True)), post=posted.put, threads=1)
    pool.start()
    pool.renew(ports_of=lambda _: ports(Server(open=True)), threads=0)
    pool.submit("verify", make_run(1))
    assert cast("StepDone", posted.get(timeout=SECONDS)).error is None
