"""Database servers as algorithms reach them: the place in a URI, and what a container sees instead of it.

Owns how a URI is taken apart and put together again: everything but host and port stays as the owner wrote it. Must not
know how a connection is made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType

from node_agent.domain.database import Database, DatabaseType

FIRST_PORT = 7490
"""The first port of this machine's side of the isolated network that leads to a database server."""
HOST_ITSELF = frozenset({"localhost", "host.docker.internal"})
"""Names for the machine the agent runs on."""
PORTS: Mapping[str, int] = MappingProxyType(
    {
        "clickhouse": 8123,
        "cockroachdb": 26257,
        "db2": 50000,
        "firebird": 3050,
        "http": 80,
        "https": 443,
        "impala": 21050,
        "mariadb": 3306,
        "mongodb": 27017,
        "mssql": 1433,
        "mysql": 3306,
        "neo4j": 7687,
        "oracle": 1521,
        "postgres": 5432,
        "postgresql": 5432,
        "redis": 6379,
        "rediss": 6379,
        "redshift": 5439,
        "sqlserver": 1433,
        "trino": 8080,
        "bolt": 7687,
    }
)
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*(?::[A-Za-z][A-Za-z0-9@+.\-]*)*)(?P<mark>:@?//)(?P<authority>[^/?#;]*)(?P<rest>.*)\Z",
    re.DOTALL,
)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]{0,251}[A-Za-z0-9_])?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_ADDRESS = re.compile(r"[0-9]+(?:\.[0-9]+)*\Z")
_LAST_PORT = 65_535


class UnknownScheme(ValueError):
    """A URI without a port whose scheme has no usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlace:
    """The server a URI names, and the text before and after it."""

    host: str
    port: int
    before: str = field(repr=False)  # may hold a password
    after: str = field(repr=False)

    def at(self, host: str, port: int) -> str:
        """Write the same URI for another place."""
        return f"{self.before}{host}:{port}{self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What stands for a database server inside the isolated network: one port of our side of it."""

    label: str
    host: str
    """The name a container finds it under."""
    port: int
    place: ServicePlace

    @property
    def uri(self) -> str:
        """Give the URI a container is told."""
        return self.place.at(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """The way to a server that only another machine reaches."""

    host: str
    port: int
    user: str
    key_file: Path
    host_key: str
    """`type base64`, or the fingerprint `SHA256:…`."""
    target: str
    """`host:port` as that machine sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a host name in a database's URI means; exactly one of *container* and *tunnel* is set."""

    name: str
    container: str | None = None
    tunnel: Tunnel | None = None


def service_place(uri: str) -> ServicePlace | None:
    """Find the server in a URI; None when it names none. ValueError says what is wrong, without showing the URI."""
    match = _URI.match(uri)
    if match is None:
        return None
    user, at, server = match["authority"].rpartition("@")
    # Only addresses of the web have an @ behind the host for good reasons.
    rest = match["rest"].partition("?")[0] if match["scheme"].startswith("http") else match["rest"]
    if not at and "@" in rest:
        raise ValueError(
            "has a user name or password with `/`, `?`, `#` or `;` in it; write these as %2F, %3F, %23, %3B"
        )
    if not server:
        return None
    host, port = _host_and_port(server, match["scheme"])
    before = f"{match['scheme']}{match['mark']}{user}{at}"
    return ServicePlace(host=host, port=port, before=before, after=match["rest"])


def _host_and_port(server: str, scheme: str) -> tuple[str, int]:
    if "," in server:
        raise ValueError("names several servers; give each a database entry of its own")
    if "[" in server:
        raise ValueError("has an IPv6 address; use a name or an IPv4 address")
    host, colon, port = server.partition(":")
    if not _HOST.match(host):
        raise ValueError("has no valid host name; write scheme://user:password@host:port/name")
    if not colon:
        return host, _usual_port(scheme)
    if not _PORT.match(port) or not 1 <= int(port) <= _LAST_PORT:
        raise ValueError("has no valid port behind the host; write scheme://user:password@host:port/name")
    return host, int(port)


def _usual_port(scheme: str) -> int:
    # `postgresql+psycopg2` is a way to PostgreSQL, and so is `jdbc:postgresql`
    words = [word for word in re.split(r"[:+@.]", scheme.lower()) if word not in {"jdbc", ""}]
    port = PORTS.get(words[0]) if words else None
    if port is None:
        raise UnknownScheme("names no port, and the usual one of this scheme is not known; write host:port")
    return port


def place_of(database: Database) -> ServicePlace | None:
    """Find the server behind a database; None for files and for what is no server. ValueError says what is wrong."""
    if database.path is not None:
        return None
    try:
        return service_place(database.uri)
    except UnknownScheme:
        if database.type is DatabaseType.OTHER:
            return None  # the name of a bucket, say: the algorithm knows what it is
        raise


def entrances(databases: Iterable[Database], *, taken: Iterable[int]) -> Mapping[str, Entrance]:
    """Give every database that is a server its entrance, by label; the same configuration gives the same ports."""
    free = _free_ports(frozenset(taken))
    found = ((database, place_of(database)) for database in databases)
    return {
        database.label: Entrance(
            label=database.label, host=_name_inside(database.label, place.host), port=next(free), place=place
        )
        for database, place in found
        if place is not None
    }


def _free_ports(taken: frozenset[int]) -> Iterator[int]:
    return (port for port in count(FIRST_PORT) if port not in taken)


def _name_inside(label: str, host: str) -> str:
    """Keep a name, since certificates are made out to it; an address or this machine itself needs one."""
    if host.lower() in HOST_ITSELF or _ADDRESS.match(host):
        return f"{label.lower()}.database"
    return host


def seen_by_algorithms(database: Database, entrances: Mapping[str, Entrance]) -> Database:
    """Give the database as a container is told of it."""
    entrance = entrances.get(database.label)
    return database if entrance is None else replace(database, uri=entrance.uri)
