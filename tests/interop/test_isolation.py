"""Two runs at the same time, one of them hostile: it finds nothing of the other, and nobody but the proxy."""

import json
import socket
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask, eventually
from tests.lab.agents import AgentProcess
from tests.lab.registry import registry

pytestmark = pytest.mark.interop

VICTIM = """
    os.makedirs('/mnt/tmp/private', exist_ok=True)
    open('/mnt/tmp/private/secret', 'w').write('SECRET')
    open('/tmp/secret', 'w').write('SECRET')
    with socket.create_server(('0.0.0.0', 5555)) as listener:
        print('listening', flush=True)
        time.sleep(60)
"""

SNOOP = """
    def find(root):
        return sorted(os.path.join(at, name) for at, _, names in os.walk(root) for name in names)

    def attempt(action):
        try:
            return repr(action())
        except OSError as error:
            return type(error).__name__

    other = WHERE['other_run']
    write({
        'data': find('/mnt/data'),
        'tmp': find('/mnt/tmp') + find('/tmp'),
        'mounts': sorted(os.listdir('/mnt')),
        'other token': attempt(lambda: open(f'/mnt/data/task-{other:09d}/token').read()),
        'parent': attempt(lambda: os.listdir('/mnt/data/../../' + WHERE['state_dir'])),
        'processes': [name for name in os.listdir('/proc') if name.isdigit()],
        'other label': [name for name in os.environ if 'OTHER' in name],
        'labels': env('DB_LABELS'),
        'write database': attempt(lambda: open(env('DEFAULT_DATABASE_URI'), 'a')),
        'remove database': attempt(lambda: os.remove(env('DEFAULT_DATABASE_URI'))),
        'chmod database': attempt(lambda: os.chmod(env('DEFAULT_DATABASE_URI'), 0o777)),
        'root': attempt(lambda: open('/new', 'w')),
        'device': attempt(lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))),
        'user': [os.getuid(), os.getgid()],
        'capabilities': [line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')],
        'no new privileges': [l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')],
    })
"""

REACH = """
    from concurrent.futures import ThreadPoolExecutor

    def open_to(address):
        try:
            with socket.create_connection(tuple(address), timeout=1.5):
                return 'open'
        except OSError:
            return 'closed'

    def name_of(host):
        try:
            return socket.gethostbyname(host)
        except OSError:
            return 'unknown'

    def asks_directly(server):
        query = bytes.fromhex('abcd01000001000000000000') + b'\\x06canary\\x07example\\x00\\x00\\x01\\x00\\x01'
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                asking.settimeout(1.5)
                asking.sendto(query, (server, 53))
                # newer engines refuse by themselves (SERVFAIL) where older ones keep silent: what counts is an address
                return int.from_bytes(asking.recv(512)[6:8], 'big') > 0
            except OSError:
                return False

    gateway = socket.gethostbyname('proxyserver')
    places = WHERE['places']
    with ThreadPoolExecutor(20) as at_once:
        write({
            'places': dict(zip(places, at_once.map(open_to, places.values()))),
            'gateway': list(at_once.map(open_to, [[gateway, port] for port in WHERE['ports']])),
            'proxy': open_to([gateway, int(env('PORT'))]),
            'names': list(at_once.map(name_of, ['canary.example.org', 'localhost.example', 'debian.org'])),
            'name servers': list(at_once.map(asks_directly, WHERE['name_servers'])),
        })
"""

CALLS = """
    token = open(env('TOKEN_FILE')).read()
    write({
        'own token': call('GET', '/organization?page=1', token)[0],
        'no token': call('GET', '/organization?page=1'),
        'user token': call('GET', '/organization?page=1', WHERE['user_token']),
        'forged token': call('GET', '/organization?page=1', token[:-4] + 'AAAA')[0],
        'ended run': call('GET', '/organization?page=1', WHERE['old_token']),
        'login': call('POST', '/token/node', token, {'api_key': 'x'}),
        'users': call('GET', '/user', token),
        'patch run': call('PATCH', '/run/1', token, {'status': 'completed'}),
        'kill': call('POST', '/kill/task', token, {'id': 1}),
        'climb': call('GET', '/run/../user', token)[0],
        'encoded climb': call('GET', '/run/%2e%2e/user', token)[0],
        'unknown run': call('GET', '/run/999999', token),
    })
"""


@dataclass(frozen=True)
class Siege:
    agent: AgentProcess
    victim: SubmittedTask
    victim_address: str
    database: Path


def with_places(script: str, **where: Any) -> str:
    return f"WHERE = json.loads({json.dumps(where)!r})\n" + textwrap.dedent(script)


@pytest.fixture(scope="module")
def siege(real: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("owner")
    for name in ("patients", "other"):
        (folder / f"{name}.csv").write_text("age\n40\n")
    databases = {"default": folder / "patients.csv", "other": folder / "other.csv"}
    settings = {"limits": SMALL_LIMITS | {"run_time": "90s"}}
    with real.agent(databases=databases, settings=settings) as agent:
        victim = real.submit(VICTIM, databases=("other",))
        victim.reached("active")
        (container,) = agent.containers()
        eventually(lambda: b"listening" in container.logs(), within=20, what="the victim")
        yield Siege(agent, victim, agent.address_of(container), folder / "patients.csv")
        victim.kill()


def test_a_run_finds_nothing_of_another_run_nor_of_the_machine(real: Stage, siege: Siege) -> None:
    snoop = with_places(SNOOP, other_run=siege.victim.run["id"], state_dir=str(siege.agent.state_dir))
    task = real.submit(snoop, databases=("default",))
    found = task.result()
    print(json.dumps(found, indent=1))
    own = f"/mnt/data/task-{task.run['id']:09d}"
    assert found["data"] == [f"{own}/input", f"{own}/output", f"{own}/token"]
    assert found["tmp"] == []
    assert found["mounts"] == ["data", "default.csv", "tmp"]
    assert found["other token"] == found["parent"] == "FileNotFoundError"
    assert len(found["processes"]) == 1
    assert found["other label"] == []
    assert found["labels"] == "default"
    assert {found["write database"], found["remove database"], found["chmod database"]} <= {
        "OSError",
        "PermissionError",
    }
    assert found["root"] == "OSError"
    assert found["device"] == "PermissionError"
    assert 0 not in found["user"]
    assert set(found["capabilities"]) == {"0000000000000000"}
    assert found["no new privileges"] == ["1"]
    assert siege.database.read_text() == "age\n40\n"


def test_a_run_reaches_the_proxy_and_nobody_else(real: Stage, siege: Siege) -> None:
    with registry() as images, listener_everywhere() as port:
        server_port = int(real.server.root.rpartition(":")[2])
        registry_port = int(images.host.rpartition(":")[2])
        places = {
            "victim": [siege.victim_address, 5555],
            "outside": ["1.1.1.1", 443],
            **{f"host at {address}": [address, port] for address in host_addresses()},
        }
        where = {
            "places": places,
            "ports": [port, server_port, registry_port, 22, 53],
            "name_servers": [*name_servers(), "127.0.0.11", *host_addresses()],
        }
        found = real.submit(with_places(REACH, **where)).result()
    print(json.dumps(found, indent=1))
    assert set(found["places"].values()) == {"closed"}
    assert set(found["gateway"]) == {"closed"}
    assert found["proxy"] == "open"
    assert set(found["names"]) == {"unknown"}
    assert not any(found["name servers"])


class listener_everywhere:  # noqa: N801 - read as a word of the test
    """A service of the host that listens on every address."""

    def __enter__(self) -> int:
        self._listener = socket.create_server(("0.0.0.0", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                self._listener.accept()[0].close()
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def host_addresses() -> list[str]:
    found = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing: only the route is looked up
            found.add(asking.getsockname()[0])
        except OSError:
            pass
    return [str(address) for address in found if not str(address).startswith("127.")] + ["172.17.0.1"]


def name_servers() -> list[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("nameserver")]


def test_the_proxy_serves_only_living_runs_and_only_their_calls(real: Stage, siege: Siege) -> None:
    old_token = real.submit("write(open(env('TOKEN_FILE')).read())").result()
    script = with_places(CALLS, user_token=real.user_token(), old_token=old_token)
    found = real.submit(script).result()
    print(json.dumps({name: found[name] for name in found}, indent=1))
    assert found["own token"] == 200
    assert found["forged token"] == 401
    for name in ("no token", "user token", "ended run"):
        assert found[name][0] == 401
        assert "token" in found[name][1]["msg"].lower()
    for name in ("login", "users", "patch run", "kill"):
        assert found[name][0] in {404, 405}
        assert "algorithms on this node" in found[name][1]["msg"]
    assert {found["climb"], found["encoded climb"]} <= {400, 404}
    assert found["unknown run"][0] == 404
    assert "not found" in found["unknown run"][1]["msg"]
