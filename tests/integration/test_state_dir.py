"""The agent's own disk: full, read-only, or with a journal it cannot trust. Nothing is lost, and nothing is guessed."""

import contextlib
import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from node_agent.sandbox.researcher import Order, Researcher
from node_agent.store.journal import FILE_NAME
from node_agent.store.schema import MIGRATIONS
from node_agent.store.soundness import read_only
from tests.interop.stage import eventually
from tests.lab.agents import AgentError, AgentProcess
from tests.lab.counting import ENDED_RUNS, counted, counting_image, nothing_is_left, reckon
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

EXIT_CONFIG = 78
EXIT_LATER = 75
DISK = "6m"
PAGE = 4096
REWRITTEN_SECONDS = 1.2
"""The agent rewrites its sign of life every second."""
LIMITS = {
    "concurrent_runs": 4,
    "cpus": 1,
    "memory": "64MiB",
    "tmp_size": "1MiB",
    "output_size": "256KiB",
    "min_free_disk": "4KiB",
}
WITHIN = 60


# --- a disk of its own ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallDisk:
    """A few megabytes, with nothing on them but what the test and the agent put there."""

    folder: Path

    def fill(self) -> None:
        """Take every byte that is left, and what the agent gives back when it rewrites its small files."""
        for _ in range(2):
            self.fill_while_nobody_writes()
            time.sleep(REWRITTEN_SECONDS)

    def fill_while_nobody_writes(self) -> None:
        """Take every byte that is left."""
        with (self.folder / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(b"x" * PAGE):
                pass

    def free(self) -> None:
        """Give it back."""
        (self.folder / "ballast").unlink()

    def remount(self, how: str) -> None:
        """Let it be written to (`rw`), or not (`ro`)."""
        subprocess.run(["mount", "-o", f"remount,{how}", self.folder], check=True)


@dataclass(frozen=True)
class BreakingDisk:
    """A disk the kernel makes read-only under whoever writes to it, as it does with one that fails."""

    folder: Path
    image: Path

    def mount(self) -> "subprocess.CompletedProcess[str]":
        command = ["mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def break_down(self) -> None:
        """Take nothing more; what was written stays."""
        os.sync()
        subprocess.run(["mount", "-o", "remount,abort", self.folder], check=True)

    def repair(self) -> None:
        """Do what an administrator does: unmount, check, mount again."""
        deadline = time.monotonic() + WITHIN
        while not self._mounted_anew():
            assert time.monotonic() < deadline, "the disk is still in use"
            time.sleep(0.2)

    def _mounted_anew(self) -> bool:
        """Try it once: a container that begins at that moment still has the broken file system, which is then met again."""
        if subprocess.run(["umount", self.folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["e2fsck", "-p", "-f", self.image], capture_output=True, check=False)
        mounted = self.mount()
        assert mounted.returncode == 0, mounted.stderr
        return not os.statvfs(self.folder).f_flag & os.ST_RDONLY


@pytest.fixture
def breaking(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[BreakingDisk]:
    made = BreakingDisk(tmp_path / "breaking", tmp_path / "breaking.img")
    made.folder.mkdir()
    with made.image.open("wb") as image:
        image.truncate(32 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", made.image], check=True)
    mounted = made.mount()
    if mounted.returncode != 0:
        missing(f"the right to mount a disk from a file: {mounted.stderr.strip()}")
    try:
        yield made
    finally:
        subprocess.run(["umount", "--lazy", made.folder], check=True)


def status_of(agent: AgentProcess) -> dict[str, Any]:
    """Ask the agent's own command how it is."""
    told: dict[str, Any] = json.loads(agent.command("status", "--json").stdout)
    return told


def announced(agent: AgentProcess, run: int) -> str:
    """Read what the journal holds to be the last status that the server was told."""
    with contextlib.closing(read_only(agent.state_dir / FILE_NAME)) as journal:
        (status,) = journal.execute("SELECT announced FROM run WHERE run_id = ?", (run,)).fetchone()
        return str(status)


def with_disk_problem(agent: AgentProcess) -> dict[str, Any] | None:
    """Ask it too, and answer once it tells of its disk."""
    told = status_of(agent)
    return told if told.get("disk_problem") else None


@pytest.fixture
def disk(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"the right to mount a small disk: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# --- an agent with a server and an engine -----------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A server with one organization, its researcher, and the image that counts its starts."""

    lab: SandboxLab
    image: str

    def agent(self, state_dir: Path | None = None) -> AgentProcess:
        """Make the organization's agent; it is not started."""
        place = {} if state_dir is None else {"state_dir": str(state_dir)}
        made = AgentProcess(
            server_url=self.lab.url,
            api_key=self.lab.api_keys["alpha"],
            settings={"limits": LIMITS, "logging": {"level": "debug"}, **place},
        )
        made.state_dir = state_dir or made.state_dir
        return made

    def send(self, seconds: float) -> int:
        """Send a task that works for so long, and give the number of its run."""
        server = self.lab.server
        researcher = Researcher.at(server.url, username="alpha", password=server.passwords["alpha"])
        task_id = researcher.send(
            Order(
                image=self.image,
                method="count",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
                kwargs={"seconds": seconds},
            )
        )
        (run,) = researcher.runs(task_id)
        return run.id

    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.lab.server.database.rows(ENDED_RUNS, self.lab.node_ids["alpha"])]

    def send_and_see_at_work(self, agent: AgentProcess, *, seconds: float) -> int:
        """Send a task and wait until it works, and neither it nor the agent has more to write for now."""
        run = self.send(seconds)
        output = agent.state_dir / "runs" / f"{run:09d}" / "mount" / f"task-{run:09d}" / "output"
        deadline = time.monotonic() + WITHIN
        while not (output.exists() and output.stat().st_size):
            assert time.monotonic() < deadline, agent.log_tail()
            time.sleep(0.05)
        eventually(
            lambda: announced(agent, run) == "active", within=WITHIN, what="the run's start in the journal"
        )
        return run

    def assert_all_end_well(self, agent: AgentProcess, *, within: float) -> None:
        """Wait for the end of every run; nothing may be lost, done twice, or left."""
        deadline = time.monotonic() + within
        while not (all(row["accepted"] for row in self.rows()) and nothing_is_left(agent)):
            assert time.monotonic() < deadline, agent.log_tail()
            time.sleep(0.1)
        reckoning = reckon(agent, self.rows())
        assert reckoning.is_clean, reckoning


@pytest.fixture
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        lab = counted(stack.enter_context(SandboxLab(("alpha",))))
        yield Site(lab, counting_image(client))


@pytest.mark.engine
def test_on_a_full_disk_nothing_is_lost_and_the_work_goes_on_when_there_is_space(
    site: Site, disk: SmallDisk
) -> None:
    with site.agent(disk.folder) as agent:
        ends_meanwhile = site.send_and_see_at_work(agent, seconds=3.5)
        disk.fill()
        comes_meanwhile = site.send(0)
        # neither the new run's input nor the other one's log can be written
        said = agent.wait_for("disk_lost", within=WITHIN)
        assert "full" in said["reason"] or "No space left" in said["reason"]
        agent.wait_for("step_postponed", within=WITHIN, run_id=ends_meanwhile)
        # the agent says how it is every second
        status = eventually(lambda: with_disk_problem(agent), within=WITHIN, what="the disk to be told of")
        assert status["running"]
        assert not status["silent"]
        assert "full" in status["disk_problem"] or "No space left" in status["disk_problem"]
        ended = {row["id"]: row["accepted"] for row in site.rows()}
        assert ended == {ends_meanwhile: 0, comes_meanwhile: 0}
        disk.free()
        agent.wait_for("disk_back", within=WITHIN)
        site.assert_all_end_well(agent, within=WITHIN)
        told = [
            line["event"] for line in agent.log_lines() if line.get("event") in {"disk_lost", "disk_back"}
        ]
        assert told == ["disk_lost", "disk_back"]
        assert status_of(agent)["disk_problem"] == ""


@pytest.mark.engine
def test_on_a_disk_that_breaks_under_the_agent_nothing_is_lost(site: Site, breaking: BreakingDisk) -> None:
    with site.agent(breaking.folder) as agent:
        ends_meanwhile = site.send_and_see_at_work(agent, seconds=3.5)
        breaking.break_down()
        said = agent.wait_for("disk_lost", within=WITHIN)
        assert "cannot be written" in said["reason"]
        agent.wait_for("step_postponed", within=WITHIN, run_id=ends_meanwhile)
        # the agent cannot even write how it is; whoever asks sees it all the same
        assert "disk    read-only" in agent.command("status").stdout
        assert [row["accepted"] for row in site.rows()] == [0]
        agent.kill()
        breaking.repair()
        agent.start()
        site.assert_all_end_well(agent, within=WITHIN)


@pytest.mark.engine
def test_an_agent_that_dies_on_a_full_disk_takes_everything_up_when_there_is_space(
    site: Site, disk: SmallDisk
) -> None:
    with site.agent(disk.folder) as agent:
        site.send_and_see_at_work(agent, seconds=3.5)
        disk.fill()
        agent.kill()
        agent.launch()
        # it waits, or ends and leaves it to its supervisor to start it again
        with contextlib.suppress(AgentError):
            agent.wait_for("disk_lost", within=WITHIN)
        assert agent.is_running or agent.wait(WITHIN) == EXIT_LATER, agent.log_tail()
        disk.free()
        if not agent.is_running:
            agent.start()
        site.assert_all_end_well(agent, within=WITHIN)


@pytest.mark.engine
def test_without_its_journal_an_agent_finds_its_runs_again_and_starts_none_twice(site: Site) -> None:
    with site.agent() as agent:
        runs, works_on = site.send(1), site.send(5)
        for run in (runs, works_on):
            agent.wait_for("run_advanced", within=WITHIN, run_id=run, to="running")
        agent.kill()
        # what the refusal of a damaged journal tells the operator to do
        for file in agent.state_dir.glob(f"{FILE_NAME}*"):
            file.rename(agent.folder / file.name)
        time.sleep(1)
        agent.start()
        site.assert_all_end_well(agent, within=WITHIN)


# --- refusals: neither engine nor server is asked ---------------------------------------------------------------


@pytest.fixture
def lonely() -> Iterator[AgentProcess]:
    """An agent that has neither server nor engine, and needs none to look at its own disk."""
    nowhere = "http://127.0.0.1:9/api"
    made = AgentProcess(
        server_url=nowhere,
        api_key="7b0a6ba4-8c1c-4a51-a4fb-53e3a3f1a2b7",
        settings={"docker_host": "unix:///nonexistent/docker.sock"},
    )
    try:
        yield made
    finally:
        if made.is_running:
            made.kill()
        # it never came to a container or a network
        made._folder.cleanup()


def journal_of(agent: AgentProcess) -> Path:
    """Have the agent make its journal, and then be killed."""
    agent.launch()
    agent.wait_for("engine_lost", within=WITHIN)
    agent.kill()
    return agent.state_dir / FILE_NAME


def garbage(journal: Path) -> None:
    journal.write_bytes(b"\xde\xad\xbe\xef" * 4096)


def half(journal: Path) -> None:
    with sqlite3.connect(journal) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) // 2])


def emptied(journal: Path) -> None:
    journal.write_bytes(b"")


def from_tomorrow(journal: Path) -> None:
    with sqlite3.connect(journal) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "said", "todo"),
    [
        (garbage, "is damaged", "Move it aside"),
        (half, "is damaged", "Move it aside"),
        (emptied, "is empty although this state directory was used", "Move it aside"),
        (from_tomorrow, "was written by a newer node-agent", "Install that version again"),
    ],
)
def test_a_journal_that_cannot_be_trusted_is_refused_and_kept(
    lonely: AgentProcess, spoil: Callable[[Path], None], said: str, todo: str
) -> None:
    journal = journal_of(lonely)
    spoil(journal)
    content = journal.read_bytes()
    lonely.launch()
    assert lonely.wait(WITHIN) == EXIT_CONFIG
    (last,) = [line for line in lonely.log_lines() if line.get("event") == "agent_ended"]
    assert str(journal) in last["reason"]
    assert said in last["reason"]
    assert todo in last["hint"]
    assert journal.read_bytes() == content


def test_a_state_directory_that_cannot_be_written_to_is_refused_with_its_name(
    lonely: AgentProcess, disk: SmallDisk
) -> None:
    config = lonely.config_file.read_text().replace(str(lonely.state_dir), str(disk.folder))
    lonely.config_file.write_text(config)
    disk.remount("ro")
    lonely.launch()
    assert lonely.wait(WITHIN) == EXIT_CONFIG
    (last,) = [line for line in lonely.log_lines() if line.get("event") == "agent_ended"]
    assert str(disk.folder) in last["reason"]
    assert "Read-only" in last["reason"]
    disk.remount("rw")
    lonely.launch()
    lonely.wait_for("engine_lost", within=WITHIN)


def test_on_a_disk_without_a_byte_left_the_agent_says_so_and_may_be_started_again(
    lonely: AgentProcess, disk: SmallDisk
) -> None:
    config = lonely.config_file.read_text().replace(str(lonely.state_dir), str(disk.folder))
    lonely.config_file.write_text(config)
    disk.fill_while_nobody_writes()
    lonely.launch()
    assert lonely.wait(WITHIN) == EXIT_LATER
    (last,) = [line for line in lonely.log_lines() if line.get("event") == "agent_ended"]
    assert "is full" in last["reason"]
    assert "Free some space" in last["hint"]
    disk.free()
    lonely.launch()
    lonely.wait_for("engine_lost", within=WITHIN)


def test_a_journal_that_another_program_holds_is_left_to_the_supervisor(lonely: AgentProcess) -> None:
    journal = journal_of(lonely)
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        lonely.launch()
        assert lonely.wait(WITHIN) == EXIT_LATER
    (last,) = [line for line in lonely.log_lines() if line.get("event") == "agent_ended"]
    assert "locked by another program" in last["reason"]
    lonely.launch()
    lonely.wait_for("engine_lost", within=WITHIN)
