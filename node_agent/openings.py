"""The gates of one agent, put together: what the owner opened, and what the gates may ask about machine and runs.

Owns the translation of settings into gates, and what `check` looks at. Must not know how a gate works.
"""

import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

from node_agent.checks import CheckResult, failed, judge_gate
from node_agent.config import Settings
from node_agent.domain.egress import parse_rule
from node_agent.domain.run import RunId
from node_agent.domain.service import HOST_ITSELF, Entrance, Service, Tunnel
from node_agent.errors import NodeAgentError, Transient
from node_agent.gates.egress import squid_program
from node_agent.gates.gates import GatePlan, Gates, Surroundings
from node_agent.gates.tunnel import fingerprint_of, pinned_key, ssh_program, ssh_words
from node_agent.runtime.addresses import Addresses
from node_agent.runtime.subnets import host_addresses
from node_agent.site import Site

_IPV6 = Path("/proc/net/if_inet6")
_SECONDS = 10.0


def plan_of(settings: Settings) -> GatePlan:
    """Say what the owner opened."""
    return GatePlan(
        agent=settings.name,
        folder=settings.state_dir / "gates",
        egress=tuple(map(parse_rule, settings.egress.allow)),
        egress_port=settings.egress.port,
        entrances=settings.entrances,
        services=settings.services,
    )


def gates_of(settings: Settings, site: Site, *, asked: Callable[[RunId, str], bool]) -> Gates:
    """Build the gates; nothing is opened yet."""
    addresses = site.addresses
    surroundings = Surroundings(
        runs_at=addresses.of_runs,
        asked=asked,
        addresses_of=addresses.of_container,
        inside=lambda: inside(addresses),
    )
    return Gates(plan_of(settings), surroundings)


def inside(addresses: Addresses) -> tuple[str, ...]:
    """List what is this machine or a container of it: no name outside may lead there. Raises EngineUnreachable."""
    return (*host_addresses(), *_ipv6_addresses(), *addresses.of_networks())


def _ipv6_addresses() -> tuple[str, ...]:
    try:
        lines = _IPV6.read_text().splitlines()
    except OSError:
        return ()
    return tuple(str(ip_network(IPv6Address(bytes.fromhex(line.split()[0])))) for line in lines)


# --- check ------------------------------------------------------------------------------------------------------


def check(settings: Settings, site: Site) -> Iterator[CheckResult]:
    """Look whether each gate could work: the programs are here and the servers answer."""
    plan = plan_of(settings)
    if plan.egress:
        yield _tried("egress", squid_program, f"{len(plan.egress)} places outside, filtered by squid")
    for entrance in plan.entrances.values():
        service = plan.services_in_use.get(entrance.place.host.lower())
        yield _tried(
            f"way to {entrance.label}",
            partial(_reach, entrance, service, site.addresses),
            "the server answers" if service is None else f"the server answers ({service.name} in services)",
        )
    for service in settings.services:
        if service.name not in plan.services_in_use:
            yield judge_gate(f"service {service.name}", "no database's URI names it, so it is of no use")


def _tried(name: str, action: Callable[[], object], found: str) -> CheckResult:
    try:
        action()
    except NodeAgentError as error:
        return failed(name, error)
    except OSError as error:
        return failed(
            name, Transient(f"The server does not answer: {error}.", hint="Look at the database's uri.")
        )
    return judge_gate(name, found, fine=True)


def _reach(entrance: Entrance, service: Service | None, addresses: Addresses) -> None:
    place = entrance.place
    if service is None:
        _connect("localhost" if place.host.lower() in HOST_ITSELF else place.host, place.port)
    elif service.container is not None:
        _connect(addresses.of_container(service.container)[0], place.port)
    elif service.tunnel is not None:
        _go_through(service.name, service.tunnel)


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=_SECONDS).close()


def _go_through(name: str, tunnel: Tunnel) -> None:
    """Log in on the far machine and knock at the server from there, once."""
    with TemporaryDirectory(prefix="node-agent-") as folder:
        known_hosts = Path(folder, "known")
        known_hosts.write_text(f"{name} {pinned_key(tunnel)}\n")
        command = [ssh_program(), *ssh_words(name, tunnel, known_hosts=known_hosts)]
        try:
            done = subprocess.run(
                [*command, "-W", tunnel.target, "--", tunnel.host],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=3 * _SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Transient(f"{tunnel.host} does not answer in time.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["the secure shell says nothing"]
        raise Transient(
            f"The tunnel cannot be made: {said[-1][:200]}",
            hint=f"Expected host key: {fingerprint_of(tunnel.host_key)}. Look at services in the configuration.",
        )
