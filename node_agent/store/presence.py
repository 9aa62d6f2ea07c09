"""The agent's sign of life: a small file it rewrites, which `node-agent status` reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent.store.lock import running_pid

FILE_NAME = "presence.json"


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
    waiting: int
    """Runs received that wait for a slot."""
    working: int
    """Runs between admission and the end of their container."""
    owed: int
    """Final reports the server does not have yet."""
    oldest_owed_at: float | None
    finished: int
    """Runs ended since the agent started."""
    draining: bool
    written_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What can be seen of an agent from outside: the running process, and what it last said."""

    pid: int | None
    presence: Presence | None

    @property
    def running(self) -> bool:
        """Tell whether an agent holds the state directory now."""
        return self.pid is not None


def write(state_dir: Path, presence: Presence) -> None:
    """Replace the sign of life; a full disk only makes it old."""
    temporary = state_dir / f".{FILE_NAME}.new"
    temporary.write_text(json.dumps(asdict(presence)), encoding="utf-8")
    temporary.replace(state_dir / FILE_NAME)


def read(state_dir: Path) -> Sighting:
    """Look at the agent of *state_dir*."""
    try:
        presence = Presence(**json.loads((state_dir / FILE_NAME).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        presence = None
    return Sighting(pid=running_pid(state_dir), presence=presence)
