"""What one run does as its user hurts no other run: limits that the kernel counts per uid, and descriptors that leak.

In the review one run took all inotify instances, and another user's run got none; and a descriptor of a sibling's folder
was as good as one's own.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import docker
import pytest

from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.store.rundir import DiskRunFolders
from tests.hostile.siblings import sibling, sibling_image
from tests.parts import engine_client

pytestmark = pytest.mark.engine

IDS = range(2_000_400_000, 2_000_400_256)
JOB = JobKey("7-1")
SECONDS = 30


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    with engine_client() as found:
        yield found


@pytest.fixture(scope="module")
def image(client: docker.DockerClient) -> str:
    return sibling_image(client)


@pytest.fixture
def folders(quick_dir: Path, missing: Callable[[str], NoReturn]) -> DiskRunFolders:
    if os.geteuid() != 0:
        missing("an agent that gives folders to others runs as root")
    return DiskRunFolders(quick_dir, user=(64198, 64198), ids=IDS)


def prepare(folders: DiskRunFolders, run: int, job: JobKey = JOB) -> Folders:
    folders.store_input(RunId(run), [b"{}"])
    return folders.prepare(RunId(run), job, token=Secret("t"), open_to_all=False)


def container(
    client: docker.DockerClient, image: str, made: Folders, command: str
) -> AbstractContextManager[docker.models.containers.Container]:
    return sibling(client, image, command, user=made.user, private=made.private, temporary=made.temporary)


def said_by(found: docker.models.containers.Container) -> str:
    found.wait(timeout=SECONDS)
    return found.logs().decode()


def until_it_says(found: docker.models.containers.Container, words: str) -> str:
    deadline = time.monotonic() + SECONDS
    while words not in (text := found.logs().decode()):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def test_a_run_that_takes_all_inotify_instances_takes_none_from_another(
    folders: DiskRunFolders, client: docker.DockerClient, image: str
) -> None:
    hostile, other = prepare(folders, 1), prepare(folders, 2, JobKey("8-2"))
    with container(client, image, hostile, "hoard") as hoarding:
        assert until_it_says(hoarding, "took").endswith(": EMFILE\n")
        with container(client, image, hostile, "watch") as same:
            assert said_by(same) == "EMFILE\n"  # the limit is really reached
        with container(client, image, other, "watch") as watching:
            assert said_by(watching) == "watches\n"


def test_a_descriptor_of_a_siblings_folder_is_worth_nothing(
    folders: DiskRunFolders, client: docker.DockerClient, image: str
) -> None:
    first, second = prepare(folders, 1), prepare(folders, 2)
    with (
        container(client, image, second, "use") as using,
        container(client, image, first, "leave") as leaving,
    ):
        assert leaving.wait(timeout=SECONDS)["StatusCode"] == 0, leaving.logs().decode()
        assert said_by(using) == "make EACCES\nrename EACCES\nlink EACCES\nread EACCES\n"
    assert folders.capture_output(RunId(1), limit=1 << 20) == 800_000
