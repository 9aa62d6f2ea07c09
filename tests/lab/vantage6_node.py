"""The node that vantage6 itself ships, 4.15.2, in its container, started by its own command line.

Owns its image, the command line's environment, one node's configuration and everything the node leaves behind in the
engine. Must not know our agent, nor what is asked of the node.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import docker
import yaml
from docker.errors import APIError, NotFound

from tests.lab.images import BASE, LABEL, REPOSITORY, ImageError, install_into, python_base
from tests.lab.places import lab_dir, locked, say, timed
from tests.lab.vantage6 import RealServer
from tests.lab.venvs import VANTAGE6_VERSION, environment, venv

COMMAND_LINE = (f"vantage6=={VANTAGE6_VERSION}",)
# What the published package asks for, in its versions, plus the two it imports without asking. Only psutil differs,
# since 5.9.0 has no wheel for Python 3.11; nothing but the metrics uses it, and they are off.
NODE = (
    *(f"vantage6-{part}=={VANTAGE6_VERSION}" for part in ("client", "algorithm-tools")),
    f"vantage6=={VANTAGE6_VERSION}",
    *("click==8.1.3", "docker==7.1.0", "gevent==25.4.2", "jinja2==3.1.6", "nvidia-ml-py==12.535.133"),
    *("psutil>=5.9,<6", "python-socketio==5.15.0", "requests==2.33.1"),
    *("flask==3.1.3", "websocket-client"),
)
NODE_ITSELF = f"vantage6-node=={VANTAGE6_VERSION}"
PROGRAM = """\
#!/usr/bin/env python3
from vantage6.node.cli.node import cli_node
cli_node()
"""
RECIPE = f"""\
FROM {BASE}
COPY vnode-local /usr/local/bin/vnode-local
COPY site /opt/node
ENV PYTHONPATH=/opt/node PROXY_SERVER_PORT=80
RUN chmod 755 /usr/local/bin/vnode-local && python3 -m compileall -q -j 0 -x /tests/ /opt/node
"""
# Some machines have /.dockerenv without being a container; the command line would then look for its folders below /mnt.
START = """\
import sys
from vantage6.common import context
context.running_in_docker = lambda: False
from vantage6.cli.cli import cli_complete
sys.exit(cli_complete())
"""
ONLINE_SECONDS = 60
STOP_SECONDS = 30


class NodeError(Exception):
    """vantage6's own node does not start; the text says why."""


def node_image(client: docker.DockerClient) -> str:
    """Return an image of the published node package, built once."""
    base = client.images.get(python_base(client))
    recipe = json.dumps([base.id, NODE, NODE_ITSELF, PROGRAM, RECIPE])
    tag = f"{REPOSITORY}/vantage6-node:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with locked("vantage6-node-image"):
        if not client.images.list(tag):
            _build(client, tag)
    return tag


def command_line() -> Path:
    """Return the Python that has vantage6's command line."""
    return venv("vantage6-command-line", COMMAND_LINE)


def _build(client: docker.DockerClient, tag: str) -> None:
    context = lab_dir("cache", f"vantage6-node-{tag.rpartition(':')[2]}")
    with timed("fetching vantage6's own node"):
        _fetch(context / "site")
    (context / "vnode-local").write_text(PROGRAM)
    (context / "Dockerfile").write_text(RECIPE)
    with timed("building the image of vantage6's own node"):
        progress = client.api.build(path=str(context), tag=tag, labels={LABEL: "1"}, rm=True, decode=True)
        for line in progress:
            if "error" in line:
                raise ImageError(str(line["error"]))
    shutil.rmtree(context)


def _fetch(target: Path) -> None:
    install_into(target, NODE)
    # Apart first: all parts share the folder `vantage6`, and a second installation would take it away from the first.
    apart = target.with_name("node")
    install_into(apart, ("--no-deps", NODE_ITSELF))
    shutil.copytree(apart, target, dirs_exist_ok=True)


class PeerNode:
    """One node of vantage6's own making, for one organization of a server that its container can reach."""

    def __init__(
        self,
        client: docker.DockerClient,
        server: RealServer,
        organization: str,
        *,
        databases: Mapping[str, Path] | None = None,
    ) -> None:
        self._client = client
        self._server = server
        self._organization = organization
        self._databases = dict(databases or {})
        self.name = f"peer-{secrets.token_hex(3)}"
        self._prefix = f"vantage6-{self.name}-user"

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self.name}-")
        try:
            self._start(Path(self._folder.name))
            self._wait_until_online()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean_up()

    @property
    def container(self) -> Any:
        """Return the node's own container."""
        return self._client.containers.get(self._prefix)

    def pids(self) -> list[int]:
        """Return the processes of the node's container, as the host numbers them."""
        top = self.container.top(ps_args="-eo pid")
        return [int(row[0]) for row in top["Processes"]]

    def log_tail(self) -> str:
        """Return the end of what the node printed."""
        with contextlib.suppress(APIError):
            return str(self.container.logs(tail=40).decode(errors="replace"))
        return "(no container)"

    def _start(self, folder: Path) -> None:
        image = node_image(self._client)
        config = folder / f"{self.name}.yaml"
        config.write_text(yaml.safe_dump(self._configuration(folder)))
        config.chmod(0o600)
        words = ["node", "start", "--user", "-c", str(config), "--image", image, "--keep"]
        say(f"starting vantage6's own node {VANTAGE6_VERSION} …")
        done = subprocess.run(
            [str(command_line()), "-P", "-c", START, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**environment(), "HOME": str(folder)},
            check=False,
        )
        if done.returncode != 0:
            raise NodeError(f"v6 node start failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _configuration(self, folder: Path) -> dict[str, Any]:
        root, _, port = self._server.root.rpartition(":")
        return {
            "api_key": self._server.api_keys[self._organization],
            "server_url": root,
            "port": int(port),
            "api_path": "/api",
            "task_dir": str(folder / "tasks"),
            "databases": [
                {"label": label, "type": "csv", "uri": str(path)} for label, path in self._databases.items()
            ],
            "encryption": {"enabled": False, "private_key": ""},
            "logging": {
                "level": "INFO",
                "file": "node.log",
                "use_console": True,
                "backup_count": 1,
                "max_size": 1024,
                "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                "datefmt": "%H:%M:%S",
                "loggers": [],
            },
        }

    def _wait_until_online(self) -> None:
        deadline = time.monotonic() + ONLINE_SECONDS
        while time.monotonic() < deadline:
            if b"Waiting for new tasks" in self.container.logs():
                return
            if self.container.status == "exited":
                break
            time.sleep(0.2)
        raise NodeError(f"vantage6's own node is not online:\n{self.log_tail()}")

    def _clean_up(self) -> None:
        """Remove the node and everything it made: it names all of it after itself."""
        with contextlib.suppress(NotFound):
            self.container.stop(timeout=STOP_SECONDS)
        for container in self._own(self._client.containers.list(all=True, ignore_removed=True)):
            container.remove(force=True, v=True)
        for network in self._own(self._client.networks.list()):
            network.remove()
        for volume in self._own(self._client.volumes.list()):
            volume.remove(force=True)
        self._folder.cleanup()

    def _own(self, things: Sequence[Any]) -> list[Any]:
        return [thing for thing in things if thing.name.startswith(self._prefix)]
