"""The agent's sign of life: a small file it rewrites, which `node-agent status` reads.

The file is written over in place and never grows, so that it can be written also on a full disk. It has two lines of
equal length, written in turns: whoever reads while one is written finds the other one whole.
"""

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from node_agent.store.disk import free_bytes, is_read_only
from node_agent.store.lock import running_pid

FILE_NAME = "presence.json"
LINE = 8192
SILENT_SECONDS = 30.0
"""An agent speaks every second; while it starts, now and then."""
_LONGEST_TEXTS = (1000, 300, 80, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What the agent last said of itself; times are epoch seconds."""

    pid: int
    version: str
    node: str
    since: float
    online: bool
    server_problem: str
    engine_problem: str
    disk_problem: str = ""
    """Why the state directory, or the engine's disk, cannot be written to; empty while it can."""
    company_problem: str = ""
    """What is wrong when another agent works with this node's API key; empty when none does."""
    waiting: int
    """Runs received that wait for a slot."""
    working: int
    """Runs between admission and the end of their container."""
    owed: int
    """Final reports the server does not have yet."""
    owed_bytes: int = 0
    """How large their results and logs are together."""
    oldest_owed_at: float | None
    owed_problem: str = ""
    """Why the last report that was tried did not arrive; empty when it did."""
    next_report_at: float | None = None
    """When a report is tried next; None when none is owed, or one is under way."""
    finished: int
    """Runs ended since the agent started."""
    draining: bool
    written_at: float
    sweeping: bool = False
    """Whether strays are looked for now, or the journal forgets runs."""
    sweeps: int = 0
    """Searches for strays that ended since the agent started."""
    waiting_for: str = ""
    """Why runs wait; empty when none does."""
    queue: tuple[int, ...] = ()
    """The runs that wait, in the order of their turns; of many only the first."""
    stuck_steps: tuple[str, ...] = ()
    """Steps that take longer than they should; of many only the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What can be seen of an agent from outside: the running process, what it last said, and its disk."""

    pid: int | None
    presence: Presence | None
    disk_free: int | None = None
    """Bytes that can still be written where the state directory lies; None when there is none."""
    disk_read_only: bool = False
    seen_at: float | None = None

    @property
    def silent_for(self) -> float:
        """Give the seconds since the running agent's last word; 0 when there is none to count from."""
        if self.presence is None or self.seen_at is None or self.presence.pid != self.pid:
            return 0.0
        return max(0.0, self.seen_at - self.presence.written_at)

    @property
    def is_silent(self) -> bool:
        """Tell whether the running agent should have said something long ago."""
        return self.silent_for > SILENT_SECONDS

    @property
    def running(self) -> bool:
        """Tell whether an agent holds the state directory now."""
        return self.pid is not None


class PresenceFile:
    """Where one agent shows that it lives."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._line = 0

    def take_room(self) -> None:
        """Take all the space the file will ever need, and say nothing yet; raises OSError when there is none."""
        with self._opened():
            pass

    def write(self, presence: Presence) -> None:
        """Say how the agent is; raises OSError when the disk takes not even that."""
        with self._opened() as descriptor:
            os.pwrite(descriptor, _line_of(presence), self._line * LINE)
        self._line = 1 - self._line

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(
            self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
        )
        try:
            if os.fstat(descriptor).st_size != 2 * LINE:
                _make_room(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)


def _make_room(descriptor: int) -> None:
    if os.pwrite(descriptor, b"\n".rjust(LINE) * 2, 0) < 2 * LINE:
        # as long as it is too short, room is made again; a longer file might have holes instead of room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, 2 * LINE)


def _line_of(presence: Presence) -> bytes:
    for longest in _LONGEST_TEXTS:
        line = json.dumps(_shortened(asdict(presence), longest), ensure_ascii=False).encode(errors="replace")
        if len(line) < LINE:
            break
    return line.ljust(LINE - 1) + b"\n"


def _shortened(said: dict[str, Any], longest: int) -> dict[str, Any]:
    """Cut every text: some quote what others said."""
    return {name: value[:longest] if isinstance(value, str) else value for name, value in said.items()}


def read(state_dir: Path) -> Sighting:
    """Look at the agent of *state_dir*."""
    there = state_dir.is_dir()
    return Sighting(
        pid=running_pid(state_dir),
        presence=_read_last(state_dir / FILE_NAME),
        disk_free=free_bytes(state_dir) if there else None,
        disk_read_only=there and is_read_only(state_dir / FILE_NAME),
        seen_at=time.time(),
    )


def _read_last(path: Path) -> Presence | None:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    said = [found for line in lines if (found := _parse(line)) is not None]
    return max(said, key=lambda found: found.written_at, default=None)


def _parse(line: bytes) -> Presence | None:
    try:
        said: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(line).items()
        }
        return Presence(**said)
    except (ValueError, TypeError, AttributeError):
        return None
