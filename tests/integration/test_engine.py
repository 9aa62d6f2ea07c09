"""The Docker engine as it is: what the contract cannot ask of a double."""

import gc
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.domain.container import Mount, Phase, run_container_name
from node_agent.domain.run import ContainerId, RunId
from node_agent.domain.secret import Secret
from node_agent.errors import (
    ConfigError,
    EngineUnreachable,
    ImageMissing,
    RegistryUnreachable,
    RunClosed,
    StartFailed,
)
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.network import IsolatedNetwork
from node_agent.runtime.registries import RegistryAccounts
from node_agent.runtime.spec import LABEL_NAME
from tests.integration.machine import LIMITS, MIB, USER, Machine, small_image
from tests.lab.images import python_base
from tests.lab.registry import Login, Pushed, Registry, registry

pytestmark = pytest.mark.engine


def made_image(place: Machine, recipe: str) -> str:
    """Build an image on the base, with *recipe* added; removed with the test agent."""
    text = f"FROM {python_base(place.client)}\n{recipe}\n"
    image, _ = place.client.images.build(
        fileobj=io.BytesIO(text.encode()), labels={LABEL_NAME: place.name}, rm=True
    )
    return str(image.id)


def python(script: str) -> tuple[str, ...]:
    return ("python3", "-S", "-u", "-c", script)


# --- limits ---------------------------------------------------------------------------------------------------


def test_a_run_that_takes_too_much_memory_is_stopped_and_reported_so(place: Machine) -> None:
    report, _ = place.run(1, "b = bytearray(400 * 1024 * 1024)")
    assert report.out_of_memory
    assert report.exit_code == 137


def test_a_run_that_forks_without_end_is_held_at_its_limit(place: Machine) -> None:
    script = """
import os, signal, time, json
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
print(json.dumps(made))
os.kill(-1, signal.SIGKILL)
"""
    made = place.answer(1, script)
    assert 0 < made < LIMITS.pids


def test_a_file_cannot_grow_past_its_limit(place: Machine) -> None:
    script = """
import json
with open('/tmp/big', 'wb', buffering=0) as file:
    try:
        for _ in range(100):
            file.write(bytes(1024 * 1024))
    except OSError as error:
        print(json.dumps(error.errno))
"""
    assert place.answer(1, script) == 27


def test_the_private_tmp_is_bounded_and_programs_can_be_run_from_it(place: Machine) -> None:
    script = """
import json, os, shutil, subprocess
shutil.copy('/bin/true', '/tmp/true')
code = subprocess.call(['/tmp/true'])
errors = []
for number in range(20):
    try:
        with open(f'/tmp/{number}', 'wb', buffering=0) as file:
            while file.tell() < 2 * 1024 * 1024:
                if file.write(bytes(65536)) == 0:
                    break
    except OSError as error:
        errors.append(error.errno)
        break
print(json.dumps([code, errors, os.environ['HOME']]))
"""
    assert place.answer(1, script) == [0, [28], "/tmp"]


def test_a_run_is_nobody_and_can_write_nothing_of_the_image(place: Machine) -> None:
    script = """
import json, os
facts = {'ids': [os.getuid(), os.getgid(), sorted(os.getgroups())]}
for path in ('/etc/x', '/usr/x', '/x', '/proc/sys/kernel/hostname'):
    try:
        open(path, 'w').close()
        facts[path] = 'written'
    except OSError:
        pass
status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)
facts['caps'] = {int(status[name], 16) for name in ('CapEff', 'CapPrm', 'CapBnd', 'CapInh', 'CapAmb')} == {0}
facts['privs'] = status['NoNewPrivs'].strip()
facts['seccomp'] = status['Seccomp'].strip()
print(json.dumps(facts))
"""
    facts = place.answer(1, script, groups=(4321,))
    assert facts == {"ids": [*USER, [4321, USER[1]]], "caps": True, "privs": "1", "seccomp": "2"}


def test_a_program_of_the_image_with_the_setuid_bit_gains_nothing(place: Machine) -> None:
    image = made_image(place, "RUN cp /usr/bin/id /usr/bin/rootly && chmod 4755 /usr/bin/rootly")
    container = place.start(1, image_id=image, command=("/usr/bin/rootly", "-u"))
    place.ended(container)
    assert place.log(container).strip() == str(USER[0])


def test_a_database_can_be_read_and_not_written(place: Machine, tmp_path: Path) -> None:
    database = tmp_path / "patients.csv"
    database.write_text("age\n40\n")
    database.chmod(0o666)
    tmp_path.chmod(0o755)
    script = """
import json
said = [open('/mnt/default.csv').read()]
for mode in ('a', 'w', 'r+'):
    try:
        open('/mnt/default.csv', mode)
        said.append('opened')
    except OSError as error:
        said.append(error.errno)
print(json.dumps(said))
"""
    mounts = (Mount(str(database), "/mnt/default.csv", read_only=True),)
    assert place.answer(1, script, mounts=mounts) == ["age\n40\n", 30, 30, 30]


def test_two_runs_see_nothing_of_each_other(place: Machine, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        os.chown(folder, *USER)
        (folder / f"input-{folder.name}").write_text("private")
    other = place.start(
        2, "import time; time.sleep(60)", mounts=(Mount(str(folders[1]), "/mnt/data", read_only=False),)
    )
    script = """
import json, os
seen = [os.path.join(top, name) for top, _, names in os.walk('/mnt') for name in names]
processes = [entry for entry in os.listdir('/proc') if entry.isdigit()]
print(json.dumps([seen, processes]))
"""
    mounts = (Mount(str(folders[0]), "/mnt/data", read_only=False),)
    assert place.answer(1, script, mounts=mounts) == [["/mnt/data/input-one"], ["1"]]
    place.engine.remove(other)


def test_a_volume_of_an_image_is_bounded_memory_and_not_a_volume_on_disk(place: Machine) -> None:
    image = made_image(place, "VOLUME /var/cache/algorithm /srv/store")
    script = """
import json, os
size = os.statvfs('/srv/store').f_blocks * os.statvfs('/srv/store').f_frsize
open('/srv/store/x', 'w').close()
open('/var/cache/algorithm/x', 'w').close()
print(json.dumps(size))
"""
    container = place.start(1, image_id=image, command=python(script))
    assert place.ended(container).exit_code == 0
    assert json.loads(place.log(container)) == LIMITS.tmp_size
    mounts = place.client.api.inspect_container(container)["Mounts"]
    assert {mount["Type"] for mount in mounts} == {"tmpfs"}


def test_a_relaxed_image_keeps_its_user_and_may_write_its_root(place: Machine) -> None:
    image = made_image(place, "RUN useradd --uid 4711 own && chown own /opt\nUSER own")
    script = "import json, os; open('/opt/x', 'w').close(); print(json.dumps(os.getuid()))"
    changes = {"image_id": image, "user": None, "writable_root": True, "command": python(script)}
    assert place.answer(1, "", **changes) == 4711


def test_a_missing_folder_to_mount_fails_the_start_and_is_not_created(place: Machine, tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    with pytest.raises(StartFailed, match="gone"):
        place.start(1, mounts=(Mount(str(missing), "/mnt/data", read_only=False),))
    assert not missing.exists()


def test_the_words_of_a_failed_start_are_about_the_program(place: Machine) -> None:
    with pytest.raises(StartFailed) as caught:
        place.start(1, command=("/no/such/program",))
    assert "/no/such/program" in caught.value.message
    assert "OCI runtime" not in caught.value.message


# --- whose container is it ------------------------------------------------------------------------------------


def test_a_container_of_somebody_else_with_our_name_is_not_touched(place: Machine) -> None:
    name = run_container_name(place.name, RunId(1))
    stranger = place.client.containers.create(place.image_id, name=name)
    try:
        with pytest.raises(StartFailed, match="not ours"):
            place.engine.ensure_container(place.spec(1))
        assert place.engine.find_container(RunId(1)) is None
        assert place.engine.list_containers() == ()
        stranger.reload()
        assert stranger.status == "created"
    finally:
        stranger.remove()


def test_a_container_is_adopted_by_the_next_agent_of_the_same_name(place: Machine) -> None:
    container = place.start(1, "import time; time.sleep(60)")
    successor = DockerEngine(
        place.name, EngineConnection(place.host), IsolatedNetwork(place.name, place.connection)
    )
    assert successor.find_container(RunId(1)) == container
    assert successor.ensure_container(place.spec(1, "import time; time.sleep(60)")) == container
    report = successor.inspect(container)
    assert report is not None
    assert report.phase is Phase.RUNNING


def test_containers_of_an_agent_with_a_similar_name_are_not_listed(place: Machine) -> None:
    similar = DockerEngine(place.name + "-b", place.connection, place.network)
    place.engine.ensure_container(place.spec(1))
    assert similar.list_containers() == ()


def test_a_container_that_is_softer_than_asked_is_made_anew_before_it_ever_starts(place: Machine) -> None:
    place.client.containers.create(
        place.image_id,
        name=run_container_name(place.name, RunId(1)),
        labels={LABEL_NAME: place.name, "node-agent.run": "1"},
        environment={"DO": ""},
    )
    container = place.engine.ensure_container(place.spec(1))
    made = place.client.api.inspect_container(container)
    assert made["HostConfig"]["CapDrop"] == ["ALL"]
    assert list(made["NetworkSettings"]["Networks"]) == [place.facts.name]


def test_the_end_while_nobody_watched_is_still_reported(place: Machine) -> None:
    container = place.start(1, "raise SystemExit(5)")
    place.ended(container)
    later = DockerEngine(place.name, EngineConnection(place.host), place.network)
    (report,) = later.list_containers()
    assert (report.run_id, report.exit_code) == (1, 5)


# --- logs -----------------------------------------------------------------------------------------------------


def test_both_streams_are_in_the_log_in_order(place: Machine) -> None:
    script = """
import os, time
for number in range(4):
    os.write(1 + number % 2, b'line %d \\xc3\\xa9\\n' % number)
    time.sleep(0.05)
"""
    container = place.start(1, script)
    place.ended(container)
    into = io.BytesIO()
    place.engine.copy_log(container, into, limit=MIB, mask=iter)
    assert into.getvalue() == b"".join(b"line %d \xc3\xa9\n" % number for number in range(4))


def test_a_huge_log_is_cut_to_its_limit(place: Machine) -> None:
    script = "import sys; sys.stdout.write('begin\\n' + ('x' * 999 + '\\n') * 5000 + 'the last words\\n')"
    container = place.start(1, script)
    place.ended(container)
    log = place.log(container, limit=100_000)
    assert len(log.encode()) <= 100_000
    assert log.startswith("begin\n")
    assert log.endswith("the last words\n")


# --- pulling --------------------------------------------------------------------------------------------------


@pytest.fixture
def shop() -> Iterator[Registry]:
    with registry() as found:
        yield found


def push(place: Machine, shop: Registry, name: str, content: str = "first") -> Pushed:
    return shop.push(place.client, small_image(place.client, place.name, content), f"{name}-{os.getpid()}:1")


def pull(engine: DockerEngine, reference: str) -> str | None:
    return engine.pull_image(reference, wanted=lambda: True, progress=lambda _: None).digest


def test_a_tag_that_moved_is_pulled_anew_and_pinned_to_its_new_content(
    place: Machine, shop: Registry
) -> None:
    first = push(place, shop, "moving")
    assert pull(place.engine, first.reference) == first.digest
    second = push(place, shop, "moving", "second")
    assert second.digest != first.digest
    assert place.engine.registry_digest(first.reference) == second.digest
    assert pull(place.engine, first.reference) == second.digest
    for reference in (first.reference, first.pinned):
        place.client.images.remove(reference, force=True)


def test_a_digest_nobody_has_is_missing(place: Machine, shop: Registry) -> None:
    pushed = push(place, shop, "known")
    with pytest.raises(ImageMissing):
        pull(place.engine, f"{pushed.reference.rpartition(':')[0]}@sha256:{'0' * 64}")


def test_a_registry_that_is_away_is_tried_again_later(place: Machine) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reference = f"127.0.0.1:{unused.getsockname()[1]}/x:1"
        with pytest.raises(RegistryUnreachable):
            pull(place.engine, reference)
        with pytest.raises(RegistryUnreachable):
            place.engine.registry_digest(reference)


def test_an_image_behind_a_login_needs_the_login(place: Machine) -> None:
    login = Login.random()

    class Configured:
        username = login.username
        password = Secret(login.password)

        def __init__(self, host: str) -> None:
            self.host = host

    with registry(login) as shop:
        pushed = push(place, shop, "private")
        with pytest.raises(ImageMissing, match="login"):
            pull(place.engine, pushed.reference)
        knowing = DockerEngine(
            place.name,
            place.connection,
            place.network,
            accounts=RegistryAccounts([Configured(shop.host)]),
        )
        assert knowing.registry_digest(pushed.reference) == pushed.digest
        assert pull(knowing, pushed.reference) == pushed.digest
        place.client.images.remove(pushed.reference)


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_pull_from_a_registry_that_hangs_can_be_called_off(place: Machine, silent_registry: str) -> None:
    unwanted = threading.Event()
    timer = threading.Timer(1.0, unwanted.set)
    timer.start()
    with pytest.raises(RunClosed):
        place.engine.pull_image(
            f"{silent_registry}/x:1", wanted=lambda: not unwanted.is_set(), progress=lambda _: None
        )
    timer.join()


def test_a_pull_without_progress_is_given_up(place: Machine, silent_registry: str) -> None:
    impatient = DockerEngine(place.name, place.connection, place.network, pull_patience=1.0)
    with pytest.raises(RegistryUnreachable):
        pull(impatient, f"{silent_registry}/x:1")


# --- the engine and the network -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_engine_that_is_away_says_where_it_was_looked_for(tmp_path: Path) -> None:
    connection = EngineConnection(f"unix://{tmp_path}/no.sock")
    engine = DockerEngine("alpha", connection, IsolatedNetwork("alpha", connection))
    with pytest.raises(EngineUnreachable, match=r"no\.sock"):
        engine.list_containers()
    with pytest.raises(EngineUnreachable):
        engine.events()
    # The library leaves its socket to the collector when a connection is refused.
    gc.collect()


def test_the_network_is_made_once_and_adopted(place: Machine) -> None:
    assert place.facts == IsolatedNetwork(place.name, EngineConnection(place.host)).ensure_network()


def test_a_network_that_is_not_isolated_is_refused_with_the_command_that_removes_it(place: Machine) -> None:
    name = f"{place.name}-open"
    made = place.client.networks.create(f"node-agent-{name}", labels={LABEL_NAME: name})
    try:
        with pytest.raises(ConfigError, match="docker network rm") as caught:
            IsolatedNetwork(name, place.connection).ensure_network()
        assert "it is not internal" in caught.value.faults
    finally:
        made.remove()


def test_addresses_that_are_taken_are_refused_with_the_setting_that_chooses_others(place: Machine) -> None:
    taken = IsolatedNetwork(f"{place.name}-twin", place.connection, subnet=place.facts.subnet)
    with pytest.raises(ConfigError, match=r"network\.subnet"):
        taken.ensure_network()


def test_a_network_of_somebody_else_is_not_removed(place: Machine) -> None:
    name = f"{place.name}-theirs"
    made = place.client.networks.create(f"node-agent-{name}")
    try:
        IsolatedNetwork(name, place.connection).remove()
        made.reload()
    finally:
        made.remove()


def test_a_container_that_vanished_has_no_log(place: Machine) -> None:
    into = io.BytesIO()
    place.engine.copy_log(ContainerId("0" * 64), into, limit=100, mask=iter)
    assert into.getvalue() == b""


# --- logs while they are written, and GPUs ----------------------------------------------------------------------


def test_a_line_is_followed_while_the_container_runs_and_a_reader_may_leave(place: Machine) -> None:
    container = place.start(70, "import time; print('now'); time.sleep(300)")
    following = place.engine.follow_log(container, since="")
    assert next(following).content == b"now\n"
    following.close()
    report = place.engine.inspect(container)
    assert report is not None
    assert report.phase is Phase.RUNNING


def test_a_very_long_line_is_followed_whole(place: Machine) -> None:
    container = place.start(71, "print('x' * 200_000); print('end')")
    entries = list(place.engine.follow_log(container, since=""))
    assert b"".join(entry.content for entry in entries) == b"x" * 200_000 + b"\nend\n"


def test_an_engine_without_a_gpu_says_so_when_one_is_promised(place: Machine) -> None:
    made = place.engine.ensure_container(place.spec(72, gpus=True))
    with pytest.raises(StartFailed, match=r"policy\.gpu.*its engine has none"):
        place.engine.ensure_started(made)


def test_hosts_of_the_owner_are_known_inside(place: Machine) -> None:
    do = "import socket, json; print(json.dumps(socket.gethostbyname('db.example.org')))"
    assert place.answer(73, do, hosts={"db.example.org": "192.0.2.7"}) == "192.0.2.7"
