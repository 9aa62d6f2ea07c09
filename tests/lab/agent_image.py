"""The agent's own image, built without a package index, and the containers `configs/compose.yaml` describes.

Owns the build's context and the reading of the compose file, as far as that file goes: what it does not know, it refuses.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import yaml

from tests.lab.images import LABEL, REPOSITORY, ImageError, _finish
from tests.lab.places import ROOT, locked, timed
from tests.lab.systemd import debian_image, python_of
from tests.lab.wheels import dependency_wheels

AGENT_IMAGE = f"{REPOSITORY}/agent:latest"
COMPOSE = ROOT / "configs" / "compose.yaml"
HEALTHY_SECONDS = 60
NANOSECONDS = 1_000_000_000
_VARIABLE = re.compile(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}")


def agent_image(client: docker.DockerClient) -> str:
    """Return the image of the agent as it stands in this checkout."""
    base = debian_image(client)
    wheels = dependency_wheels(python_of(client, base))
    with locked("agent-image"), timed("building the agent's image"), _context(wheels) as context:
        _finish(
            client.api.build(
                path=str(context),
                tag=AGENT_IMAGE,
                labels={LABEL: "1"},
                # Nothing is opened in these tests, and a build has no way to a package index.
                buildargs={"BASE": base, "EXTRAS": ""},
                network_mode="none",
                rm=True,
                decode=True,
            )
        )
    return AGENT_IMAGE


@contextlib.contextmanager
def _context(wheels: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md"):
            shutil.copy2(ROOT / name, context)
        shutil.copytree(ROOT / "node_agent", context / "node_agent")
        shutil.copytree(wheels, context / "wheels", ignore=shutil.ignore_patterns(".*"))
        yield context


# --- compose --------------------------------------------------------------------------------------------------


def services(variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read the services of the compose file, with its variables filled in."""
    text = _VARIABLE.sub(lambda match: _value(match, variables), COMPOSE.read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def _value(match: "re.Match[str]", variables: Mapping[str, str]) -> str:
    name, kind, rest = match.groups()
    if name in variables:
        return variables[name]
    if kind == "?":
        raise ImageError(f"the compose file needs {name}: {rest}")
    return rest or ""


def run_service(client: docker.DockerClient, name: str, service: Mapping[str, Any]) -> Any:
    """Create and start the container of a service, the way compose does."""
    known: Mapping[str, Callable[[Any], dict[str, Any]]] = {
        "image": lambda value: {"image": value},
        "entrypoint": lambda value: {"entrypoint": value},
        "command": lambda value: {"command": value},
        "user": lambda value: {"user": value},
        "network_mode": lambda value: {"network_mode": value},
        "cap_drop": lambda value: {"cap_drop": value},
        "cap_add": lambda value: {"cap_add": value},
        "security_opt": lambda value: {"security_opt": value},
        "group_add": lambda value: {"group_add": value},
        "read_only": lambda value: {"read_only": value},
        "init": lambda value: {"init": value},
        "tmpfs": lambda value: {"tmpfs": dict.fromkeys(value, "")},
        "volumes": lambda value: {"volumes": value},
        "restart": lambda value: {"restart_policy": {"Name": value}},
        "healthcheck": lambda value: {"healthcheck": _healthcheck(value)},
        # the order of start is the caller's, the grace is of no use without a stop by compose
        "depends_on": lambda _: {},
        "stop_grace_period": lambda _: {},
    }
    options: dict[str, Any] = {}
    for key, value in service.items():
        options |= known[key](value)
    return client.containers.run(detach=True, name=name, labels={LABEL: "1"}, **options)


def _healthcheck(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"test": value["test"], "interval": int(value["interval"].removesuffix("s")) * NANOSECONDS}


def wait_until_healthy(container: Any) -> None:
    """Wait as `depends_on: {condition: service_healthy}` does."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while True:
        container.reload()
        if container.attrs["State"].get("Health", {}).get("Status") == "healthy":
            return
        if time.monotonic() > deadline:
            raise ImageError(f"{container.name} is not healthy:\n{container.logs().decode()[-3000:]}")
        time.sleep(0.2)
