"""Where the lab keeps what it makes, and how it says what it is doing.

Owns the paths and the progress line. Must not know engines, images or servers.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / ".lab"


def lab_dir(*parts: str) -> Path:
    """Return a directory under the lab's own folder, made if it is missing."""
    path = LAB.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """Print one line of progress where it does not mix with results."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Announce a step that takes long, and say afterwards how long it took."""
    say(f"{what} …")
    started = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time make the thing called *name*."""
    with (lab_dir() / f"{name}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield
