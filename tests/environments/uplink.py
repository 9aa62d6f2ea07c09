"""A network namespace with a way to the package registries through this machine, by NAT.

Owns the namespace, the pair of links, the rules and the name servers of the system that uses it; all of it is gone at the
end. Must not know what runs in it.
"""

import contextlib
import ipaddress
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.places import say

# Networks for tests of network devices (RFC 2544): nothing on a real machine is called so.
NETWORKS = ipaddress.ip_network("198.18.0.0/16")
MTU = 1400
"""Small enough for a machine whose own link is a tunnel."""
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


class UplinkError(Exception):
    """No namespace with a way out can be made; the text says why and what to do."""


@contextlib.contextmanager
def uplink(root: Path) -> Iterator[Path]:
    """Provide the namespace, as a file that nsenter takes, and write the name servers into *root*."""
    name = f"na-fresh-{secrets.token_hex(2)}"
    ours, theirs = f"nf{secrets.token_hex(3)}a", f"nf{secrets.token_hex(3)}b"
    network = ipaddress.ip_network((int(NETWORKS.network_address) + 4 * secrets.randbelow(2**14), 30))
    host, guest = (str(address) for address in network.hosts())
    (root / "etc/resolv.conf").write_text(_resolvers())
    before = _forwarding().read_text()
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_quietly, ["ip", "netns", "delete", name])
        _ip("link", "add", ours, "mtu", str(MTU), "type", "veth", "peer", "name", theirs, "netns", name)
        stack.callback(_quietly, ["ip", "link", "delete", ours])
        _ip("address", "add", f"{host}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        for words in (
            ("address", "add", f"{guest}/30", "dev", theirs),
            ("link", "set", theirs, "mtu", str(MTU), "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", host),
        ):
            _ip("-n", name, *words)
        stack.callback(_forwarding().write_text, before)
        _forwarding().write_text("1")
        for rule in _rules(ours, str(network)):
            _iptables("-I", rule)
            stack.callback(_iptables, "-D", rule)
        yield Path("/run/netns", name)


def _forwarding() -> Path:
    return Path("/proc/sys/net/ipv4/ip_forward")


def _rules(link: str, network: str) -> Sequence[tuple[str, ...]]:
    # before the engine's own rules, which drop what they do not know
    return (
        ("filter", "FORWARD", "-i", link, "-j", "ACCEPT"),
        ("filter", "FORWARD", "-o", link, "-j", "ACCEPT"),
        ("nat", "POSTROUTING", "-s", network, "!", "-d", network, "-j", "MASQUERADE"),
    )


def _iptables(action: str, rule: Sequence[str]) -> None:
    table, chain, *rest = rule
    _command(["iptables", "-w", "-t", table, action, chain, *rest])


def _resolvers() -> str:
    """Return the first list of name servers that can be reached from another network namespace."""
    for path in RESOLVERS:
        lines = path.read_text().splitlines() if path.exists() else []
        servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
        if servers and not any(ipaddress.ip_address(server.split("%")[0]).is_loopback for server in servers):
            return "".join(f"nameserver {server}\n" for server in servers)
    raise UplinkError("this machine's name servers listen on loopback only: name one in /etc/resolv.conf")


def _ip(*words: str) -> None:
    _command(["ip", *words])


def _command(command: Sequence[str]) -> None:
    if shutil.which(command[0]) is None:
        raise UplinkError(f"{command[0]} is not installed: run tests/lab/setup.sh fresh")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UplinkError(f"{' '.join(command)}: {done.stderr.strip()}")


def _quietly(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        say(f"{' '.join(command)}: {done.stderr.strip()}")
