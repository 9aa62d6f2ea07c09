"""The machine the engine is on, as far as the engine tells: its memory, and where it keeps its images.

Must not know what anybody makes of it.
"""

from dataclasses import dataclass
from pathlib import Path

from node_agent.runtime.connection import EngineConnection


@dataclass(frozen=True, slots=True)
class EngineHost:
    """What the engine says of its machine."""

    memory: int | None
    """Bytes; None when it does not say."""
    data_root: Path | None
    """Where it keeps images and containers; None when that is not on this machine, as far as can be seen."""


def host_of(connection: EngineConnection) -> EngineHost:
    """Ask the engine. Raises EngineUnreachable."""
    with connection.client() as client:
        said = client.info()
    memory = said.get("MemTotal")
    return EngineHost(
        memory=memory if isinstance(memory, int) and memory > 0 else None,
        data_root=_seen_from_here(str(said.get("DockerRootDir") or ""), connection.address),
    )


def _seen_from_here(path: str, address: str) -> Path | None:
    # an agent in a container sees the socket, and another folder of that name or none
    if not path or not address.startswith(("unix:", "http+docker:")):
        return None
    try:
        return Path(path) if Path(path).is_dir() else None
    except OSError:
        return None
