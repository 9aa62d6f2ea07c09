"""Network namespaces kept ready, on a real engine: who joins which, what is seen inside, and what stays behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from node_agent.domain.run import ContainerId, RunId
from node_agent.errors import NamespaceLost, StartFailed
from node_agent.runtime.addresses import Addresses
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.namespaces import Namespaces
from node_agent.runtime.network import network_name
from node_agent.runtime.spec import HOLDER, LABEL_KEEPER, LABEL_NAME, joined_namespace
from tests.doubles.clock import ManualClock
from tests.integration.machine import USER, Machine

pytestmark = pytest.mark.engine

MINE, YOURS = "average for me", "average for you"
SLEEP = "import time; time.sleep(60)"
LOOK = """
import json, os, socket
try:
    outside = socket.gethostbyname('example.com')
except OSError:
    outside = None
print(json.dumps({
    'proxy': socket.gethostbyname('proxyserver'),
    'outside': outside,
    'own': socket.gethostbyname(socket.gethostname()),
    'interfaces': sorted(name for _, name in socket.if_nameindex()),
    'processes': sorted(name for name in os.listdir('/proc') if name.isdigit()),
    'written': [path for path in ('/etc/hosts', '/etc/resolv.conf', '/etc/hostname') if os.access(path, os.W_OK)],
    'namespace': os.readlink('/proc/self/ns/net'),
}))
"""


@dataclass(frozen=True)
class Ready:
    """A test agent with namespaces kept ready."""

    machine: Machine
    namespaces: Namespaces

    def holders(self) -> set[str]:
        found = self.machine.client.api.containers(
            all=True,
            filters={"label": [f"{LABEL_NAME}={self.machine.name}", f"{LABEL_KEEPER}={HOLDER}"]},
        )
        return {entry["Id"] for entry in found}

    def joined(self, container: ContainerId) -> ContainerId | None:
        return joined_namespace(self.machine.client.api.inspect_container(container))

    def refill(self) -> None:
        """Do what the agent's own thread does when it is woken."""
        self.namespaces._tend()


@contextmanager
def ready(place: Machine, *, most: int = 2) -> Iterator[Ready]:
    """Begin as an agent does that starts."""
    namespaces = Namespaces(
        place.name, EngineConnection(place.host), most=most, user=USER, now=ManualClock().monotonic
    )
    engine = DockerEngine(place.name, place.connection, place.network, namespaces=namespaces)
    found = Ready(replace(place, engine=engine), namespaces)
    try:
        namespaces.open(place.facts)
        yield found
    finally:
        place.clear()
        namespaces.stop()
        namespaces.remove_unused()


@pytest.fixture
def kept(place: Machine) -> Iterator[Ready]:
    with ready(place) as found:
        yield found


def test_a_run_that_joins_sees_what_one_with_a_network_of_its_own_sees(kept: Ready) -> None:
    own = kept.machine.answer(1, LOOK)
    joined = kept.machine.answer(2, LOOK, series=MINE)
    assert own.pop("namespace") != joined.pop("namespace")
    assert own.pop("own") != joined.pop("own")
    assert joined == own
    assert joined["proxy"] == kept.machine.facts.gateway
    assert (joined["outside"], joined["written"], joined["processes"]) == (None, [], ["1"])


def test_a_namespace_is_handed_on_to_the_next_run_of_its_series_alone(kept: Ready) -> None:
    first = kept.machine.answer(1, LOOK, series=MINE)["namespace"]
    assert kept.machine.answer(2, LOOK, series=MINE)["namespace"] == first
    assert kept.machine.answer(3, LOOK, series=YOURS)["namespace"] != first
    assert kept.machine.answer(4, LOOK)["namespace"] != first


def test_two_runs_at_once_are_never_in_one_namespace(kept: Ready) -> None:
    first = kept.machine.start(1, SLEEP, series=MINE)
    second = kept.machine.start(2, SLEEP, series=MINE)
    kept.refill()
    third = kept.machine.start(3, SLEEP, series=MINE)
    assert kept.joined(first) is not None
    assert kept.joined(second) is None
    assert kept.joined(third) not in {None, kept.joined(first)}


def test_what_a_run_that_crashed_leaves_is_for_nobody(kept: Ready) -> None:
    before = kept.holders()
    report, _ = kept.machine.run(1, "raise SystemExit(3)", series=MINE)
    assert report.exit_code == 3
    kept.refill()
    assert kept.holders().isdisjoint(before)


def test_a_run_that_has_rights_or_names_of_its_own_does_not_join(kept: Ready) -> None:
    softer = {"writable_root": True}, {"capabilities": ("NET_RAW",)}, {"user": None}
    named = {"hosts": {"wiki": "10.1.2.3"}}, {"gateway_names": ("db",)}
    for number, changes in enumerate((*softer, *named), start=1):
        container = kept.machine.engine.ensure_container(kept.machine.spec(number, series=MINE, **changes))
        assert kept.joined(container) is None


def test_a_run_goes_on_in_its_namespace_while_the_agent_is_away(kept: Ready, place: Machine) -> None:
    container = kept.machine.start(1, SLEEP, series=MINE)
    holder = kept.joined(container)
    kept.refill()
    assert len(kept.holders()) == 2
    with ready(place) as later:
        assert holder in later.holders()
        assert len(later.holders()) == 2, "the one nobody was in is replaced"
        assert later.machine.engine.ensure_container(later.machine.spec(1, SLEEP, series=MINE)) == container
        assert later.machine.engine.inspect(container) is not None
        later.machine.engine.remove(container)
        later.refill()
        assert holder not in later.holders()


def test_a_run_that_began_in_a_network_of_its_own_is_adopted_there(kept: Ready, place: Machine) -> None:
    container = place.start(1, SLEEP, series=MINE)
    assert kept.joined(container) is None
    assert kept.machine.engine.ensure_container(kept.machine.spec(1, SLEEP, series=MINE)) == container
    assert kept.machine.answer(2, LOOK, series=MINE)


def test_a_run_that_ended_while_the_agent_was_away_is_adopted_without_its_namespace(
    kept: Ready, place: Machine
) -> None:
    container = kept.machine.start(1, "print(1)", series=MINE)
    holder = kept.joined(container)
    assert place.ended(container).exit_code == 0
    with ready(place) as later:
        assert holder not in later.holders()
        assert (
            later.machine.engine.ensure_container(later.machine.spec(1, "print(1)", series=MINE)) == container
        )


def test_an_agent_that_stops_leaves_only_the_namespaces_of_runs_that_go_on(kept: Ready) -> None:
    container = kept.machine.start(1, SLEEP, series=MINE)
    kept.refill()
    kept.namespaces.stop()
    assert kept.holders() == {kept.joined(container)}
    kept.namespaces.remove_unused()
    assert kept.holders() == {kept.joined(container)}
    kept.machine.engine.remove(container)
    kept.namespaces.remove_unused()
    assert kept.holders() == set()


def test_a_container_whose_namespace_is_gone_before_its_start_is_made_again(kept: Ready) -> None:
    spec = kept.machine.spec(1, "print('{}')", series=MINE)
    container = kept.machine.engine.ensure_container(spec)
    holder = kept.joined(container)
    kept.machine.client.api.remove_container(holder, force=True)
    with pytest.raises(NamespaceLost):
        kept.machine.engine.ensure_started(container)
    again = kept.machine.engine.ensure_container(spec)
    assert again != container
    kept.machine.engine.ensure_started(again)
    assert kept.machine.ended(again).exit_code == 0


def test_a_stopped_holder_is_noticed_too(kept: Ready) -> None:
    spec = kept.machine.spec(1, "print('{}')", series=MINE)
    container = kept.machine.engine.ensure_container(spec)
    kept.machine.client.api.kill(kept.joined(container))
    with pytest.raises(NamespaceLost):
        kept.machine.engine.ensure_started(container)


def test_a_start_that_fails_for_another_reason_stays_a_failed_start(kept: Ready) -> None:
    spec = kept.machine.spec(1, series=MINE, command=("/is/not/there",))
    container = kept.machine.engine.ensure_container(spec)
    assert kept.joined(container) is not None
    with pytest.raises(StartFailed):
        kept.machine.engine.ensure_started(container)


def test_the_gates_know_a_run_by_the_address_of_the_namespace_it_is_in(kept: Ready) -> None:
    holder = kept.joined(kept.machine.start(7, SLEEP, series=MINE))
    own = kept.machine.start(8, SLEEP)
    kept.refill()
    addresses = Addresses(kept.machine.name, kept.machine.connection, network=network_name(kept.machine.name))
    assert holder is not None
    assert addresses.of_runs() == {
        kept.machine.address(holder): RunId(7),
        kept.machine.address(own): RunId(8),
    }


def test_holders_are_no_containers_of_runs(kept: Ready) -> None:
    assert kept.holders()
    assert kept.machine.engine.list_containers() == ()


def test_where_none_are_kept_every_run_has_its_own(place: Machine) -> None:
    with ready(place, most=0) as none:
        container = none.machine.start(1, SLEEP, series=MINE)
        assert none.joined(container) is None
        assert none.holders() == set()
