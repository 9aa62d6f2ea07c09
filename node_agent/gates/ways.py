"""How a database server is reached from this machine; asked anew for every connection.

Every way raises OSError or Transient when the server cannot be reached now, with a text for the log.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from node_agent.domain.service import HOST_ITSELF, Entrance, Service
from node_agent.gates.tunnel import TunnelChild

CONNECT_SECONDS = 10.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
AddressesOf = Callable[[str], tuple[str, ...]]
"""Gives the addresses of a container of this machine by its name; raises Transient when it has none now."""


class Way(Protocol):
    """One way to one server."""

    async def connect(self) -> Streams:
        """Open a connection."""


@dataclass(frozen=True, slots=True)
class Direct:
    """To an address or a name, which is looked up each time."""

    host: str
    port: int

    async def connect(self) -> Streams:
        """Open a connection."""
        host = "localhost" if self.host.lower() in HOST_ITSELF else self.host
        return await _in_time(asyncio.open_connection(host, self.port), f"{self.host} port {self.port}")


@dataclass(frozen=True, slots=True)
class InContainer:
    """To a container of this machine, wherever its addresses are now."""

    container: str
    port: int
    addresses_of: AddressesOf

    async def connect(self) -> Streams:
        """Open a connection to the first address that answers."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, partial(self.addresses_of, self.container))
        refusal: OSError = ConnectionError(f"the container {self.container} has no address")
        for address in found:
            try:
                return await Direct(address, self.port).connect()
            except OSError as error:
                refusal = error
        raise refusal


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """Through the socket the secure shell's client listens on."""

    tunnel: TunnelChild

    async def connect(self) -> Streams:
        """Open a connection."""
        try:
            return await _in_time(asyncio.open_unix_connection(self.tunnel.socket), self.tunnel.name)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ConnectionError(
                f"the tunnel {self.tunnel.name} does not stand ({self.tunnel.trouble})"
            ) from error


async def _in_time(opening: "asyncio.Future[Streams] | object", where: str) -> Streams:
    try:
        return await asyncio.wait_for(opening, CONNECT_SECONDS)  # type: ignore[arg-type]
    except TimeoutError as error:
        raise ConnectionError(f"{where} does not answer within {CONNECT_SECONDS:.0f} s") from error


def way_to(
    entrance: Entrance,
    services: Mapping[str, Service],
    *,
    tunnels: Mapping[str, TunnelChild],
    addresses_of: AddressesOf,
) -> Way:
    """Choose the way: what the owner says of the name, or the name itself."""
    service = services.get(entrance.place.host.lower())
    if service is None:
        return Direct(entrance.place.host, entrance.place.port)
    if service.container is not None:
        return InContainer(service.container, entrance.place.port, addresses_of)
    return Tunnelled(tunnels[service.name])
