"""Runs that may not begin yet, on a real machine: for want of disk, of memory, or because another researcher is next."""

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from node_agent.domain.run import RunId
from node_agent.errors import EngineUnreachable, RunClosed
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.sandbox.researcher import Order, Researcher, RunSeen
from tests.doubles.fake_runtime import FakeNetwork
from tests.interop.stage import eventually
from tests.lab.agents import AgentError, AgentProcess
from tests.lab.counting import counting_image, nothing_is_left
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client
from tests.ports import free_port

DISK = "24m"
ROOM = 8 * 2**20
LIMITS = {
    "concurrent_runs": 3, "cpus": 1, "memory": "64MiB", "total_memory": "64MiB", "tmp_size": "1MiB",
    "output_size": "256KiB", "min_free_disk": "8MiB", "pull_time": "4s",
}  # fmt: skip
FLOOD = 60
PATIENCE = 60.0
WHY = "limits.min_free_disk is 8 MiB"


@dataclass(frozen=True)
class Site:
    """A node with a small disk and memory for one run at a time, and two researchers who send tasks to it."""

    lab: SandboxLab
    agent: AgentProcess
    image: str
    disk: Path
    silent_port: int
    """Where a registry may be that gives no answer."""

    def researcher(self, name: str) -> Researcher:
        return Researcher.at(self.lab.url, username=name, password=self.lab.server.passwords[name])

    def send(self, who: Researcher, *, seconds: float = 0, image: str | None = None) -> int:
        return who.send(
            Order(
                image=image or self.image,
                method="count",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
                kwargs={"seconds": seconds},
            )
        )

    def send_until_one_waits(self, who: Researcher, cause: str) -> int:
        """Send tasks until the agent has seen what they have to wait for; those before may begin."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            task = self.send(who)
            with contextlib.suppress(AgentError):
                self.agent.wait_for("runs_wait", within=2, cause=cause)
                return task
        raise AgentError(f"nothing had to wait for {cause}")

    def row(self, run_id: int) -> dict[str, Any]:
        """Give what `runs --json` says of a run; empty when the agent does not know it yet."""
        return next((row for row in self.agent.runs() if row["run_id"] == run_id), {})

    def ended(self, who: Researcher, task_id: int) -> RunSeen:
        eventually(lambda: who.runs(task_id)[0].is_over, within=PATIENCE, what=f"the end of task {task_id}")
        return who.runs(task_id)[0]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"the right to mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def site(disk: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        image = counting_image(client)
        lab = stack.enter_context(SandboxLab(("alpha", "beta")))
        silent_port = free_port()
        agent = AgentProcess(
            server_url=lab.url,
            api_key=lab.api_keys["alpha"],
            settings={
                "limits": LIMITS,
                "state_dir": str(disk / "state"),
                "policy": {"algorithms": ["node-agent-lab/*", f"127.0.0.1:{silent_port}/*"]},
            },
        )
        agent.state_dir = disk / "state"
        yield Site(lab, stack.enter_context(agent), image, disk, silent_port)


@pytest.mark.engine
def test_while_the_disk_has_too_little_room_nothing_is_claimed_and_everybody_is_told_why(site: Site) -> None:
    alpha = site.researcher("alpha")
    with little_room(site.disk):
        task = site.send_until_one_waits(alpha, "disk")
        (run,) = alpha.runs(task)
        eventually(
            lambda: WHY in (site.row(run.id).get("waiting_for") or ""), within=PATIENCE, what="the reason"
        )
        assert site.row(run.id)["place"] == 1
        assert WHY in site.agent.command("runs").stdout
        assert WHY in json.loads(site.agent.command("status", "--json").stdout)["waiting_for"]
        assert re.search(
            r"^waits +because the state directory has .* MiB",
            site.agent.command("status").stdout,
            re.MULTILINE,
        )
        assert alpha.runs(task)[0].status == "pending"
    assert site.ended(alpha, task).status == "completed"
    site.agent.wait_for("runs_wait_no_longer", within=PATIENCE)


@contextlib.contextmanager
def little_room(disk: Path) -> Iterator[None]:
    """Leave less room on a disk than runs begin with, and more than the agent itself needs."""
    found = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (found.f_bavail * found.f_frsize - ROOM // 2))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.engine
def test_one_run_passes_the_flood_of_another_researcher_and_the_flood_costs_no_thread(site: Site) -> None:
    alpha, beta = site.researcher("alpha"), site.researcher("beta")
    first = site.send(alpha, seconds=120)
    (first_run,) = alpha.runs(first)
    site.agent.wait_for("run_advanced", within=PATIENCE, run_id=first_run.id, to="running")
    before = threads_and_memory(site.agent.pid)
    flood = [site.send(alpha) for _ in range(FLOOD)]
    (last_run,) = alpha.runs(flood[-1])
    one = site.send(beta)
    (one_run,) = beta.runs(one)
    for run in (last_run, one_run):
        site.agent.wait_for("run_received", within=PATIENCE, run_id=run.id)
    eventually(lambda: site.row(one_run.id).get("place") == 1, within=PATIENCE, what="the first place")
    assert "limits.total_memory" in site.row(one_run.id)["waiting_for"]
    assert site.row(last_run.id)["place"] is None
    after = threads_and_memory(site.agent.pid)
    assert after[0] <= before[0]
    assert after[1] - before[1] < 32 * 1024
    alpha.kill(first)
    assert site.ended(beta, one).status == "completed"
    admitted = [
        line["run_id"]
        for line in site.agent.log_lines()
        if line.get("event") == "run_advanced"
        and line.get("to") == "admitted"
        and line["run_id"] >= first_run.id
    ]
    assert admitted[:2] == [first_run.id, one_run.id]
    # the rest would take its time
    for task in flood:
        alpha.kill(task)
    eventually(lambda: nothing_is_left(site.agent), within=PATIENCE, what="nothing left")


@pytest.mark.engine
def test_a_registry_that_hangs_ends_a_run_within_its_time_and_holds_up_nobody(site: Site) -> None:
    alpha = site.researcher("alpha")
    # everybody is let in, and nobody gets an answer
    with socket.create_server(("127.0.0.1", site.silent_port)):
        task = site.send(alpha, image=f"127.0.0.1:{site.silent_port}/average:1")
        (run,) = alpha.runs(task)
        after = site.send(alpha)
        ended = site.ended(alpha, task)
        assert ended.status == "failed"
        assert "within 4 seconds (limits.pull_time)" in ended.log
        assert site.agent.wait_for("phase_too_long", within=PATIENCE, run_id=run.id)["phase"] == "pull"
        assert site.ended(alpha, after).status == "completed"
    eventually(lambda: nothing_is_left(site.agent), within=PATIENCE, what="nothing left")


def threads_and_memory(pid: int) -> tuple[int, int]:
    """Count the threads of a process, and its memory in KiB."""
    said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(said["Threads"]), int(said["VmRSS"].split()[0])


# --- an engine that hangs ---------------------------------------------------------------------------------------


def whole_answer(content: Any) -> bytes:
    """Write an answer that is the last of its connection."""
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


@pytest.fixture
def hanging_engine(tmp_path: Path) -> Iterator[EngineConnection]:
    """An engine that tells its version and that it has no image, and says nothing else."""
    address = tmp_path / "engine.sock"
    answers = {b"/version": {"ApiVersion": "1.41", "Version": "20.10.0"}, b"/images/json": []}
    opened: list[socket.socket] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                opened.append(connection)
                asked = connection.recv(65536).partition(b" HTTP/")[0]
                for path, answer in answers.items():
                    if path in asked:
                        connection.sendall(whole_answer(answer))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield EngineConnection(f"unix://{address}", seconds=1)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(PATIENCE)
    for connection in opened:
        connection.close()


def test_a_pull_from_an_engine_that_hangs_is_left_as_soon_as_it_is_not_wanted(
    hanging_engine: EngineConnection,
) -> None:
    docker = DockerEngine("alpha", hanging_engine, FakeNetwork())
    asked: list[None] = []

    def wanted() -> bool:
        asked.append(None)
        return len(asked) < 3

    began = time.monotonic()
    with pytest.raises(RunClosed):
        docker.pull_image("registry.example.org/average", wanted=wanted, progress=lambda _: None)
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    "call",
    [
        lambda docker: docker.find_image("registry.example.org/average"),
        lambda docker: docker.ensure_started("c" * 64),
        lambda docker: docker.find_container(RunId(1)),
    ],
    ids=["find_image", "ensure_started", "find_container"],
)
def test_no_call_of_an_engine_that_hangs_takes_its_thread_for_ever(
    hanging_engine: EngineConnection, call: Callable[[DockerEngine], Any]
) -> None:
    with pytest.raises(EngineUnreachable):
        call(DockerEngine("alpha", hanging_engine, FakeNetwork()))
