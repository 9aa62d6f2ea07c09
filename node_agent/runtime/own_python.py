"""A container in which this agent's own Python runs, without an image of anybody: an empty one, and the program mounted.

Owns what has to be mounted and the empty image. Must not know what is run in it.
"""

import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound

from node_agent.domain.container import ContainerLimits, ContainerSpec, Mount, NetworkFacts
from node_agent.errors import StartFailed
from node_agent.runtime.spec import LABEL_KEEPER, LABEL_NAME, LABEL_PROBE, container_config
from node_agent.runtime.traits import traits_of

_SLEEP = "import signal; signal.pause()"
EMPTY_IMAGE = "node-agent-probe"
EMPTY_TAG = "latest"
"""The one tag that Podman gives an imported image, whatever it is asked for."""


def own_python() -> str:
    """Give the program that runs this agent, without the virtual environment around it."""
    named = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    return str(named) if named.exists() else os.path.realpath(sys.executable)


def own_python_mounts() -> tuple[Mount, ...]:
    """Give what this Python needs to run in an empty container, read-only and at the same places."""
    wanted = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store", sys.base_prefix]
    present = [path for path in dict.fromkeys(wanted) if Path(path).exists()]
    inside_another = {path for path in present for other in present if path.startswith(other + "/")}
    return tuple(Mount(path, path, read_only=True) for path in present if path not in inside_another)


def ensured_empty_image(client: APIClient) -> str:
    """Give the id of the empty image, made if it is missing."""
    reference = f"{EMPTY_IMAGE}:{EMPTY_TAG}"
    try:
        found = client.inspect_image(reference)  # type: ignore[no-untyped-call]
    except NotFound:
        _import_empty(client)
        found = client.inspect_image(reference)  # type: ignore[no-untyped-call]
    return str(found["Id"])


def _import_empty(client: APIClient) -> None:
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    try:
        client.import_image_from_data(
            empty.getvalue(), repository=EMPTY_IMAGE, tag=EMPTY_TAG, changes=[f"LABEL {LABEL_PROBE}=true"]
        )
    except APIError as error:
        raise StartFailed(
            f"the engine does not take the probe's empty image: {error.explanation}."
        ) from error


def sleeping_container(
    client: APIClient,
    *,
    agent: str,
    network: NetworkFacts,
    user: tuple[int, int],
    limits: ContainerLimits,
    image: str | None,
    keeps: str,
) -> dict[str, Any]:
    """Describe a container that is only there to be there, as confined as a run's; *keeps* is what its label says of it.

    *image* is one with python3; without it the agent's own Python sleeps. Raises StartFailed.
    """
    spec = ContainerSpec(
        name="",
        run_id=None,
        image_id=image or ensured_empty_image(client),
        user=user,
        groups=(),
        environment={},
        mounts=() if image else own_python_mounts(),
        limits=limits,
        command=("python3" if image else own_python(), "-I", "-S", "-c", _SLEEP),
    )
    config = container_config(spec, agent=agent, network=network, traits=traits_of(client))
    return {**config, "Labels": {LABEL_NAME: agent, LABEL_KEEPER: keeps}}
