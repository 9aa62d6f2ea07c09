"""Background processes that outlive the command that starts them, found again by number and moment of birth.

Owns starting, recognising and ending them. Must not know what they run. A process is never meant by its number alone:
the number may belong to another one by now.
"""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC = Path("/proc")
_STATE, _BIRTH = 0, 19
"""Where the state and the moment of birth stand in /proc/PID/stat, counted behind the name."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One process, and no other one that ever had or will have its number."""

    pid: int
    birth: str


def launch(command: Sequence[str], *, output: Path, log: Path, mark_file: Path) -> Mark:
    """Start a process in a session of its own, so that no terminal's Ctrl-C reaches it, and write its mark down."""
    with ExitStack() as stack:
        answers, lines = (stack.enter_context(_private(file)) for file in (output, log))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=answers, stderr=lines, start_new_session=True
        )
    # it lives on when this command ends: nobody is to wait for it
    process.returncode = 0
    mark = Mark(process.pid, (_stat(process.pid) or _gone())[_BIRTH])
    mark_file.write_text(f"{mark.pid} {mark.birth}\n", encoding="ascii")
    return mark


def _private(file: Path) -> IO[bytes]:
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def _gone() -> list[str]:
    return ["?"] * (_BIRTH + 1)


def read_mark(mark_file: Path) -> Mark | None:
    """Read a mark that `launch` wrote; None when there is none."""
    try:
        pid, birth = mark_file.read_text(encoding="ascii").split()
        return Mark(int(pid), birth)
    except (OSError, ValueError):
        return None


def is_running(mark: Mark | None) -> bool:
    """Tell whether the process is there and alive; one that has ended may stay listed for long."""
    found = None if mark is None else _stat(mark.pid)
    return (
        found is not None and mark is not None and found[_BIRTH] == mark.birth and found[_STATE] not in "ZX"
    )


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the name stands in brackets and may hold anything
    return text.rpartition(")")[2].split()


def end(marks: Sequence[Mark], *, patience: float) -> None:
    """End these processes: ask all of them, then wait, and kill whoever is still there after *patience* seconds."""
    with ExitStack() as stack:
        grips = [grip for mark in marks if (grip := stack.enter_context(_gripped(mark))) is not None]
        for grip in grips:
            _send(grip, signal.SIGTERM)
        late = [grip for grip in grips if not _ended_within(grip, patience)]
        for grip in late:
            _send(grip, signal.SIGKILL)
        for grip in late:
            _ended_within(grip, patience)


@contextmanager
def _gripped(mark: Mark) -> "Iterator[int | None]":
    """Hold the process, so that its number cannot come to mean another one between look and signal."""
    try:
        grip = os.pidfd_open(mark.pid)
    except OSError:
        yield None
        return
    try:
        yield grip if is_running(mark) else None
    finally:
        os.close(grip)


def _send(grip: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(grip, number)


def _ended_within(grip: int, seconds: float) -> bool:
    ready, _, _ = select.select([grip], [], [], seconds)
    return bool(ready)
