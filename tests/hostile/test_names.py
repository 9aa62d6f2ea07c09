"""An algorithm that asks the engine's own name server who is on this machine.

A Docker engine answers at 127.0.0.11 in every network namespace, whatever name servers a container was given. Its answers
carry the names of containers and of the network: the agent's name, and the runs of other people.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.namespaces import Namespaces
from tests.integration.machine import USER, Machine

pytestmark = pytest.mark.engine

SERIES = "average for bob"
SLEEP = "import time; time.sleep(60)"
QUESTIONS = """
import json, os, socket, struct

def asked(kind, name, question):
    labels = b''.join(bytes([len(part)]) + part.encode() for part in name.split('.'))
    packet = bytes.fromhex('2a2a01000001000000000000') + labels + b'\\0' + struct.pack('!HH', question, 1)
    try:
        with socket.socket(socket.AF_INET, kind) as server:
            server.settimeout(0.3)
            server.connect(('127.0.0.11', 53))
            server.sendall(packet if kind == socket.SOCK_DGRAM else struct.pack('!H', len(packet)) + packet)
            return server.recv(512).hex()
    except OSError:
        return None

GATEWAY = socket.gethostbyname('proxyserver')
start = GATEWAY.rpartition('.')[0]
answers = []
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    answers += [asked(kind, '.'.join(reversed(f'{start}.{n}'.split('.'))) + '.in-addr.arpa', 12) for n in range(1, 9)]
    answers += [asked(kind, name, 1) for name in NAMES]
ports = []
for line in [*open('/proc/net/udp'), *open('/proc/net/tcp')][1:]:
    words = line.split()
    if words[1].startswith('0B00007F'):
        ports.append(int(words[1].partition(':')[2], 16))
for port in ports:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(0.3)
        try:
            server.connect(('127.0.0.11', port))
            server.send(bytes.fromhex('2a2a01000001000000000000') + b'\\0\\0\\x01\\0\\x01')
            answers.append(server.recv(512).hex())
        except OSError:
            pass
try:
    own = socket.gethostbyname(socket.gethostname())
except OSError:
    own = None
status = open('/proc/self/status').read()
print(json.dumps({'answers': [answer for answer in answers if answer], 'asked': len(answers), 'own': own is not None}))
"""


@pytest.fixture
def kept(place: Machine) -> Iterator[Machine]:
    """The machine of an agent that keeps namespaces ready, as every agent with Docker does."""
    namespaces = Namespaces(place.name, EngineConnection(place.host), most=2, user=USER)
    engine = DockerEngine(place.name, place.connection, place.network, namespaces=namespaces)
    try:
        assert namespaces.open(place.facts) is not None
        yield replace(place, engine=engine)
    finally:
        place.clear()
        namespaces.stop()
        namespaces.remove_unused()


def questions(place: Machine) -> str:
    names = [f"node-agent-{place.name}-run-{number}" for number in (1, 2)]
    return f"NAMES = {json.dumps(names)}\n{QUESTIONS}"


def test_the_engines_name_server_tells_neither_the_agents_name_nor_who_runs(kept: Machine) -> None:
    """Another person's run is there: no PTR, no A, over UDP or TCP, at the usual port or the engine's own."""
    kept.start(1, SLEEP)
    seen = kept.answer(2, questions(kept), series=SERIES)
    assert seen["asked"] >= 20
    assert (seen["answers"], seen["own"]) == ([], True)


def test_an_algorithm_cannot_open_the_name_server_again(kept: Machine) -> None:
    script = """
import json, socket
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
    # remove the route to 127.0.0.11 from the table of local addresses
    kernel.send(bytes.fromhex('2400000019000500010000000000000002200000ff0400000000000008000100') + bytes([127, 0, 0, 11]))
    answer = kernel.recv(4096)
print(json.dumps(int.from_bytes(answer[16:20], 'little', signed=True)))
"""
    assert kept.answer(1, script, series=SERIES) == -1


def test_whoever_holds_a_namespace_has_given_up_its_rights_before_a_run_joins(kept: Machine) -> None:
    container = kept.start(1, SLEEP, series=SERIES)
    found = kept.client.api.inspect_container(container)
    holder = str(found["HostConfig"]["NetworkMode"]).removeprefix("container:")
    top = kept.client.api.top(holder, ps_args="-eo uid,gid,pid")
    ((user, group, pid),) = top["Processes"]
    assert (int(user), int(group)) == USER
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"


def test_without_that_the_name_server_would_have_told(place: Machine) -> None:
    """The control: in a namespace that no holder prepared, the same questions find the names."""
    place.start(1, SLEEP)
    told = place.answer(2, questions(place))["answers"]
    assert any(f"node-agent-{place.name}-run-1".encode().hex() in answer for answer in told)
