"""A program of the owner that is asked something: what it says within a time, and nothing it started goes on after.

Its surroundings are as good as empty, what it says is read to a bound, and its whole process group ends with it. Must
not know what is asked.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SAID: Final = 4096
"""Bytes of its output that are kept; what comes behind is read and forgotten."""
_PIECE: Final = 1 << 16
_SURROUNDINGS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Answer:
    """How a program ended, and what it said on its standard output."""

    code: int
    said: bytes


def ask_program(command: Path, question: bytes, *, seconds: float) -> Answer:
    """Run the program with the question on its standard input. Raises OSError, TimeoutError."""
    deadline = time.monotonic() + seconds
    with _started(command, question) as process:
        said = _heard(process, deadline)
    return Answer(process.returncode, said)


@contextmanager
def _started(command: Path, question: bytes) -> Iterator[subprocess.Popen[bytes]]:
    # a file in memory and no pipe: whether the program reads the question must not matter
    with os.fdopen(os.memfd_create("question"), "w+b") as asked:
        asked.write(question)
        asked.seek(0)
        process = subprocess.Popen(
            [str(command)],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_SURROUNDINGS,
            start_new_session=True,
        )
    with process:
        try:
            yield process
        finally:
            # before the process is waited for: until then its number cannot mean another group
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _heard(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Read until the program has ended; what it left running may hold its output open, and is not waited for."""
    said = bytearray()
    assert process.stdout is not None  # noqa: S101 - it was asked for
    source = process.stdout.fileno()
    os.set_blocking(source, False)
    ended = os.pidfd_open(process.pid)
    try:
        watch = select.poll()
        watch.register(source, select.POLLIN)
        watch.register(ended, select.POLLIN)
        while True:
            happened = [descriptor for descriptor, _ in watch.poll(_milliseconds(deadline))]
            if source in happened and not _take(source, said):
                watch.unregister(source)
            if ended in happened:
                _take(source, said)
                return bytes(said)
    finally:
        os.close(ended)


def _take(source: int, said: bytearray) -> bool:
    """Read once; False at the end of the output."""
    try:
        piece = os.read(source, _PIECE)
    except BlockingIOError:
        return True
    said += piece[: MAX_SAID - len(said)]
    return bool(piece)


def _milliseconds(deadline: float) -> int:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it did not answer in time")
    return int(left * 1000) + 1
