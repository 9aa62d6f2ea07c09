"""A program the agent keeps running: started, read, started again with growing pauses, ended with the agent.

Owns the process and its pid file. Must not know what the program is good for: its lines go to whoever started it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from node_agent.errors import Transient
from node_agent.gates import leash

log = structlog.get_logger()

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
LONG_LIFE = 60.0
"""A program that lived so long did well: the pauses begin anew."""
STOP_SECONDS = 5.0
LONGEST_LINE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is to be run and as whom."""

    name: str
    """How the log calls it."""
    command: tuple[str, ...]
    mark: str
    """One of the arguments, which no other program of this machine has."""
    folder: Path
    """Its working directory and the place of its pid file."""
    user: tuple[int, int]
    stdin: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def pid_file(self) -> Path:
        """Give the place where the process id is kept."""
        return self.folder / f"{self.name}.pid"


class Child:
    """Keeps one program running in a thread of its own; *heard* gets every line it says.

    *prepare* is done before each start; Transient says that it cannot be now.
    """

    def __init__(
        self, program: Program, *, heard: Callable[[str], None], prepare: Callable[[], None] = lambda: None
    ) -> None:
        self._program = program
        self._heard = heard
        self._prepare = prepare
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._last_words = ""
        self._lock = threading.Lock()
        # The kernel ends the child with the thread that started it: one thread does both, for as long as it lives.
        self._thread = threading.Thread(target=self._keep, name=program.name, daemon=True)

    @property
    def last_words(self) -> str:
        """Give the last line the program said."""
        return self._last_words

    def start(self) -> None:
        """End what an earlier agent left, and start."""
        end_leftover(self._program.pid_file, self._program.mark)
        self._thread.start()

    def stop(self) -> None:
        """End the program for good."""
        self._stopping.set()
        self.signal(signal.SIGKILL)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        self._program.pid_file.unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal, if it runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(number)

    def _keep(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            started = time.monotonic()
            ended = self._live()
            if self._stopping.is_set():
                return
            pause = FIRST_PAUSE if time.monotonic() - started > LONG_LIFE else pause
            log.warning(
                "gate_ended", gate=self._program.name, how=ended, reason=self._last_words, again_in=pause
            )
            self._stopping.wait(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _live(self) -> str:
        """Run the program once; say how it ended."""
        try:
            self._prepare()
            process = self._spawned()
        except Transient as error:
            self._take(error.message)
            return "not started"
        except OSError as error:
            return f"could not be started: {error.strerror}"
        assert process.stdout is not None  # noqa: S101 - asked for below
        with process.stdout as lines:
            while line := lines.readline(LONGEST_LINE):
                self._take(line.decode(errors="replace").rstrip())
        return f"exit code {process.wait()}"

    def _take(self, line: str) -> None:
        if line:
            self._last_words = line
            self._heard(line)

    def _spawned(self) -> "subprocess.Popen[bytes]":
        program = self._program
        with contextlib.ExitStack() as stack:
            stdin = stack.enter_context(program.stdin.open("rb")) if program.stdin else subprocess.DEVNULL
            with self._lock:
                if self._stopping.is_set():
                    raise InterruptedError(0, "the agent ends")
                self._process = subprocess.Popen(
                    leashed(program),
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=program.folder,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **program.environment},
                )
        program.pid_file.write_text(f"{self._process.pid}\n")
        return self._process


def leashed(program: Program) -> Sequence[str]:
    """Give the command that becomes *program* and ends with the agent."""
    uid, gid = program.user
    tie = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(uid), str(gid)]
    return [*tie, *program.command]


def end_leftover(pid_file: Path, mark: str) -> None:
    """End the program an earlier agent started and could not end, if it is still that program."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        grip = os.pidfd_open(pid)
        try:
            # Read after taking hold: the number cannot come to mean another process any more.
            if mark in _arguments(pid):
                signal.pidfd_send_signal(grip, signal.SIGKILL)
                log.info("gate_leftover_ended", gate=pid_file.stem, pid=pid)
        finally:
            os.close(grip)
    pid_file.unlink(missing_ok=True)


def _arguments(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
