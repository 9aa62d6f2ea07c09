"""Which addresses the isolated network may take on this machine.

Owns the choice. Must not talk to an engine.
"""

import hashlib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

# Private space that home and company routers rarely use, then the range kept for benchmarks, which nobody routes.
_SPACES = (IPv4Network("10.213.0.0/16"), IPv4Network("198.18.0.0/16"))
_ROUTES = Path("/proc/net/route")
_LOCAL = Path("/proc/net/fib_trie")
_LITTLE = 8


def candidates(name: str, *, taken: Iterable[IPv4Network]) -> Iterator[IPv4Network]:
    """Yield free subnets, always in the same order for the same agent, beginning at a place of its own."""
    used = tuple(taken)
    first = hashlib.sha256(name.encode()).digest()[0]
    for space in _SPACES:
        subnets = list(space.subnets(new_prefix=24))
        for subnet in subnets[first:] + subnets[:first]:
            if not any(subnet.overlaps(other) for other in used):
                yield subnet


def routed_networks() -> tuple[IPv4Network, ...]:
    """List the networks this machine has narrow routes to.

    Wide routes are left out: whoever routes 10.0.0.0/8 to a company network means what is not more precisely known.
    """
    return tuple(route for route in parsed_routes(_text(_ROUTES)) if route.prefixlen >= _LITTLE * 2)


def parsed_routes(text: str) -> Iterator[IPv4Network]:
    """Read the kernel's table of routes."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:  # noqa: PLR2004 - destination and mask are columns 1 and 7
            mask = IPv4Address(_number(fields[7]))
            yield IPv4Network((_number(fields[1]), str(mask)), strict=False)


def _number(field: str) -> int:
    # The kernel writes the address as the machine's own (little-endian) number.
    return int.from_bytes(bytes.fromhex(field)[::-1])


def host_addresses() -> tuple[str, ...]:
    """List the addresses of this machine, without those of its loopback."""
    found: set[str] = set()
    previous = ""
    for line in _text(_LOCAL).splitlines():
        if "host LOCAL" in line:
            found.add(previous)
        previous = line.rpartition(" ")[2]
    return tuple(sorted(address for address in found if not address.startswith("127.")))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
