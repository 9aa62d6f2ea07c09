"""What a plain HTTP client and the cryptographic library need for the same bytes that a node sends or gets.

Owns a node's place that no node sits on, and what is done there by hand. Must not know what it is compared with.
"""

import base64
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.bench.researcher import HTTP_SECONDS
from tests.lab.vantage6 import RealServer

PIECE = 3 << 18
"""Bytes at once; a multiple of three, so that base64 of the pieces is base64 of the whole."""


class EmptyPlace:
    """Speaks to the server in the name of a node, as any program could."""

    def __init__(self, server: RealServer, organization: str) -> None:
        self._url = server.url
        self._node = server.node_ids[organization]
        self._session = requests.Session()
        login = {"api_key": server.api_keys[organization]}
        answer = self._session.post(f"{self._url}/token/node", json=login, timeout=HTTP_SECONDS)
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def send(self, run_id: int, body: Path) -> float:
        """Send a report that lies in a file, ready to be sent; return the seconds."""
        headers = {"Content-Type": "application/json"}
        started = time.monotonic()
        with body.open("rb") as content:
            answer = self._session.patch(
                f"{self._url}/run/{run_id}", data=content, headers=headers, timeout=HTTP_SECONDS
            )
        answer.raise_for_status()
        return time.monotonic() - started

    def fetch(self, task: int, into: Path) -> float:
        """Get an open run with its input into a file, as a node asks for it; return the seconds."""
        wanted: dict[str, Any] = {
            "state": "open",
            "node_id": self._node,
            "include": "task",
            "task_id": task,
        }
        started = time.monotonic()
        with (
            self._session.get(f"{self._url}/run", params=wanted, stream=True, timeout=HTTP_SECONDS) as answer,
            into.open("wb") as file,
        ):
            answer.raise_for_status()
            for piece in answer.iter_content(PIECE):
                file.write(piece)
        return time.monotonic() - started

    def close(self) -> None:
        """Leave the server."""
        self._session.close()


def write_noise(size: int, file: Path) -> Path:
    """Write as many bytes as a result shall have."""
    noise = os.urandom(PIECE)
    with file.open("wb") as output:
        for start in range(0, size, PIECE):
            output.write(noise[: size - start])
    return file


def write_report(content: Path, file: Path) -> Path:
    """Write the body of a report as it travels, with the result as base64."""
    facts = {
        "status": "completed",
        "finished_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+00:00"),
        "log": "",
    }
    with content.open("rb") as source, file.open("wb") as output:
        output.write(json.dumps(facts).encode()[:-1] + b', "result": "')
        while piece := source.read(PIECE):
            output.write(base64.b64encode(piece))
        output.write(b'"}')
    return file


def encrypt(content: Path, file: Path) -> float:
    """Encrypt a file with the library, the way results are; return the seconds."""
    started = time.monotonic()
    cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    with content.open("rb") as source, file.open("wb") as output:
        while piece := source.read(PIECE):
            output.write(cipher.update(piece))
        output.write(cipher.finalize())
    return time.monotonic() - started
