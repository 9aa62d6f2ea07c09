"""The real vantage6 server 4.15.2 with organizations, users and nodes.

Owns the server's configuration, its entities and its process, which can be stopped and started again on the same
database. Must not know agents or tasks.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import requests
import yaml

from tests.lab.blob_store import BlobStore
from tests.lab.places import say
from tests.lab.venvs import environment, server_venv
from tests.ports import free_port

START_SECONDS = 90
STOP_SECONDS = 10
COLLABORATION = "hospitals"
PROCESS = Path(__file__).with_name("vantage6_process.py")


class ServerError(Exception):
    """The real server does not start; the text says why."""


class RealServer:
    """The real server, its secrets and its ids.

    `url` is the REST base; `api_keys` are by organization; `passwords` by user, and each organization has one user of
    its own name with every right. The output of the server goes to `log`.
    """

    def __init__(
        self,
        organizations: Sequence[str] = ("alpha", "beta", "gamma"),
        *,
        encrypted: bool = False,
        host: str = "127.0.0.1",
        config: Mapping[str, Any] | None = None,
        blob_store: BlobStore | None = None,
    ) -> None:
        self.organizations = tuple(organizations)
        self.api_keys = {name: str(uuid.uuid4()) for name in organizations}
        self.passwords = {name: secrets.token_urlsafe(12) for name in organizations}
        self.organization_ids: dict[str, int] = {}
        self.node_ids: dict[str, int] = {}
        self.collaboration_id = 0
        self._listen = {"host": host, "port": free_port(host)}
        self._encrypted = encrypted
        self._config = dict(config or {})
        self._blob_store = blob_store
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        """Return the address without the API's path: where Socket.IO answers."""
        host = "127.0.0.1" if self._listen["host"] == "0.0.0.0" else self._listen["host"]
        return f"http://{host}:{self._listen['port']}"

    @property
    def url(self) -> str:
        """Return the REST base."""
        return f"{self.root}/api"

    @property
    def log(self) -> Path:
        """Return the file with everything the server printed since it was first started."""
        return Path(self._folder.name, "server.log")

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="lab-vantage6-")
        try:
            self._write_files(Path(self._folder.name))
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start the server on its database and wait until it answers."""
        if self._process is not None:
            return
        command = self._command() if self._blob_store is None else self._uwsgi_command()
        say(f"starting the vantage6 server at {self.url} …")
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                # Ctrl-C in the terminal must not take the server away from under those who still stop.
                start_new_session=True,
            )
        try:
            self._wait_until_answering(self._process)
        except BaseException:
            self.stop()
            raise
        self._read_ids()

    def stop(self) -> None:
        """End the server as an outage would: at once, connections cut, database kept."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._blob_store is not None:
            # uWSGI is several processes, and they would wait for each other and for open sockets
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _command(self) -> list[str]:
        # -P: this file's folder has a vantage6.py of its own, which must not hide the package.
        return [str(server_venv()), "-P", str(PROCESS), self._folder.name]

    def _uwsgi_command(self) -> list[str]:
        """Start the server as its own start command does: only uWSGI lets it read uploads to the blob store."""
        return [
            str(server_venv().with_name("uwsgi")),
            *("--http", f"{self._listen['host']}:{self._listen['port']}"),
            *("--gevent", "1000", "--http-websockets", "--http-chunked-input", "--http-keepalive"),
            *("--post-buffering", "0", "--master", "--callable", "app", "--disable-logging"),
            *("--wsgi-file", str(PROCESS), "--pyargv", self._folder.name),
            *("--die-on-term", "--no-orphans"),
            # Its client uploads in pieces of 1 MiB, which is as much as uWSGI takes with what stands around a piece.
            *("--chunked-input-limit", str(2 << 20)),
        ]

    def _write_files(self, folder: Path) -> None:
        (folder / "server.yaml").write_text(yaml.safe_dump(self._server_config(folder)))
        (folder / "entities.json").write_text(json.dumps(self._entities()))
        (folder / "listen.json").write_text(json.dumps(self._listen))

    def _server_config(self, folder: Path) -> dict[str, Any]:
        return {
            "description": "test server",
            "ip": self._listen["host"],
            "port": self._listen["port"],
            "server_url": self.root,
            "api_path": "/api",
            "uri": f"sqlite:///{folder}/database.sqlite",
            "allow_drop_all": False,
            # Without a fixed secret every restart would invalidate all tokens.
            "jwt_secret_key": secrets.token_hex(32),
            "logging": {
                "level": "INFO",
                "file": "server.log",
                "use_console": True,
                "backup_count": 1,
                "max_size": 1024,
                "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                "datefmt": "%H:%M:%S",
                "loggers": [],
            },
            **({} if self._blob_store is None else {"large_result_store": dict(self._blob_store.config)}),
            **self._config,
        }

    def _entities(self) -> dict[str, Any]:
        return {
            "organizations": [self._organization(name) for name in self.organizations],
            "collaborations": [
                {
                    "name": COLLABORATION,
                    "encrypted": self._encrypted,
                    "participants": [{"name": name, "api_key": key} for name, key in self.api_keys.items()],
                }
            ],
        }

    def _organization(self, name: str) -> dict[str, Any]:
        user = {
            "username": name,
            "password": self.passwords[name],
            "firstname": name.title(),
            "lastname": "Researcher",
            "email": f"researcher@{name}.example",
        }
        address = dict.fromkeys(("address1", "address2", "zipcode", "country", "public_key"), "")
        return {"name": name, "domain": f"{name}.example", **address, "users": [user]}

    def _wait_until_answering(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"{self.url}/version", timeout=5).raise_for_status()
            except requests.RequestException:
                time.sleep(0.1)
            else:
                return
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise ServerError(f"the vantage6 server does not answer within {START_SECONDS} s:\n{tail}")

    def _read_ids(self) -> None:
        found = json.loads(Path(self._folder.name, "ids.json").read_text())
        self.organization_ids = {name: found["organizations"][name] for name in self.organizations}
        self.node_ids = found["nodes"]
        self.collaboration_id = found["collaborations"][COLLABORATION]
