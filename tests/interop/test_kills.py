"""A killed task stops wherever it is, and the server's word for it stays."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask, eventually
from tests.lab.agents import AgentProcess

pytestmark = pytest.mark.interop

LONG = "print('busy', flush=True); time.sleep(120); write('too late')"


@pytest.fixture(scope="module")
def silent_registry() -> Iterator[str]:
    """A registry that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        callers: list[socket.socket] = []

        def take_calls() -> None:
            while True:
                try:
                    callers.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take_calls, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        for caller in callers:
            caller.close()
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def agent(real: Stage, silent_registry: str) -> Iterator[AgentProcess]:
    settings = {
        "limits": SMALL_LIMITS | {"concurrent_runs": 1},
        "policy": {"algorithms": ["node-agent-lab/*", f"{silent_registry}/*"]},
    }
    with real.agent(settings=settings) as made:
        yield made


@contextmanager
def measured(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"\n{what}: {time.monotonic() - started:.2f} s")


def run_state(agent: AgentProcess, run_id: int) -> str:
    return next((str(run["state"]) for run in agent.runs() if run["run_id"] == run_id), "unknown")


def gone(agent: AgentProcess) -> bool:
    return not agent.containers()


def test_a_running_container_is_gone_at_once(real: Stage, agent: AgentProcess) -> None:
    task = real.submit(LONG)
    task.reached("active")
    task.kill()
    with measured("kill of a running container"):
        eventually(lambda: gone(agent), within=10, what="the container's end")
    assert task.run["status"] == "killed by user"
    assert_stays_killed(agent, task)


def assert_stays_killed(agent: AgentProcess, task: SubmittedTask) -> None:
    run_id = task.run["id"]
    eventually(lambda: run_state(agent, run_id) == "removed", within=15, what=f"run {run_id} to be over")
    assert task.run["status"] == "killed by user"
    assert task.run["finished_at"]


def test_a_pull_that_hangs_is_called_off(real: Stage, agent: AgentProcess, silent_registry: str) -> None:
    task = real.submit(image=f"{silent_registry}/lab/slow:1")
    run_id = task.reached("initializing")["id"]
    eventually(lambda: run_state(agent, run_id) == "admitted", within=10, what="the pull")
    time.sleep(1)
    task.kill()
    with measured("kill during a pull"):
        assert_stays_killed(agent, task)
    assert real.submit("write('the slot is free')").result() == "the slot is free"


def test_a_run_that_waits_for_a_slot_never_starts(real: Stage, agent: AgentProcess) -> None:
    first = real.submit(LONG)
    first.reached("active")
    second = real.submit(LONG)
    run_id = second.run["id"]
    eventually(lambda: run_state(agent, run_id) == "received", within=10, what="the second run")
    second.kill()
    assert_stays_killed(agent, second)
    assert len(agent.containers()) == 1
    first.kill()
    eventually(lambda: gone(agent), within=10, what="the first container's end")


def test_a_task_deleted_while_it_runs_is_stopped_and_forgotten(real: Stage, agent: AgentProcess) -> None:
    task = real.submit(LONG)
    run_id = task.reached("active")["id"]
    real.client.call("task.delete", id_=task.id)
    with measured("deletion of a running task"):
        eventually(lambda: gone(agent), within=10, what="the container's end")
    eventually(lambda: run_state(agent, run_id) == "removed", within=15, what="the run to be over")


def test_a_task_that_gets_the_numbers_of_a_deleted_one_runs_with_its_own_input(
    real: Stage, agent: AgentProcess
) -> None:
    deleted = real.submit("write('the old one')")
    deleted.result()
    run_id = deleted.run["id"]
    eventually(lambda: run_state(agent, run_id) == "removed", within=15, what="the run to be over")
    real.client.call("task.delete", id_=deleted.id)
    another = real.submit("write('the new one')")
    assert another.id == deleted.id, "this server's database no longer gives numbers twice"
    assert another.run["id"] == run_id
    assert another.result() == "the new one"


def test_a_container_that_somebody_removes_is_reported_as_lost(real: Stage, agent: AgentProcess) -> None:
    task = real.submit(LONG)
    task.reached("active")
    # While nobody looks: a removal kills first, and an agent that looks in between rightly says "crashed".
    agent.kill()
    for container in agent.containers():
        container.remove(force=True)
    agent.start()
    run = task.ended()
    assert run["status"] == "unknown error"
    assert "disappeared" in run["log"]


def test_a_task_killed_while_the_agent_was_down_is_stopped_when_it_comes_up(
    real: Stage, agent: AgentProcess, leaves_nothing: Callable[[AgentProcess], None]
) -> None:
    killed = real.submit(LONG)
    killed.reached("active")
    agent.kill()
    assert len(agent.containers()) == 1
    killed.kill()
    agent.start()
    with measured("end of what was killed meanwhile"):
        eventually(lambda: gone(agent), within=15, what="the container's end")
    assert_stays_killed(agent, killed)
    leaves_nothing(agent)
