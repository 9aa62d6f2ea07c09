"""The filtering proxy for places outside: Squid, with a configuration made from the owner's rules.

Owns the configuration and the process. Everything is refused unless a rule allows it, and no name is looked up before a
rule allows it, so that questions for names carry nothing out. Must not know who the algorithms are.
"""

import hashlib
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from pathlib import Path

import structlog

from node_agent.domain.egress import EgressRule
from node_agent.errors import ConfigError
from node_agent.gates.child import Child, Program
from node_agent.gates.quiet import Quiet

log = structlog.get_logger()

START_SECONDS = 20.0
CONNECTIONS_PER_RUN = 64
_USUAL_PLACES = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
_ACCOUNTS = ("proxy", "squid", "nobody")
_LISTENING = "Accepting HTTP Socket connections"
_FATAL = re.compile(r"FATAL|Cannot bind|Bungled")
_MOMENT = 0.05
_MARK = "algorithm"
_WORDS = 6
_REFUSED = 403
_SOCKETS = Path("/proc/self/net/tcp")
_LISTEN = "0A"
# What is this machine itself wherever it runs, beside its own addresses.
_ALWAYS_INSIDE = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "fe80::/10",
    "ff00::/8",
)

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPlan:
    """Where the proxy listens, for whom, and what it lets through."""

    agent: str
    address: str
    port: int
    clients: str
    """The network the proxy serves; nobody else."""
    rules: tuple[EgressRule, ...]
    name_servers: tuple[str, ...] = ()
    """Empty: those of this machine."""


def squid_program() -> str:
    """Find Squid. Raises ConfigError."""
    program = shutil.which("squid") or shutil.which("squid", path=_USUAL_PLACES)
    if program is None:
        raise ConfigError(
            "Egress is configured (egress.allow), and the program squid that filters it is not installed.",
            hint="Install the Debian package squid, or remove egress.allow.",
        )
    return program


# --- the configuration ----------------------------------------------------------------------------------------

_HEAD = """\
http_port {address}:{port}
visible_hostname proxyserver
pid_filename none
cache_log /dev/null
logformat short {mark} %>a %>Hs %rm %>rd %>rP
access_log stdio:/dev/stdout logformat=short
coredump_dir none
cache deny all
cache_mem 0 MB
memory_pools off
pinger_enable off
netdb_filename none
max_filedescriptors 4096
shutdown_lifetime 1 second
connect_timeout 30 seconds
forward_timeout 1 minute
via off
forwarded_for delete
httpd_suppress_version_string on
global_internal_static off
strip_query_terms on
uri_whitespace deny
client_db on
# An address that was looked up and found in order stays the one that is used.
negative_dns_ttl 1 minute
acl host src {address}
acl runs src {clients}
acl connect method CONNECT
acl plain proto HTTP
acl greedy maxconn {most}
# Who is no run gets no answer, not even a refusal: this machine's users have the address the proxy listens on.
deny_info TCP_RESET host
deny_info TCP_RESET runs
http_access deny host
http_access deny !runs
http_access deny manager
http_access deny greedy
http_access deny !connect !plain
"""


def squid_conf(plan: EgressPlan, *, inside: Iterable[str]) -> str:
    """Write the configuration; *inside* are the networks that no name may lead to."""
    head = _HEAD.format(
        address=plan.address, port=plan.port, clients=plan.clients, mark=_MARK, most=CONNECTIONS_PER_RUN
    )
    networks = _networks((*_ALWAYS_INSIDE, *inside, plan.clients))
    lines = [
        line for number, rule in enumerate(plan.rules) for line in _lines(number, rule, plan.rules, networks)
    ]
    servers = [f"dns_nameservers {' '.join(plan.name_servers)}"] if plan.name_servers else []
    return head + "\n".join([*servers, *lines, "http_access deny all", ""])


def _lines(
    number: int, rule: EgressRule, rules: Sequence[EgressRule], inside: Sequence[Network]
) -> Iterator[str]:
    yield f"acl port{number} port {rule.ports}"
    if rule.network is not None:
        # -n: a name is never looked up for this rule
        yield f"acl place{number} dst -n {rule.network}"
        yield f"http_access allow port{number} place{number}"
        return
    conditions = f"port{number} place{number}"
    if rule.below is not None:
        yield f"acl place{number} dstdomain -n .{rule.below}"
        yield f"acl apex{number} dstdomain -n {rule.below}"
        conditions += f" !apex{number}"
    else:
        yield f"acl place{number} dstdomain -n {rule.name}"
    # Only here, behind a name that is allowed, does the question leave this machine.
    closed = " ".join(map(str, _without_listed(inside, rule, rules)))
    yield f"acl inside{number} dst {closed}"
    yield f"http_access allow {conditions} !inside{number}"


def _networks(texts: Iterable[str]) -> list[Network]:
    found = [ip_network(text, strict=False) for text in texts]
    return [
        *collapse_addresses(network for network in found if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in found if isinstance(network, IPv6Network)),
    ]


def _without_listed(
    inside: Sequence[Network], rule: EgressRule, rules: Sequence[EgressRule]
) -> list[Network]:
    """Leave out what another rule lists as an address, with all the ports of this one."""
    left = list(inside)
    for other in rules:
        if other.network is not None and other.covers_ports(rule):
            left = [part for network in left for part in _cut(network, other.network)]
    return left


def _cut(network: Network, hole: IPv4Network) -> list[Network]:
    if not isinstance(network, IPv4Network) or not network.overlaps(hole):
        return [network]
    return [] if network.subnet_of(hole) else list(network.address_exclude(hole))


# --- the process ----------------------------------------------------------------------------------------------


class Egress:
    """Squid, kept running; *inside* is asked again now and then, since networks of containers come and go."""

    def __init__(self, plan: EgressPlan, *, folder: Path, inside: Callable[[], Iterable[str]]) -> None:
        self._plan = plan
        self._folder = folder
        self._inside = inside
        self._decided = threading.Event()
        self._refusal = ""
        self._quiet = {True: Quiet(), False: Quiet()}
        self._child: Child | None = None

    @property
    def _conf(self) -> Path:
        return self._folder / "squid.conf"

    def start(self) -> None:
        """Start the proxy and wait until it listens. Raises ConfigError."""
        program = squid_program()
        self._write(squid_conf(self._plan, inside=self._inside()))
        mark = "na" + hashlib.sha256(self._plan.agent.encode()).hexdigest()[:12]
        # Its configuration is handed over open: under root it runs as somebody who may not enter our folder.
        command = (program, "-N", "-d", "1", "-n", mark, "-f", "/proc/self/fd/0")
        self._child = Child(
            Program(
                name="squid",
                command=command,
                mark=mark,
                folder=self._folder,
                user=_account(),
                stdin=self._conf,
            ),
            heard=self._heard,
        )
        self._child.start()
        if not self._answers():
            self.stop()
            raise ConfigError(
                f"The proxy for egress does not listen on {self._plan.address} port {self._plan.port}: "
                f"{self._refusal or 'squid says nothing'}.",
                hint="Is the port free? Another one can be set with egress.port.",
            )
        log.info("egress_listening", address=self._plan.address, port=self._plan.port)

    def _answers(self) -> bool:
        """Wait until the proxy listens or has said why it does not."""
        deadline = time.monotonic() + START_SECONDS
        self._decided.wait(START_SECONDS)
        # It says that it listens a moment before it does.
        while not self._refusal and time.monotonic() < deadline:
            if _is_listening(self._plan.address, self._plan.port):
                return True
            time.sleep(_MOMENT)
        return False

    def stop(self) -> None:
        """End the proxy; not started is fine."""
        if self._child is not None:
            self._child.stop()

    def refresh(self) -> None:
        """Take up networks of this machine that came or went."""
        conf = squid_conf(self._plan, inside=self._inside())
        if self._child is not None and conf != self._conf.read_text():
            self._write(conf)
            self._child.signal(signal.SIGHUP)

    def _write(self, conf: str) -> None:
        # In place: the running program holds this very file open.
        self._conf.write_text(conf)
        self._conf.chmod(0o644)

    def _heard(self, line: str) -> None:
        words = line.split()
        if words[:1] == [_MARK] and len(words) == _WORDS and words[4] != "-":
            self._log_call(*words[1:])
        elif _LISTENING in line:
            self._decided.set()
        elif _FATAL.search(line):
            self._refusal = self._refusal or line
            self._decided.set()

    def _log_call(self, client: str, status: str, method: str, host: str, port: str) -> None:
        refused = status == str(_REFUSED)
        unsaid = self._quiet[refused].left_out()
        if unsaid is not None:
            log.log(
                logging.WARNING if refused else logging.INFO,
                "egress_refused" if refused else "egress_used",
                client=client,
                method=method,
                host=host[:253],
                port=port,
                status=status,
                unsaid=unsaid,
            )


def _is_listening(address: str, port: int) -> bool:
    """Check whether a socket listens there; connecting proves nothing, since this machine's own calls are refused."""
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    place = f"{number:08X}:{port:04X}"
    rows = (line.split()[1:4] for line in _SOCKETS.read_text().splitlines())
    return any(row[:1] == [place] and row[2:] == [_LISTEN] for row in rows)


def _account() -> tuple[int, int]:
    """Choose whom the proxy runs as; only root has a choice."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for name in _ACCOUNTS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return found.pw_uid, found.pw_gid
    return 65534, 65534
