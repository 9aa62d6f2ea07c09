"""Attacks on the disk: files without a name, files nobody can see, and an image that unpacks without end."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from node_agent.sandbox.researcher import Order, Researcher, RunSeen
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.counting import nothing_is_left
from tests.lab.images import script_image
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

MIB = 2**20
PATIENCE = 60.0
SMALL_DISK = 400 * MIB
LEAST_FREE = 200 * MIB

HOSTILE = """\
import base64, json, os, socket, time
def place(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()
asked = json.load(open(place("INPUT_FILE")))["kwargs"]
block, kept = b"x" * 2**20, []
def file_of(megabytes, name):
    descriptor = os.open(name, os.O_CREAT | os.O_WRONLY)
    if asked["how"] != "named":
        os.unlink(name)
    for _ in range(megabytes):
        os.write(descriptor, block)
    return descriptor
for number in range(asked["files"]):
    descriptor = file_of(asked["megabytes"], "/mnt/tmp/%d" % number)
    if asked["how"] == "in flight":
        # in the queue of a socket, and in no process's table of open files
        one, other = socket.socketpair()
        socket.send_fds(one, [b"x"], [descriptor])
        kept += [one, other]
        os.close(descriptor)
    else:
        kept.append(descriptor)
time.sleep(asked["seconds"])
open(place("OUTPUT_FILE"), "w").write("{}")
"""


@dataclass
class Site:
    """A node whose researcher may use a hostile image."""

    lab: SandboxLab
    agent: AgentProcess
    image: str
    tasks: dict[int, int] = field(default_factory=dict)

    @property
    def researcher(self) -> Researcher:
        return Researcher.at(self.lab.url, username="alpha", password=self.lab.server.passwords["alpha"])

    def send(self, how: str, *, files: int = 0, megabytes: int = 0, seconds: float = 0) -> int:
        return self.order(
            self.image, {"how": how, "files": files, "megabytes": megabytes, "seconds": seconds}
        )

    def order(self, image: str, kwargs: Mapping[str, Any]) -> int:
        return self.researcher.send(
            Order(
                image=image,
                method="attack",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
                kwargs=kwargs,
            )
        )

    def is_running(self, task: int) -> None:
        (run,) = self.researcher.runs(task)
        self.agent.wait_for("run_advanced", within=PATIENCE, run_id=run.id, to="running")

    def ended(self, task: int) -> RunSeen:
        researcher = self.researcher
        eventually(lambda: researcher.runs(task)[0].is_over, within=PATIENCE, what=f"the end of task {task}")
        return researcher.runs(task)[0]


@contextlib.contextmanager
def site_on(state_dir: Path | None, settings: Mapping[str, Any]) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        image = script_image(client, "hostile-disk", HOSTILE)
        lab = stack.enter_context(SandboxLab(("alpha",)))
        place = {} if state_dir is None else {"state_dir": str(state_dir)}
        agent = AgentProcess(
            server_url=lab.url, api_key=lab.api_keys["alpha"], settings={**settings, **place}
        )
        agent.state_dir = state_dir or agent.state_dir
        yield Site(lab, stack.enter_context(agent), image)


@pytest.fixture
def small_disk(tmp_path: Path, missing: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A file system of its own, on this machine's disk."""
    store, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with store.open("wb") as file:
        file.truncate(SMALL_DISK)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(store)], check=True)
    command = ["mount", "-o", "loop", str(store), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing(f"the right to mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def lowest_free_space(folder: Path) -> Iterator[Callable[[], int]]:
    """Watch how far the free space of a disk goes down, in bytes below the beginning."""
    import threading

    def free() -> int:
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    before, lowest, over = free(), [free()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            lowest[0] = min(lowest[0], free())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield lambda: before - lowest[0]
    finally:
        over.set()
        watching.join()


@pytest.mark.engine
def test_files_without_a_name_count_toward_the_limit_of_a_run() -> None:
    """Tries to keep 3 GB in open files that have no name, under limits of 200 MiB; the run is ended."""
    with site_on(None, {"limits": {"tmp_size": "100MiB", "output_size": "100MiB"}}) as site:
        run = site.ended(site.send("unlinked", files=30, megabytes=100, seconds=20))
        assert run.status == "failed"
        assert "limits.output_size and limits.tmp_size" in run.log


@pytest.mark.engine
@pytest.mark.parametrize("how", ["named", "unlinked", "in flight"])
def test_a_run_that_fills_the_disk_is_ended_and_its_neighbour_goes_on(small_disk: Path, how: str) -> None:
    """Tries to fill the disk within generous limits, also with files that no table of open files shows."""
    limits = {"tmp_size": "1GiB", "output_size": "1GiB", "min_free_disk": "200MiB"}
    with site_on(small_disk / "state", {"limits": limits}) as site:
        neighbour = site.send("named", seconds=8)
        site.is_running(neighbour)
        run = site.ended(site.send(how, files=7, megabytes=40, seconds=40))
        assert run.status == "failed"
        assert "limits.min_free_disk" in run.log
        assert site.ended(neighbour).status == "completed"
        eventually(lambda: nothing_is_left(site.agent), within=PATIENCE, what="nothing left")
