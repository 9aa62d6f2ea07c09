"""The program of two hostile runs of one job, and a container for it that is made as the agent makes one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker

from tests.lab.images import LABEL, script_image

SCRIPT = Path(__file__).with_name("sibling.py")


def sibling_image(client: docker.DockerClient) -> str:
    """Return the image with the program."""
    return script_image(client, "hostile-sibling", SCRIPT.read_text())


@contextmanager
def sibling(
    client: docker.DockerClient,
    image: str,
    *command: str,
    user: tuple[int, int],
    private: Path,
    temporary: Path,
) -> Iterator[docker.models.containers.Container]:
    """Start a run's container as the agent does, as far as its user and its folders are concerned."""
    started = client.containers.run(
        image,
        list(command),
        user="{}:{}".format(*user),
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        ulimits=[docker.types.Ulimit(name="nofile", soft=4096, hard=4096)],
        volumes=[f"{private}:/mnt/data", f"{temporary}:/mnt/tmp"],
        labels={LABEL: "1"},
        detach=True,
    )
    try:
        yield started
    finally:
        started.remove(force=True)
