"""The real algorithm store of vantage6, with the algorithms a test wants in it.

Owns the store's configuration and its process. Must not know who asks it.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import requests
import yaml

from tests.lab.places import say
from tests.lab.venvs import environment, server_venv, store_packages
from tests.ports import free_port

START_SECONDS = 60
STOP_SECONDS = 10
PROCESS = Path(__file__).with_name("store_process.py")


class StoreError(Exception):
    """The real store does not start; the text says why."""


def algorithm(image: str, digest: str, *, status: str = "approved") -> dict[str, Any]:
    """Describe an algorithm the way the store keeps it; without a status it is approved."""
    name = image.rpartition("/")[2]
    return {"name": name, "image": image, "digest": digest, "status": status, "partitioning": "horizontal"}


class RealStore:
    """The real store; `url` is its address as a coordinating server would show it."""

    def __init__(self, *, server_url: str, registry: str, algorithms: Sequence[Mapping[str, Any]]) -> None:
        self._wanted = {"server": server_url, "registry": registry, "algorithms": list(algorithms)}
        self._listen = {"host": "127.0.0.1", "port": free_port()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the REST base."""
        return f"http://127.0.0.1:{self._listen['port']}/api"

    @property
    def log(self) -> Path:
        """Return the file with everything the store printed."""
        return Path(self._folder.name, "store.log")

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="lab-store-")
        try:
            self._write_files(Path(self._folder.name))
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _write_files(self, folder: Path) -> None:
        (folder / "store.yaml").write_text(yaml.safe_dump(self._config(folder)))
        (folder / "algorithms.json").write_text(json.dumps(self._wanted))
        (folder / "listen.json").write_text(json.dumps(self._listen))

    def _config(self, folder: Path) -> dict[str, Any]:
        return {
            "description": "test store",
            "ip": self._listen["host"],
            "port": self._listen["port"],
            "api_path": "/api",
            "uri": f"sqlite:///{folder}/database.sqlite",
            "allow_drop_all": False,
            "policies": {"allow_localhost": True, "algorithm_view": "public"},
            # The store takes every loopback address for its own container's, unless this says where else to look.
            "dev": {"host_uri": "127.0.0.1"},
            "logging": {
                "level": "INFO",
                "file": "store.log",
                "use_console": True,
                "backup_count": 1,
                "max_size": 1024,
                "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                "datefmt": "%H:%M:%S",
                "loggers": [],
            },
        }

    def _start(self) -> None:
        # -P: this file's folder has a vantage6.py of its own, which must not hide the package.
        command = [str(server_venv()), "-P", str(PROCESS), str(store_packages()), self._folder.name]
        say(f"starting the algorithm store at {self.url} …")
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                requests.get(f"{self.url}/version", timeout=5).raise_for_status()
            except requests.RequestException:
                time.sleep(0.1)
            else:
                return
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise StoreError(f"the algorithm store does not answer within {START_SECONDS} s:\n{tail}")
