"""An embedded server as a process of its own, on books that outlive it: it can be killed and started again.

Owns the process, its port and its books. Must not know agents or tasks.
"""

import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from sqlite3 import Row, connect
from typing import Any

from node_agent.sandbox.connection import Connection, read_connection
from tests.ports import free_port

START_SECONDS = 30
LOCKED_SECONDS = 10


class SandboxProcess:
    """One server in *folder*, with these organizations."""

    def __init__(self, folder: Path, organizations: Iterable[str]) -> None:
        self._folder = folder
        self._organizations = ",".join(organizations)
        self._port = free_port("127.0.0.1")
        self._process: subprocess.Popen[bytes] | None = None
        self.connection: Connection

    def start(self) -> None:
        """Start it and wait until it answers, on the same port as before."""
        said = self._folder / "connection.json"
        words = ("--json", "--port", str(self._port), "--organizations", self._organizations)
        with said.open("wb") as output, (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "node_agent",
                    "sandbox",
                    "server",
                    *words,
                    "--state-dir",
                    self._state_dir,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while (found := read_connection(said)) is None:
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        self.connection = found

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def change(self, *statements: str) -> None:
        """Change the books behind the server's back."""
        with closing(connect(self._books, timeout=LOCKED_SECONDS)) as books:
            for statement in statements:
                books.execute(statement)
            books.commit()

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Look into the books, whether the server is there or not."""
        with closing(connect(self._books, timeout=LOCKED_SECONDS)) as books:
            books.row_factory = Row
            return books.execute(query, values).fetchall()

    @property
    def _state_dir(self) -> Path:
        return self._folder / "state"

    @property
    def _books(self) -> Path:
        return self._state_dir / "server.sqlite"
