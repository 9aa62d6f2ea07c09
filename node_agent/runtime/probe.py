"""The proof, at every start, that a run can reach nothing but the proxy and use no more than it is given.

Two containers with exactly a run's network and hardening: one listens, the other looks around. Owns what is tried and
what each answer means. Must not repair anything: it says what is open and what to do.
"""

import errno
import io
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from socket import AF_INET, SO_REUSEADDR, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any, Self

from node_agent.domain.container import ContainerLimits, ContainerSpec, NetworkFacts, Phase
from node_agent.domain.run import ContainerId
from node_agent.errors import EngineUnreachable, StartFailed
from node_agent.runtime import probe_inside
from node_agent.runtime.connection import EngineConnection, one_line
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.firewall import FirewallFacts
from node_agent.runtime.own_python import ensured_empty_image, own_python, own_python_mounts
from node_agent.runtime.spec import LABEL_NAME, LABEL_PROBE
from node_agent.runtime.subnets import host_addresses

NEIGHBOUR_PORT = 9
SECONDS = 15
LIMITS_HINT = (
    "Engines without root need cgroup v2 with delegation for memory, pids and cpus; Podman takes open_files and output_size"
    " (nofile, fsize) from default_ulimits in its containers.conf. To do without: limits.accept_unenforced: true."
)
_NAMES_INSIDE: Mapping[str, str] = {"cpus": "cpu", "output_size": "file_size"}
_REFUSALS = frozenset({errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT})
"""How a filter refuses a call, or a kernel that does not have it."""
_LOG_LIMIT = 256 * 1024
_MEMORY_ROUNDING = 64 * 1024


class Check(StrEnum):
    """What a finding is about."""

    HOST = "host"
    """Services of this machine can be reached from a run."""
    NEIGHBOUR = "neighbour"
    NAMES = "names"
    WAY_OUT = "way_out"
    PROXY = "proxy"
    GATES = "gates"
    LIMITS = "limits"
    HARDENING = "hardening"
    PROBE = "probe"
    """The probe itself could not be carried out, so nothing is proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it must be, and what to do about it."""

    check: Check
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.text} {self.hint}"


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probe found; nothing means that all is closed."""

    findings: tuple[Finding, ...]

    def without(self, accepted: frozenset[Check]) -> "ProbeReport":
        """Leave out what the operator accepts."""
        return ProbeReport(tuple(finding for finding in self.findings if finding.check not in accepted))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan:
    """What is proven: the containers' user and limits, the proxy's port, and this machine's addresses."""

    agent: str
    user: tuple[int, int]
    groups: tuple[int, ...]
    limits: ContainerLimits
    proxy_port: int | None
    """None while no proxy listens: then its port is left out."""
    gates: tuple[int, ...] = ()
    """Further ports of this machine that runs are meant to reach; empty while nothing listens there."""
    firewall: FirewallFacts
    image: str | None = None
    """An image with python3, for an agent whose own Python is not at the same place on the engine's machine."""
    addresses: tuple[str, ...] | None = None
    """Of this machine; None looks them up."""


def _none_ready() -> None:
    return


def _at_once(action: Callable[[], None]) -> None:
    action()


def probe_isolation(
    connection: EngineConnection,
    engine: DockerEngine,
    network: NetworkFacts,
    plan: ProbePlan,
    *,
    ready: Callable[[], ContainerId | None] = _none_ready,
    clear: Callable[[Callable[[], None]], None] = _at_once,
) -> ProbeReport:
    """Look around from inside a container like a run's, and report what is not closed.

    *ready* gives the container whose network namespace runs join: that one is looked around in; without it, one of the
    probe's own. *clear* says when the containers are removed.
    """
    try:
        with (
            _Canary() as canary,
            _probes(connection, engine, plan, clear) as probes,
            ThreadPoolExecutor(1, "probe") as beside,
        ):
            starting = beside.submit(probes.start_neighbour, network)
            namespace = ready()
            doors = _doors(network, plan, canary, neighbour=starting.result())
            seen = probes.look(doors, namespace)
            probes.confirm_neighbour()
            return ProbeReport(tuple(judge(seen, canary.heard(), plan)))
    except StartFailed as error:
        return ProbeReport((_not_carried_out(str(error)),))


def _not_carried_out(reason: str) -> Finding:
    return Finding(
        check=Check.PROBE,
        text=f"The isolation of runs could not be proven: {reason}",
        hint="If the agent itself runs in a container, name an image with python3 (network.probe_image).",
    )


# --- what is tried --------------------------------------------------------------------------------------------


class _Canary:
    """Listens on all addresses of this machine, as a careless service would."""

    def __enter__(self) -> Self:
        self.token = secrets.token_hex(8)
        self._tcp = socket(AF_INET, SOCK_STREAM)
        self._tcp.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        # The kernel answers for us: a connection that arrives is open without being accepted.
        self._tcp.bind(("0.0.0.0", 0))  # noqa: S104 - this is what must not be reachable
        self._tcp.listen()
        self._udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
        self._udp.bind(("0.0.0.0", 0))  # noqa: S104 - same
        return self

    def __exit__(self, *_: object) -> None:
        self._tcp.close()
        self._udp.close()

    @property
    def tcp_port(self) -> int:
        """The port that must not be reachable."""
        return int(self._tcp.getsockname()[1])

    @property
    def udp_port(self) -> int:
        """The UDP port that must not be reachable."""
        return int(self._udp.getsockname()[1])

    def heard(self) -> frozenset[str]:
        """Give the keys of the UDP packets of this probe that arrived."""
        keys = set()
        with suppress(BlockingIOError):
            while True:
                token, _, key = self._udp.recv(512).decode(errors="replace").partition(" ")
                if token == self.token:
                    keys.add(key)
        return frozenset(keys)


def _doors(network: NetworkFacts, plan: ProbePlan, canary: _Canary, *, neighbour: str) -> dict[str, Any]:
    found = host_addresses() if plan.addresses is None else plan.addresses
    addresses = sorted({network.gateway, *found})
    tcp: dict[str, tuple[str, int]] = {f"host {a}": (a, canary.tcp_port) for a in addresses}
    tcp["neighbour"] = (neighbour, NEIGHBOUR_PORT)
    if plan.proxy_port is not None:
        tcp["proxy"] = (network.gateway, plan.proxy_port)
    tcp |= {f"gate {port}": (network.gateway, port) for port in plan.gates}
    return {
        "do": "look",
        "token": canary.token,
        "tcp": tcp,
        "udp": {f"udp {a}": (a, canary.udp_port) for a in addresses},
        "dns": [network.gateway],
        "name": f"{canary.token}.node-agent.invalid",
    }


# --- the containers -------------------------------------------------------------------------------------------


@contextmanager
def _probes(
    connection: EngineConnection,
    engine: DockerEngine,
    plan: ProbePlan,
    clear: Callable[[Callable[[], None]], None],
) -> Iterator["_Probes"]:
    probes = _Probes(connection, engine, plan)
    try:
        yield probes
    finally:
        clear(probes.remove)


class _Probes:
    """Makes the two containers and removes them."""

    def __init__(self, connection: EngineConnection, engine: DockerEngine, plan: ProbePlan) -> None:
        self._connection = connection
        self._engine = engine
        self._plan = plan
        self._made: list[ContainerId] = []
        # A check may run beside the agent's own probe: names must not meet.
        self._mark = secrets.token_hex(4)

    def start_neighbour(self, network: NetworkFacts) -> str:
        """Start the container that listens; give its address."""
        self._neighbour = self._start("neighbour", {"do": "listen", "port": NEIGHBOUR_PORT}, namespace=None)
        with self._connection.client() as client:
            found = client.inspect_container(self._neighbour)
        return str(found["NetworkSettings"]["Networks"][network.name]["IPAddress"])

    def confirm_neighbour(self) -> None:
        """Make sure that it was there all the time: whoever has ended cannot be reached by anybody."""
        report = self._engine.inspect(self._neighbour)
        if report is None or report.phase is not Phase.RUNNING:
            raise StartFailed("the container that must not be reached ended too soon.")

    def look(self, doors: Mapping[str, Any], namespace: ContainerId | None) -> Mapping[str, Any]:
        """Let the second container look around; give what it saw."""
        container = self._start("look", doors, namespace=namespace)
        with self._connection.client() as client:
            code = client.wait(container, timeout=SECONDS)["StatusCode"]
        text = io.BytesIO()
        self._engine.copy_log(container, text, limit=_LOG_LIMIT, mask=iter)
        try:
            seen = json.loads(text.getvalue())
        except ValueError as error:
            said = one_line(text.getvalue().decode(errors="replace")) or "it said nothing"
            raise StartFailed(f"the probe ended with exit code {code}: {said}.") from error
        if not isinstance(seen, dict):
            raise StartFailed("the probe gave no report.")
        return seen

    def remove(self) -> None:
        """Remove both, and those that an earlier, interrupted probe left."""
        for container in [*self._made, *self._left_over()]:
            with suppress(EngineUnreachable):
                self._engine.remove(container)

    def _left_over(self) -> list[ContainerId]:
        marks = [f"{LABEL_NAME}={self._plan.agent}", f"{LABEL_PROBE}=true"]
        with suppress(EngineUnreachable), self._connection.client() as client:
            listed = client.containers(all=True, filters={"label": marks, "status": "exited"})
            return [ContainerId(entry["Id"]) for entry in listed]
        return []

    def _start(self, part: str, asked: Mapping[str, Any], *, namespace: ContainerId | None) -> ContainerId:
        spec = replace(self._spec(part, asked), namespace=namespace)
        container = self._engine.ensure_container(spec)
        self._made.append(container)
        self._engine.ensure_started(container)
        return container

    def _spec(self, part: str, asked: Mapping[str, Any]) -> ContainerSpec:
        python, mounts = ("python3", ()) if self._plan.image else (own_python(), own_python_mounts())
        return ContainerSpec(
            name=f"node-agent-{self._plan.agent}-probe-{part}-{self._mark}",
            run_id=None,
            image_id=self._image_id(),
            user=self._plan.user,
            groups=self._plan.groups,
            environment={"NODE_AGENT_PROBE": json.dumps(asked)},
            mounts=mounts,
            limits=self._plan.limits,
            command=(python, "-I", "-S", "-B", "-c", _script()),
        )

    def _image_id(self) -> str:
        if self._plan.image is None:
            with self._connection.client() as client:
                return ensured_empty_image(client)
        found = self._engine.find_image(self._plan.image)
        if found is None:
            raise StartFailed(f"the image {self._plan.image} (network.probe_image) is not on this machine.")
        return found.image_id


def _script() -> str:
    return Path(probe_inside.__file__).read_text()


# --- what it means --------------------------------------------------------------------------------------------


def judge(seen: Mapping[str, Any], heard: frozenset[str], plan: ProbePlan) -> Iterator[Finding]:
    """Say what is wrong with what the probe saw from inside and what the canary heard outside."""
    reached = {key for key, answer in seen["reached"].items() if answer != "closed"} | heard
    yield from _open_host(reached, plan)
    yield from _open_network(seen, reached)
    if plan.proxy_port is not None and seen["reached"]["proxy"] != "open":
        yield Finding(
            check=Check.PROXY,
            text=f"Runs cannot reach the proxy on port {plan.proxy_port}.",
            hint="A firewall of this machine may be closed to the containers' interface: allow that port there.",
        )
    yield from _shut_gates(seen["reached"], plan)
    yield from _loose_limits(seen["limits"], plan.limits)
    yield from _loose_hardening(seen, plan)


def _shut_gates(answers: Mapping[str, str], plan: ProbePlan) -> Iterator[Finding]:
    shut = [port for port in plan.gates if answers[f"gate {port}"] != "open"]
    if shut:
        yield Finding(
            check=Check.GATES,
            text=f"Runs cannot reach what was opened for them (egress, databases) on port {', '.join(map(str, shut))}.",
            hint="Run `node-agent network ensure -c FILE` as root after a change of egress or databases, and"
            " allow these ports for the containers' interface in this machine's firewall.",
        )


def _open_host(reached: set[str], plan: ProbePlan) -> Iterator[Finding]:
    open_addresses = sorted({key.split()[1] for key in reached if key.startswith(("host ", "udp "))})
    if not open_addresses:
        return
    why = f" ({plan.firewall.reason})" if plan.firewall.reason else ""
    yield Finding(
        check=Check.HOST,
        text="Services of this machine that listen on all addresses can be reached from a run, through"
        f" {', '.join(open_addresses)}. The rule that closes it is not in force{why}.",
        hint="Install nftables and run `node-agent network ensure -c FILE` as root, or accept it in the"
        " configuration: network.accept_open_host: true.",
    )


def _open_network(seen: Mapping[str, Any], reached: set[str]) -> Iterator[Finding]:
    if "neighbour" in reached:
        yield Finding(
            check=Check.NEIGHBOUR,
            text="One run can reach another over the network.",
            hint="Load the kernel module br_netfilter and set net.bridge.bridge-nf-call-iptables=1, so that the"
            " engine's rule between containers has an effect.",
        )
    if any(key.startswith("dns ") for key in reached):
        yield Finding(
            check=Check.NAMES,
            text="Names outside are resolved for a run, which is a way for data to leave.",
            hint="Update the container engine, or point the machine's resolver away from a local address.",
        )
    # That nothing is forwarded rests on the same rules of the engine that keep neighbours apart, and on our own table.
    if seen["ipv6"]:
        yield Finding(
            check=Check.WAY_OUT,
            text="The network of the runs has IPv6, which no rule is made for.",
            hint="Remove the network and let the agent make it anew: docker network rm, then start the agent.",
        )


def _loose_limits(found: Mapping[str, str], limits: ContainerLimits) -> Iterator[Finding]:
    largest: Mapping[str, float] = {
        "memory": limits.memory + _MEMORY_ROUNDING,
        "pids": limits.pids,
        "cpus": math.inf,
        "open_files": limits.open_files,
        "output_size": limits.file_size,
    }
    loose = [
        name
        for name, most in largest.items()
        if (number := _number(found.get(_NAMES_INSIDE.get(name, name), ""))) is None or number > most
    ]
    if loose:
        yield Finding(
            check=Check.LIMITS,
            text=f"The engine does not enforce these limits on a run: {', '.join(loose)}.",
            hint=LIMITS_HINT,
        )


def _number(text: str) -> int | None:
    first = text.split()[:1]
    return int(first[0]) if first and first[0].isdigit() else None


def _loose_hardening(seen: Mapping[str, Any], plan: ProbePlan) -> Iterator[Finding]:
    status = seen["status"]
    checks = {
        "it has capabilities": all(
            _is_zero(status.get(f"Cap{kind}")) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")
        ),
        "it may gain privileges": status.get("NoNewPrivs") == "1",
        "system calls are not filtered (seccomp)": status.get("Seccomp") == "2",
        "its root file system can be written": seen["root_read_only"],
        "its /tmp cannot be written": seen["tmp_writable"],
        "it runs as another user than asked": (seen["uid"], seen["gid"]) == plan.user,
        "it has other groups than asked": set(seen["groups"]) - {plan.user[1]}
        == set(plan.groups) - {plan.user[1]},
    }
    loose = [words for words, fine in checks.items() if not fine]
    open_calls = sorted(name for name, error in seen["calls"].items() if error not in _REFUSALS)
    if open_calls:
        loose.append(f"it can make system calls that its filter refuses ({', '.join(open_calls)})")
    if loose:
        yield Finding(
            check=Check.HARDENING,
            text=f"A container of this engine is less closed than asked: {'; '.join(loose)}.",
            hint="Look at the engine's settings (seccomp profile, privileges, user namespaces).",
        )


def _is_zero(mask: str | None) -> bool:
    return mask is not None and set(mask) == {"0"}
