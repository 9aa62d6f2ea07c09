"""An agent whose owner opened one place outside and one database server, seen by algorithms of the real client."""

import json
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

import pytest

from tests.interop.stage import SMALL_LIMITS, Stage, eventually
from tests.lab.agents import AgentProcess
from tests.lab.outside import OTHER_PORT, PORT, Outside, OutsideError, outside
from tests.lab.postgres import Postgres, PostgresError, postgres
from tests.lab.registry import registry

pytestmark = pytest.mark.interop

LOOK = """
    import http.client

    def opened(url):
        try:
            with urllib.request.urlopen(url, timeout=8) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code
        except OSError as error:
            return type(error).__name__

    def tunnelled(host, port):
        proxy = http.client.HTTPConnection('proxyserver', WHERE['egress'], timeout=8)
        proxy.set_tunnel(host, port)
        try:
            proxy.request('GET', '/')
            return proxy.getresponse().read().decode()
        except OSError as error:
            return str(error)

    def directly(host, port):
        try:
            socket.create_connection((host, port), timeout=0.4).close()
            return 'open'
        except ConnectionRefusedError:
            return 'refused'
        except OSError:
            return 'closed'

    gateway = socket.gethostbyname('proxyserver')
    places = WHERE['shut'] + [[gateway, port] for port in WHERE['ports']] + [[gateway, WHERE['egress']]]
    write({
        'allowed': opened(WHERE['allowed']),
        'through connect': tunnelled(*WHERE['place']),
        'shut through the proxy': [opened(f'http://{host}:{port}/') for host, port in places],
        'shut through connect': [tunnelled(host, port) for host, port in places],
        'direct': [directly(host, port) for host, port in WHERE['shut'] + [WHERE['place']]],
        'host directly': [directly(gateway, port) for port in WHERE['ports']],
        'name': directly('example.org', 80),
        'server': call('GET', '/version')[0],
        'variables': [os.environ[name] for name in ('http_proxy', 'NO_PROXY')],
        'database': [name for name in os.environ if 'WAREHOUSE' in name],
    })
"""


@dataclass(frozen=True)
class Opened:
    agent: AgentProcess
    far: Outside
    server: Postgres


@pytest.fixture(scope="module")
def opened(real: Stage, missing: Callable[[str], NoReturn]) -> Iterator[Opened]:
    if os.geteuid() != 0:
        missing("root, for a place outside")
    with ExitStack() as stack:
        try:
            far = stack.enter_context(outside({}))
            server = stack.enter_context(postgres())
        except (OutsideError, PostgresError) as error:
            missing(str(error))
        settings = {
            "limits": SMALL_LIMITS | {"memory": "512MiB"},
            "egress": {"allow": [f"{far.second}:{PORT}"]},
            "databases": [{"label": "warehouse", "type": "sql", "uri": server.uri("localhost")}],
        }
        yield Opened(stack.enter_context(real.agent(settings=settings)), far, server)


def test_the_one_allowed_place_answers_and_nothing_else_does(real: Stage, opened: Opened) -> None:
    far = opened.far
    with registry() as shop:
        where = {
            "egress": 7482,
            "allowed": f"http://{far.second}:{PORT}/",
            "place": [far.second, PORT],
            "shut": [[far.second, OTHER_PORT], [far.address, PORT], [far.third, PORT]],
            "ports": [int(shop.host.rpartition(":")[2]), int(real.server.root.rpartition(":")[2]), 22, 53],
        }
        script = f"WHERE = json.loads({json.dumps(where)!r})\n" + textwrap.dedent(LOOK)
        found = real.submit(script).result()
    print(json.dumps(found, indent=1))
    assert found["allowed"] == found["through connect"] == "a page outside"
    assert set(found["shut through the proxy"]) == {403}
    assert {answer.partition("403")[1] for answer in found["shut through connect"]} == {"403"}
    assert set(found["direct"]) == {"closed"}
    assert set(found["host directly"]) == {"closed"}
    assert found["name"] == "closed"
    assert found["server"] == 200
    assert found["variables"] == ["http://proxyserver:7482", "localhost,127.0.0.1,proxyserver"]
    assert found["database"] == []


def test_the_official_tools_read_the_database_server(real: Stage, opened: Opened) -> None:
    databases = [{"label": "warehouse", "query": "SELECT name, age FROM patients"}]
    task = real.submit_method(real.average, "partial_average", databases=databases, column="age")
    assert task.result() == {"sum": 84.0, "count": 2}


def test_a_run_taken_up_after_a_crash_still_has_its_way_to_the_database(real: Stage, opened: Opened) -> None:
    script = """
        import os
        host, _, rest = env('WAREHOUSE_DATABASE_URI').rpartition('@')[2].partition(':')
        door = (host, int(rest.partition('/')[0]))
        def speaks():
            with socket.create_connection(door, timeout=10) as server:
                server.sendall(bytes.fromhex('0000000804d2162f'))
                return server.recv(1).decode()
        before = speaks()
        print('spoke', flush=True)
        while not os.path.exists('/mnt/tmp/go'):
            time.sleep(0.1)
        after = ''
        for _ in range(40):
            try:
                after = speaks()
            except OSError:
                pass
            if after:
                break
            time.sleep(0.25)
        write([before, after])
    """
    task = real.submit(script, databases=("warehouse",))
    task.reached("active")
    (container,) = opened.agent.containers(everything=False)
    eventually(lambda: b"spoke" in container.logs(), within=30, what="the first word of the server")
    opened.agent.kill()
    opened.agent.start()
    container.reload()
    shared = next(m["Source"] for m in container.attrs["Mounts"] if m["Destination"] == "/mnt/tmp")
    with open(f"{shared}/go", "w"):  # noqa: PTH123 - one line
        pass
    assert set(task.result()) <= {"N", "S"}


def test_check_tells_that_the_ways_are_open(opened: Opened) -> None:
    said = opened.agent.command("check", "--json", "--offline").stdout
    found = {check["name"]: check["verdict"] for check in json.loads(said)["checks"]}
    assert found["egress"] == found["way to warehouse"] == "ok"
