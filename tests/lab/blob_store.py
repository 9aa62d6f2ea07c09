"""A blob store on loopback: Azurite, the emulator that Microsoft gives away for the store vantage6 servers use.

Owns one process with its storage. Must not know servers or what lies in the store.
"""

import base64
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import requests

from tests.lab.npm import installed, node
from tests.lab.venvs import environment, server_venv
from tests.ports import free_port

# The last version before telemetry came in with 65 MB of dependencies.
AZURITE = "azurite@3.31.0"
ACCOUNT = "lab"
CONTAINER = "runs"
START_SECONDS = 30

EDIT = """
import sys
from azure.storage.blob import ContainerClient
container, *names = sys.argv[1:]
with ContainerClient.from_connection_string(sys.stdin.read(), container) as store:
    for name in names:
        store.delete_blob(name)
    print("\\n".join(store.list_blob_names()))
"""


class BlobStoreError(Exception):
    """The blob store does not start; the text says why."""


def azurite() -> Path:
    """Return the program of the store, installed when it is not there yet."""
    return installed("azurite", AZURITE) / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


class BlobStore:
    """A store that can be stopped and started again with what lies in it."""

    def __init__(self) -> None:
        self._port = free_port()
        self._key = base64.b64encode(secrets.token_bytes(64)).decode()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Mapping[str, str]:
        """Return what a vantage6 server is told of the store."""
        return {"type": "azure", "connection_string": self._connection, "container_name": CONTAINER}

    @property
    def _connection(self) -> str:
        place = f"http://127.0.0.1:{self._port}/{ACCOUNT}"
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={self._key};BlobEndpoint={place};"

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="lab-blobs-")
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start the store and wait until it answers."""
        folder = Path(self._folder.name)
        command = [str(node()), str(azurite()), "--blobHost", "127.0.0.1", "--blobPort", str(self._port)]
        # The server's library is newer than the store and says so in each call.
        command += ["--location", str(folder / "blobs"), "--silent", "--skipApiVersionCheck"]
        with (folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The key is made up for this store; no process list shows it all the same.
                env={**environment(), "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self._key}"},
                start_new_session=True,
            )
        self._wait_until_answering(self._process, folder / "log")

    def stop(self) -> None:
        """End the store; what lies in it stays."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()

    def names(self) -> set[str]:
        """Return the names of all blobs."""
        return self._edit()

    def delete(self, name: str) -> None:
        """Delete one blob behind the server's back."""
        self._edit(name)

    def _edit(self, *deleted: str) -> set[str]:
        done = subprocess.run(
            [str(server_venv()), "-c", EDIT, CONTAINER, *deleted],
            input=self._connection,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BlobStoreError(done.stderr.strip()[-800:])
        return set(done.stdout.split())

    def _wait_until_answering(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{self._port}/", timeout=2)
            except requests.ConnectionError:
                time.sleep(0.05)
            else:
                return
        raise BlobStoreError(f"the blob store does not answer: {log.read_text()[-600:]}")
