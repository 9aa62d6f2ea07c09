"""Siblings of one job that exchange names in each other's folders while the agent works there: the race itself, and real.

In the review each of these won within a few tries: a file of the host became the result, a folder of the host got other
rights, and a walk waited in a pipe for ever.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn, Self

import docker
import pytest

from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.store.rundir import DiskRunFolders
from tests.hostile.siblings import SCRIPT, sibling, sibling_image
from tests.parts import engine_client

ROOT, SERVICE = 0, 64300
"""The agent as root, and as the service is run: an ordinary user."""
CONTAINER = 64198
JOB = JobKey("7-1")
TRIES = 100
TREASURE = b"of the host\n"
MANY = 200
"""Files whose deletion gives the sibling time."""
LIMIT = 1 << 26
FOLDERS = [f"folder-{number:02d}" for number in range(20)]


class Site:
    """An agent's state directory, and what the host has beside it."""

    def __init__(self, place: Path, agent: int) -> None:
        self.agent = agent
        self.container = CONTAINER if agent == ROOT else agent
        self.secret = place / "secret"
        self.private = place / "private"
        self.secret.write_bytes(TREASURE)
        self.secret.chmod(0o640)
        self.private.mkdir(mode=0o755)
        (self.private / "file").write_bytes(TREASURE)
        self.state = place / "state"
        self.state.mkdir()
        place.chmod(0o755)
        for path in (place, self.secret, self.private, self.private / "file", self.state):
            os.chown(path, agent, agent)
        self._before = self._seen()
        with self.as_agent():
            self.folders = DiskRunFolders(self.state, user=(self.container, self.container))

    @contextmanager
    def as_agent(self) -> Iterator[None]:
        """Be the agent's user for a while."""
        os.setegid(self.agent)
        os.seteuid(self.agent)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def _seen(self) -> list[tuple[int, int, bytes]]:
        return [
            (found.st_mode, found.st_uid, path.read_bytes() if path.is_file() else b"")
            for path in (self.secret, self.private, self.private / "file")
            for found in [path.stat()]
        ]

    def check_nothing_is_touched(self) -> None:
        """Make sure that the host's files have their content, owner and rights."""
        assert self._seen() == self._before

    def prepare(self, run: int) -> Path:
        """Make a run's folders ready; give its task folder."""
        with self.as_agent():
            self.folders.store_input(RunId(run), [b"{}"])
            prepared = self.folders.prepare(RunId(run), JOB, token=Secret("t"), open_to_all=False)
        return prepared.private / f"task-{run:09d}"

    def capture(self, run: int) -> bytes:
        """Take the run's output over; give what would be sent."""
        with self.as_agent():
            self.folders.capture_output(RunId(run), limit=LIMIT)
            result = self.folders.result_path(RunId(run))
            assert result is not None
            return result.read_bytes()


@pytest.fixture(params=[ROOT, SERVICE], ids=["root", "service"])
def site(request: pytest.FixtureRequest, missing: Callable[[str], NoReturn], quick_dir: Path) -> Site:
    if os.geteuid() != 0:
        missing("a test that becomes other users runs as root")
    return Site(quick_dir, request.param)


class Sibling:
    """The hostile algorithm as a process of the container's user, which gets into whatever folder it is told."""

    def __init__(self, site: Site, target: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(SCRIPT), "serve", str(target), str(site.container)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def attacking(self, attack: str, folder: Path) -> Iterator[None]:
        """Let it lie in wait during the block, and do what it does."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{attack} {folder}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        yield
        assert process.stdout.readline() == "done\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()


# --- the race, a hundred times ----------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_an_output_exchanged_for_a_link_never_becomes_a_file_of_the_host(site: Site) -> None:
    with Sibling(site, site.secret) as sibling:
        for run in range(1, TRIES + 1):
            task = site.prepare(run)
            (task / "output").write_bytes(b"harmless" * 10_000)
            with sibling.attacking("output", task):
                assert TREASURE not in site.capture(run)
            site.check_nothing_is_touched()
            with site.as_agent():
                site.folders.remove(RunId(run))


def folders_in(place: Path, site: Site) -> None:
    """Make folders with a file each, as an algorithm does."""
    for name in FOLDERS:
        (place / name).mkdir()
        (place / name / "file").touch()
        for path in (place / name, place / name / "file"):
            os.chown(path, site.container, site.container)


@pytest.mark.timeout(120)
def test_folders_exchanged_for_pipes_do_not_hold_the_look_at_the_disk(site: Site) -> None:
    with Sibling(site, site.secret) as sibling:
        for run in range(1, TRIES + 1):
            task = site.prepare(run)
            folders_in(task, site)
            with sibling.attacking("pipes", task), site.as_agent():
                site.folders.used_bytes(RunId(run), JOB)
            with site.as_agent():
                site.folders.remove(RunId(run))


@pytest.mark.timeout(120)
def test_folders_exchanged_for_links_change_no_rights_of_the_host_while_they_are_removed(site: Site) -> None:
    with Sibling(site, site.private) as sibling:
        for run in range(1, TRIES + 1):
            task = site.prepare(run)
            folders_in(task, site)
            for number in range(MANY):
                (task / str(number)).touch()
            with sibling.attacking("links", task), site.as_agent():
                site.folders.remove(RunId(run))
            site.check_nothing_is_touched()


# --- two containers of one job ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    with engine_client() as found:
        yield found


@pytest.fixture(scope="module")
def image(client: docker.DockerClient) -> str:
    return sibling_image(client)


def container(
    client: docker.DockerClient, image: str, site: Site, run: int, *command: str
) -> AbstractContextManager[docker.models.containers.Container]:
    return sibling(
        client,
        image,
        *command,
        user=(site.container, site.container),
        private=site.state / "runs" / f"{run:09d}" / "mount",
        temporary=site.state / "jobs" / JOB,
    )


@pytest.mark.engine
@pytest.mark.parametrize("attempt", range(3))
def test_a_sibling_with_the_leaked_folder_of_a_run_gets_no_file_of_the_host_into_its_result(
    site: Site, client: docker.DockerClient, image: str, attempt: int
) -> None:
    del attempt
    for run in (1, 2):
        site.prepare(run)
    with (
        container(client, image, site, 2, "listen", str(site.secret)) as listening,
        container(client, image, site, 1, "leave") as leaving,
    ):
        assert leaving.wait(timeout=30)["StatusCode"] == 0, (
            leaving.logs().decode() + listening.logs().decode()
        )
        assert TREASURE not in site.capture(1)
        assert listening.wait(timeout=30)["StatusCode"] == 0
        assert listening.logs() == b"exchanged\n"
        site.check_nothing_is_touched()
        assert (site.state / "runs" / "000000001" / "mount" / "task-000000001").is_dir()
        with site.as_agent():
            site.folders.remove(RunId(1))
        site.check_nothing_is_touched()
