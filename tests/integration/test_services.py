"""A real PostgreSQL, reached by a real algorithm that asked for its label, and by nobody else."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from node_agent.domain import contract
from node_agent.domain.container import ContainerLimits
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.run import RunId
from node_agent.domain.service import Service, Tunnel, entrances, seen_by_algorithms
from node_agent.domain.task import DatabaseRequest
from node_agent.gates.gates import GatePlan, Gates, Surroundings
from node_agent.gates.tunnel import fingerprint_of
from node_agent.runtime.addresses import Addresses
from node_agent.runtime.firewall import remove_firewall
from node_agent.runtime.network import prepare_network
from tests.integration.machine import LIMITS, MIB, Machine
from tests.lab.images import tools_image
from tests.lab.postgres import Postgres, PostgresError, postgres
from tests.lab.sshd import Sshd, SshdError, new_key, sshd
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("root")]

ROOMY: ContainerLimits = replace(LIMITS, memory=512 * MIB, cpus=2)
READ = """
import json
from vantage6.algorithm.tools.wrap import _decode_env_vars
_decode_env_vars()
import os
import sqlalchemy
uri = os.environ['WAREHOUSE_DATABASE_URI']
try:
    engine = sqlalchemy.create_engine(uri, connect_args={'connect_timeout': 10})
    with engine.connect() as connection:
        found = [list(row) for row in connection.execute('SELECT name, age FROM patients ORDER BY age')]
except sqlalchemy.exc.OperationalError as error:
    found = type(error.orig).__name__
print(json.dumps({'found': found, 'uri': uri}))
"""
KNOCK = """
import json, socket
def knock(port):
    try:
        with socket.create_connection(('proxyserver', port), timeout=1) as sock:
            sock.settimeout(10)
            sock.sendall(bytes.fromhex('0000000804d2162f'))  # PostgreSQL's request for encryption
            return sock.recv(1).decode() or 'cut'
    except OSError as error:
        return type(error).__name__
print(json.dumps([knock(port) for port in PORTS]))
"""
ANSWERS = {"N", "S"}
ROWS = [["a", 41], ["b", 43]]


@dataclass(frozen=True)
class Clinic:
    """An agent's machine with a PostgreSQL beside it."""

    place: Machine
    server: Postgres
    tools: str
    folder: Path

    @contextlib.contextmanager
    def open(
        self,
        uri: str,
        *,
        asked: Mapping[int, str],
        services: tuple[Service, ...] = (),
        further: tuple[Database, ...] = (),
    ) -> Iterator[Database]:
        """Open the gates for the database `Warehouse` at *uri*; give it as algorithms see it."""
        database = Database(label="Warehouse", type=DatabaseType.SQL, uri=uri)
        found = entrances([database, *further], taken=(free_port(),))
        addresses = Addresses(self.place.name, self.place.connection, network=self.place.facts.name)
        gates = Gates(
            GatePlan(
                agent=self.place.name, folder=self.folder, egress_port=1, entrances=found, services=services
            ),
            Surroundings(
                runs_at=addresses.of_runs,
                asked=lambda run_id, label: asked.get(run_id) == label,
                addresses_of=addresses.of_container,
                inside=tuple,
            ),
        )
        prepare_network(
            self.place.network,
            name=self.place.name,
            proxy_port=free_port(),
            gates=[entrance.port for entrance in found.values()],
        )
        try:
            gates.start(self.place.facts)
            yield seen_by_algorithms(database, found)
        finally:
            gates.stop()
            remove_firewall(self.place.name)

    def read(self, run_id: int, seen: Database) -> dict[str, Any]:
        """Read the table from inside of a run, with the real tools."""
        request = DatabaseRequest(label=seen.label)
        environment = contract.environment(RunId(run_id), requests=[request], databases=[seen], proxy_port=1)
        answer: dict[str, Any] = self.place.answer(
            run_id,
            "",
            image_id=self.tools,
            environment=environment,
            gateway_names=(seen.uri.rpartition("@")[2].partition(":")[0],),
            limits=ROOMY,
            command=("python3", "-c", READ),
        )
        return answer

    def knock(self, run_id: int, *ports: int) -> list[str]:
        """Speak to ports of the host from inside of a run, as a PostgreSQL client begins."""
        answer: list[str] = self.place.answer(run_id, f"PORTS = {ports!r}\n{KNOCK}")
        return answer


def port_of(seen: Database) -> int:
    return int(seen.uri.rpartition(":")[2].partition("/")[0])


@pytest.fixture(scope="module")
def clinic(
    session_machine: Machine,
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str], NoReturn],
) -> Iterator[Clinic]:
    tools = str(session_machine.client.images.get(tools_image(session_machine.client)).id)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres())
        except PostgresError as error:
            missing(str(error))
        yield Clinic(session_machine, server, tools, tmp_path_factory.mktemp("gates"))


@pytest.fixture(autouse=True)
def without_containers(session_machine: Machine) -> Iterator[None]:
    yield
    session_machine.clear()


def test_the_real_tools_read_the_table_under_the_name_the_owner_wrote(clinic: Clinic) -> None:
    with clinic.open(clinic.server.uri("localhost"), asked={1: "Warehouse"}) as seen:
        answer = clinic.read(1, seen)
    assert answer["found"] == ROWS
    assert answer["uri"] == clinic.server.uri("warehouse.database", port=port_of(seen))


def test_a_run_that_did_not_ask_gets_no_word_and_the_server_has_no_other_door(clinic: Clinic) -> None:
    with clinic.open(clinic.server.uri("127.0.0.1"), asked={1: "Warehouse", 2: "other"}) as seen:
        assert clinic.knock(1, port_of(seen))[0] in ANSWERS
        assert clinic.knock(2, port_of(seen)) == ["cut"]
        closed = clinic.knock(1, clinic.server.port, port_of(seen) + 1, 22)
    assert closed == ["TimeoutError"] * 3


def test_an_adopted_container_still_reaches_its_database(clinic: Clinic) -> None:
    """The gates know nothing of an earlier agent: they ask the engine who is there."""
    script = f"import time; time.sleep(2)\nPORTS = (7490,)\n{KNOCK}"
    with clinic.open(clinic.server.uri("127.0.0.1"), asked={1: "Warehouse"}) as seen:
        assert port_of(seen) == 7490
        container = clinic.place.start(1, script)
    with clinic.open(clinic.server.uri("127.0.0.1"), asked={1: "Warehouse"}):
        clinic.place.ended(container)
    assert json.loads(clinic.place.log(container))[0] in ANSWERS


SPEAK = """
import socket, time
with socket.create_server(('0.0.0.0', 5432)) as server:
    print('up', flush=True)
    while True:
        with server.accept()[0] as client:
            client.recv(8)
            client.sendall(b'N')
"""


def test_a_container_of_this_machine_is_reached_by_its_name(clinic: Clinic) -> None:
    name = f"it-omop-{os.getpid()}"
    service = Service(name="omop", container=name)
    with clinic.open("postgresql://u:p@omop/x", asked={1: "Warehouse"}, services=(service,)) as seen:
        assert seen.uri == f"postgresql://u:p@omop:{port_of(seen)}/x"
        assert clinic.knock(1, port_of(seen)) == ["cut"]
        made = clinic.place.client.containers.run(
            clinic.place.image_id, name=name, detach=True, environment={"DO": SPEAK},
            labels={"node-agent.name": clinic.place.name},
        )  # fmt: skip
        try:
            while not made.logs():
                time.sleep(0.05)
            assert clinic.knock(2, port_of(seen)) == ["cut"]
            assert clinic.knock(1, port_of(seen)) == ["N"]
        finally:
            made.remove(force=True)


# --- tunnels ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def far(missing: Callable[[str], NoReturn]) -> Iterator[Sshd]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(sshd())
        except SshdError as error:
            missing(str(error))
        yield found


def tunnel(far: Sshd, clinic: Clinic, **changes: Any) -> Tunnel:
    plain = far.tunnel(f"127.0.0.1:{clinic.server.port}") | {"key_file": far.key_file}
    return Tunnel(**(plain | changes))


def speaks(clinic: Clinic, port: int, *, within: float, run_id: int = 1) -> bool:
    """Knock until the server answers through the tunnel."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if clinic.knock(run_id, port)[0] in ANSWERS:
            return True
        time.sleep(0.2)
    return False


def test_several_tunnels_stand_side_by_side_pinned_by_key_or_fingerprint(clinic: Clinic, far: Sshd) -> None:
    services = (
        Service(name="remote", tunnel=tunnel(far, clinic)),
        Service(name="other", tunnel=tunnel(far, clinic, host_key=fingerprint_of(far.host_key))),
    )
    second = Database(label="Second", type=DatabaseType.SQL, uri="postgresql://u:p@other/x")
    asked = {1: "Warehouse", 2: "Second"}
    uri = clinic.server.uri("remote")
    with clinic.open(uri, asked=asked, services=services, further=(second,)) as seen:
        assert speaks(clinic, port_of(seen), within=15)
        assert speaks(clinic, port_of(seen) + 1, within=15, run_id=2)
        assert clinic.knock(1, port_of(seen) + 1) == ["cut"]
        assert clinic.read(1, seen)["found"] == ROWS


def test_a_tunnel_that_is_cut_is_made_again(clinic: Clinic, far: Sshd) -> None:
    services = (Service(name="remote", tunnel=tunnel(far, clinic)),)
    with clinic.open("postgresql://u:p@remote/x", asked={1: "Warehouse"}, services=services) as seen:
        assert speaks(clinic, port_of(seen), within=15)
        os.kill(int((clinic.folder / "tunnel-remote.pid").read_text()), 9)
        assert speaks(clinic, port_of(seen), within=15)


@pytest.mark.parametrize("form", ["key", "fingerprint"])
def test_a_far_machine_with_another_host_key_is_never_talked_to(
    clinic: Clinic, far: Sshd, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = new_key(tmp_path / "another")
    pinned = key if form == "key" else fingerprint_of(key)
    services = (Service(name="remote", tunnel=tunnel(far, clinic, host_key=pinned)),)
    with clinic.open("postgresql://u:p@remote/x", asked={1: "Warehouse"}, services=services) as seen:
        assert not speaks(clinic, port_of(seen), within=2)
    said = capsys.readouterr().out
    assert "tunnel_refused" in said
    assert fingerprint_of(key) in said


def test_nothing_secret_stands_in_the_list_of_processes(clinic: Clinic, far: Sshd) -> None:
    services = (Service(name="remote", tunnel=tunnel(far, clinic)),)
    with clinic.open(clinic.server.uri("remote"), asked={1: "Warehouse"}, services=services) as seen:
        assert speaks(clinic, port_of(seen), within=15)
        shown = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert clinic.server.password.encode() not in shown
    assert not (clinic.folder / "remote.sock").exists()
