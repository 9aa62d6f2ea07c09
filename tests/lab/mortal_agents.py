"""Agents that die on order: the process of `tests.lab.mortal`, one life after the other.

Owns the launcher's process and the conversation with it. Must not know what a place means.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.lab.agents import STOP_SECONDS, AgentError, AgentProcess
from tests.lab.places import ROOT


class MortalAgent(AgentProcess):
    """An agent whose lives are ordered one by one; between them it is not there."""

    _life: int | None = None

    @property
    def book(self) -> Path:
        """Give the file every place is written into."""
        return self.folder / "book"

    def launch(self) -> None:
        """Start the process that lives begin in; none does yet."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.mortal", str(self.config_file), str(self.book)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=ROOT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start it, and no life yet."""
        self.launch()

    def begin(self, *, run: int | None = None, place: str | None = None) -> None:
        """Let a life begin that ends at this place of this run, or when it is told to."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._marker = len(self.log_lines())
        self._process.stdin.write(f"{json.dumps({'run': run, 'place': place})}\n".encode())
        self._life = self._said(within=10)

    def ended(self, *, within: float) -> int:
        """Wait for the life's end; negative is the signal that ended it."""
        code = self._said(within=within)
        self._life = None
        return code

    def die(self, place: str, *, run: int | None = None, within: float = 60) -> None:
        """Live until this place is reached."""
        self.begin(run=run, place=place)
        self.die_now(place, within=within)

    def die_now(self, place: str, *, within: float = 60) -> None:
        """Wait for the death that this life was begun for."""
        try:
            code = self.ended(within=within)
        except AgentError as error:
            raise AgentError(f"never came to {place}: {error}") from error
        if code != -signal.SIGKILL:
            raise AgentError(f"{self.name} ended with {code} and never came to {place}:\n{self.log_tail()}")

    def rest(self) -> None:
        """End the life as the service does; others may follow."""
        if self._life is not None:
            os.kill(self._life, signal.SIGTERM)
            self.ended(within=STOP_SECONDS)

    def stop(self) -> None:
        """End the life, and the process that lives begin in."""
        if self.is_running:
            self.rest()
            self._close()

    def kill(self) -> None:
        """End everything at once."""
        if self._life is not None:
            os.kill(self._life, signal.SIGKILL)
            self._life = None
        super().kill()
        self._close()

    def places(self) -> list[tuple[int | None, str]]:
        """Give every place passed so far, with its run."""
        lines = self.book.read_text().splitlines() if self.book.exists() else []
        return [(run, place) for run, place in map(json.loads, lines)]

    def _close(self) -> None:
        process: Any = self._process
        process.stdin.close()
        process.wait(STOP_SECONDS)
        process.stdout.close()

    def _said(self, *, within: float) -> int:
        process: Any = self._process
        deadline = time.monotonic() + within
        line = b""
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                raise AgentError(f"{self.name}: nothing within {within} s:\n{self.log_tail()}")
            letter = process.stdout.read(1)
            if not letter:
                raise AgentError(f"{self.name}: its launcher has ended:\n{self.log_tail()}")
            line += letter
        return int(line)
