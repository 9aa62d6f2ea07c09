"""Which places outside an owner lets algorithms reach: the form of one rule, and nothing of how it is kept."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network

_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"
)
_LIKE_AN_ADDRESS = re.compile(r"[0-9.]+\Z|.*\.[0-9]+\Z|(?:.*\.)?0x[0-9a-f]*\Z")
_PORTS = re.compile(r"(?P<first>[1-9][0-9]{0,4})(?:-(?P<last>[1-9][0-9]{0,4}))?\Z")
_LAST_PORT = 65_535
_WIDEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRule:
    """One place that may be reached; exactly one of *name*, *below* and *network* is set."""

    name: str | None = None
    """Exactly this name."""
    below: str | None = None
    """Every name that ends in a dot and this one, but not this one itself."""
    network: IPv4Network | None = None
    """These addresses, written as addresses; a single one is a network of its own."""
    first_port: int
    last_port: int

    @property
    def ports(self) -> str:
        """Write the ports as `443` or `8000-8010`."""
        return (
            str(self.first_port)
            if self.first_port == self.last_port
            else f"{self.first_port}-{self.last_port}"
        )

    @property
    def place(self) -> str:
        """Write the place without its ports."""
        return str(self.name or (f"*.{self.below}" if self.below else self.network))

    def covers_ports(self, other: "EgressRule") -> bool:
        """Tell whether every port of *other* is one of these."""
        return self.first_port <= other.first_port and other.last_port <= self.last_port


def parse_rule(text: str) -> EgressRule:
    """Read `name:443`, `*.name:443`, `192.0.2.7:80`, `10.2.0.0/16:8000-8010`; ValueError says what is wrong."""
    place, colon, ports = text.rpartition(":")
    if text.startswith("[") or place.count(":") > 0:
        raise ValueError("has an IPv6 address; only names and IPv4 addresses can be allowed")
    match = _PORTS.match(ports) if colon else None
    if match is None:
        raise ValueError(
            "names no port; write host:port, for example api.example.org:443 or 192.0.2.7:8000-8010"
        )
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if not first <= last <= _LAST_PORT:
        raise ValueError("has impossible ports; they go from 1 to 65535, the lower first")
    return _of_place(place, first, last)


def _of_place(place: str, first: int, last: int) -> EgressRule:
    if "/" in place or _LIKE_AN_ADDRESS.match(place):
        return EgressRule(network=_network(place), first_port=first, last_port=last)
    name = place.lower()
    if name.startswith("*."):
        return EgressRule(below=_domain(name[2:]), first_port=first, last_port=last)
    if not _NAME.match(name):
        raise ValueError(
            "is not a host name, `*.` and a domain, an IPv4 address or a network, with a port behind it"
        )
    return EgressRule(name=name, first_port=first, last_port=last)


def _domain(name: str) -> str:
    if not _NAME.match(name) or _LIKE_AN_ADDRESS.match(name):
        raise ValueError("is not `*.` and a domain; write for example *.example.org:443")
    if "." not in name:
        raise ValueError("would open a whole top-level domain; name the domains below it")
    return name


def _network(place: str) -> IPv4Network:
    try:
        network = IPv4Network(place)
    except ValueError as error:
        raise ValueError(
            "is not an IPv4 address or network; write for example 192.0.2.7:443 or 10.2.0.0/16:5432 "
            "(the part behind the prefix must be zero)"
        ) from error
    if network.prefixlen < _WIDEST:
        raise ValueError(f"opens too much at once; a network has at least /{_WIDEST}")
    return network
