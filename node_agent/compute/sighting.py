"""How the compute API looks from outside: for `node-agent status`, while the agent runs or does not.

Reads the books without writing to them and asks the kernel who listens: nothing is sent to the agent.
"""

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from node_agent.compute.ledger import FILE_NAME, count_open
from node_agent.config.compute import ComputeApiSection, place_of_listener
from node_agent.store.soundness import read_only

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING: Final = "0A"
_WORD: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSighting:
    """What can be seen of the compute API."""

    listen: str
    """Where it is to listen, by the configuration."""
    secured: bool
    listening: bool
    """Whether somebody listens there now."""
    open_jobs: int | None
    """Jobs that have not ended; None when the books could not be read."""


def see_api(compute: ComputeApiSection, state_dir: Path) -> ApiSighting | None:
    """Look at the compute API; None when it is off."""
    if compute.listen is None:
        return None
    return ApiSighting(
        listen=compute.listen,
        secured=compute.tls is not None,
        listening=is_listened_on(*place_of_listener(compute.listen)),
        open_jobs=count_open_jobs(state_dir),
    )


def count_open_jobs(state_dir: Path) -> int | None:
    """Count the jobs that have not ended, while an agent may be writing; None when that cannot be found out."""
    file = state_dir / FILE_NAME
    try:
        if not file.exists():
            return 0
        with closing(read_only(file)) as connection:
            return count_open(connection)
    except (OSError, sqlite3.Error):
        return None


def is_listened_on(host: str, port: int, *, tables: Sequence[Path] = _TABLES) -> bool:
    """Tell whether somebody on this machine listens at the address, by the kernel's *tables* of connections."""
    wanted = {f"{words}:{port:04X}" for words in map(_in_kernels_words, _addresses(host))}
    return not wanted.isdisjoint(_listened_on(tables))


def _addresses(host: str) -> tuple[IPv4Address | IPv6Address, ...]:
    return tuple(map(ip_address, ("127.0.0.1", "::1") if host == "localhost" else (host,)))


def _in_kernels_words(address: IPv4Address | IPv6Address) -> str:
    """Write an address as the kernel's tables do: each four bytes as one number of this machine."""
    packed = address.packed
    words = (packed[at : at + _WORD] for at in range(0, len(packed), _WORD))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _listened_on(tables: Sequence[Path]) -> Iterator[str]:
    for table in tables:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state = line.split()[:4]
            if state == _LISTENING:
                yield local
