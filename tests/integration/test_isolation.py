"""What a hostile algorithm can reach from the isolated network, and what the probe says of it."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from docker.models.containers import Container

from node_agent.domain.run import ContainerId
from node_agent.runtime.firewall import FirewallFacts, ensure_firewall, remove_firewall
from node_agent.runtime.network import IsolatedNetwork, prepare_network
from node_agent.runtime.probe import Check, ProbePlan, probe_isolation
from node_agent.runtime.spec import LABEL_NAME, LABEL_PROBE
from node_agent.runtime.subnets import host_addresses
from tests.integration.machine import LIMITS, USER, Machine
from tests.lab.registry import registry

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("root")]

KNOCK = """
import json, socket
answers = {{}}
for address, port in {doors}:
    try:
        socket.create_connection((address, port), timeout=0.3).close()
        answers[f'{{address}}:{{port}}'] = 'open'
    except ConnectionRefusedError:
        answers[f'{{address}}:{{port}}'] = 'refused'
    except OSError:
        pass
print(json.dumps(answers))
"""


def knock(place: Machine, run_id: int, doors: list[tuple[str, int]]) -> object:
    """Try to connect from a run; give the doors that answered."""
    return place.answer(run_id, KNOCK.format(doors=doors))


@contextmanager
def listening(address: str, port: int = 0) -> Iterator[int]:
    """Listen as a service of the host does."""
    with socket.create_server((address, port)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def proxy(place: Machine) -> Iterator[int]:
    """The closed network, with something in the place of the proxy."""
    with listening(place.facts.gateway) as port:
        prepared = prepare_network(place.network, name=place.name, proxy_port=port)
        assert prepared.firewall.loaded, prepared.firewall.reason
        yield port
    remove_firewall(place.name)


def plan(place: Machine, proxy_port: int | None, **changes: object) -> ProbePlan:
    asked = ProbePlan(
        agent=place.name,
        user=USER,
        groups=(4321,),
        limits=LIMITS,
        proxy_port=proxy_port,
        firewall=FirewallFacts(loaded=True),
    )
    return replace(asked, **changes)


def checks(place: Machine, asked: ProbePlan, **how: Any) -> list[Check]:
    report = probe_isolation(place.connection, place.engine, place.facts, asked, **how)
    return [finding.check for finding in report.findings]


def probes_of(place: Machine) -> list[Container]:
    mark = {"label": [f"{LABEL_NAME}={place.name}", f"{LABEL_PROBE}=true"]}
    return place.client.containers.list(all=True, filters=mark, ignore_removed=True)


# --- a hostile algorithm --------------------------------------------------------------------------------------


def test_a_run_reaches_the_proxy_and_no_other_service_of_the_host(place: Machine, proxy: int) -> None:
    addresses = {*host_addresses(), place.facts.gateway}
    with listening("0.0.0.0") as careless, registry() as shop:
        doors = [
            (address, port) for address in addresses for port in (careless, int(shop.host.rpartition(":")[2]))
        ]
        answers = knock(place, 1, [*doors, (place.facts.gateway, proxy), ("127.0.0.1", careless)])
    assert answers == {f"{place.facts.gateway}:{proxy}": "open", f"127.0.0.1:{careless}": "refused"}


def test_without_the_rule_the_host_would_be_open(place: Machine) -> None:
    """The control: it is the rule that closes the host, not chance."""
    remove_firewall(place.name)
    with listening("0.0.0.0") as careless:
        door = (place.facts.gateway, careless)
        assert knock(place, 1, [door]) == {f"{door[0]}:{careless}": "open"}


def test_a_run_reaches_no_other_run_and_no_container_of_another_network(place: Machine, proxy: int) -> None:
    serve = "import socket, time; s = socket.create_server(('0.0.0.0', 8000)); print('up', flush=True); time.sleep(60)"
    neighbour = place.start(1, serve)
    elsewhere = place.client.containers.run(
        place.image_id, detach=True, environment={"DO": serve}, labels={"node-agent.name": place.name}
    )
    try:
        elsewhere.reload()
        outside = elsewhere.attrs["NetworkSettings"]["IPAddress"]
        await_words(place, str(elsewhere.id))
        with socket.create_connection((outside, 8000), timeout=5):
            pass
        assert knock(place, 2, [(place.address(neighbour), 8000), (outside, 8000)]) == {}
    finally:
        elsewhere.remove(force=True)


def await_words(place: Machine, container: str) -> None:
    """Wait until a container wrote something."""
    deadline = time.monotonic() + 20
    while not place.client.api.logs(container):
        assert time.monotonic() < deadline, "the container says nothing"
        time.sleep(0.05)


def test_the_proxy_goes_by_its_name(place: Machine, proxy: int) -> None:
    script = "import json, socket; print(json.dumps(socket.gethostbyname('proxyserver')))"
    assert place.answer(1, script) == place.facts.gateway


def test_the_rule_may_be_loaded_before_the_network_is_there(place: Machine) -> None:
    name = f"{place.name}-early"
    network = IsolatedNetwork(name, place.connection)
    facts = network.ensure_network()
    network.remove()
    assert ensure_firewall(name, gateway=facts.gateway, proxy_port=9).loaded
    try:
        assert network.ensure_network().gateway == facts.gateway
        early = replace(
            place, name=name, network=network, engine=type(place.engine)(name, place.connection, network)
        )
        with listening("0.0.0.0") as careless:
            assert knock(early, 1, [(facts.gateway, careless)]) == {}
    finally:
        network.remove()
        remove_firewall(name)


def test_the_rule_can_be_loaded_and_removed_any_number_of_times(place: Machine) -> None:
    for _ in range(2):
        assert ensure_firewall(place.name, gateway="10.213.0.1", proxy_port=7480).loaded
    for _ in range(2):
        assert remove_firewall(place.name).loaded


# --- names ----------------------------------------------------------------------------------------------------

RESOLVE = """
import json, socket
try:
    print(json.dumps(socket.gethostbyname('canary.example.org')))
except OSError:
    print(json.dumps(None))
"""


@contextmanager
def name_server(address: str) -> Iterator[list[bytes]]:
    """Answer every question for a name with 192.0.2.99, and remember the questions."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        thread = threading.Thread(target=answer_names, args=(server, asked), daemon=True)
        thread.start()
        yield asked
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closing:
            closing.sendto(b"", (address, 53))
        thread.join()


def answer_names(server: socket.socket, asked: list[bytes]) -> None:
    while question := server.recvfrom(512):
        packet, sender = question
        if not packet:
            return
        asked.append(packet)
        end = packet.index(b"\0", 12) + 5
        server.sendto(
            packet[:2]
            + b"\x81\x80\0\x01\0\x01\0\0\0\0"
            + packet[12:end]
            + b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04"
            b"\xc0\0\x02\x63",
            sender,
        )


def test_no_outside_name_is_resolved(place: Machine, proxy: int) -> None:
    with name_server(place.facts.gateway) as asked:
        assert place.answer(1, RESOLVE) is None
    assert asked == []


def test_a_name_server_within_reach_would_have_answered(place: Machine) -> None:
    """The control: with a server that answers and without our settings, the same question finds the canary."""
    remove_firewall(place.name)
    with name_server(place.facts.gateway) as asked:
        open_host = {"Dns": [place.facts.gateway], "NetworkMode": place.facts.name}
        made = place.client.api.create_container_from_config(
            {
                "Image": place.image_id,
                "Env": [f"DO={RESOLVE}"],
                "Labels": {"node-agent.name": place.name},
                "HostConfig": open_host,
            }
        )
        place.client.api.start(made["Id"])
        place.ended(made["Id"])
        assert place.log(made["Id"]).strip() == '"192.0.2.99"'
    assert asked


# --- the probe ------------------------------------------------------------------------------------------------


def test_the_probe_finds_a_closed_network_closed_and_leaves_nothing(place: Machine, proxy: int) -> None:
    assert checks(place, plan(place, proxy)) == []
    assert place.engine.list_containers() == ()


def test_the_probe_notices_that_the_rule_is_missing(place: Machine) -> None:
    remove_firewall(place.name)
    assert checks(place, plan(place, None)) == [Check.HOST]


def test_the_probe_notices_a_rule_for_another_port(place: Machine, proxy: int) -> None:
    with listening(place.facts.gateway) as other:
        assert checks(place, plan(place, other)) == [Check.PROXY]


def test_the_probe_notices_a_name_server_that_answers(place: Machine) -> None:
    remove_firewall(place.name)
    with name_server(place.facts.gateway):
        assert checks(place, plan(place, None)) == [Check.HOST, Check.NAMES]


def test_the_probe_can_use_an_image_instead_of_the_agents_own_python(place: Machine, proxy: int) -> None:
    image = place.client.images.get(place.image_id).tags[0]
    assert checks(place, plan(place, proxy, image=image)) == []


def test_a_probe_that_cannot_be_carried_out_proves_nothing(place: Machine, proxy: int) -> None:
    assert checks(place, plan(place, proxy, image="no/such:image")) == [Check.PROBE]
    assert place.engine.list_containers() == ()


def test_the_probe_looks_around_in_the_namespace_that_runs_join(place: Machine, proxy: int) -> None:
    inside = place.start(1, "import time; time.sleep(60)")
    outside = place.client.containers.run(
        place.image_id, environment={"DO": "import time; time.sleep(60)"}, network_mode="bridge", detach=True
    )
    try:
        assert checks(place, plan(place, proxy), ready=lambda: inside) == []
        found = checks(place, plan(place, None), ready=lambda: ContainerId(outside.id))
        assert Check.HOST in found
    finally:
        outside.remove(force=True)
        place.engine.remove(inside)


def test_a_neighbour_that_ended_too_soon_proves_nothing(place: Machine, proxy: int) -> None:
    def end_it() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for running in (found for found in probes_of(place) if found.status == "running"):
                running.kill()
                return
            time.sleep(0.02)

    assert checks(place, plan(place, proxy), ready=end_it) == [Check.PROBE]
    assert probes_of(place) == []


def test_what_the_probe_made_may_go_later(place: Machine, proxy: int) -> None:
    later: list[Callable[[], None]] = []
    assert checks(place, plan(place, proxy), clear=later.append) == []
    assert len(probes_of(place)) == 2
    later.pop()()
    assert probes_of(place) == []


def engine_version(place: Machine) -> int:
    return int(place.client.version()["Version"].partition(".")[0])


def test_the_probe_looks_through_every_address_of_the_host(place: Machine) -> None:
    remove_firewall(place.name)
    before = set(host_addresses())
    report = probe_isolation(place.connection, place.engine, place.facts, plan(place, None))
    text = report.findings[0].text
    # bridges of other tests may come and go meanwhile
    lasting = before & set(host_addresses())
    assert lasting
    # from Docker 26 on, a container of an internal network has no route to any other address of the host
    within_reach = lasting if engine_version(place) < 26 else {place.facts.gateway}
    assert all(address in text for address in within_reach)
    assert os.uname().nodename not in text
