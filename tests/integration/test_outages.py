"""Server, name service, engine and registry go away in many ways, and come back: nothing is lost, soon all is well.

One agent stands behind a road to each of them. Each outage begins while an algorithm is at work, lasts until the agent owes
its report and knows that something is wrong, and ends; then the time until everything is well again is measured. The bounds
here are generous, since the machine may be busy; the times are printed.
"""

import contextlib
import io
import os
import secrets
import ssl
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from node_agent.domain.container import PullProgress
from node_agent.errors import RegistryUnreachable
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.network import IsolatedNetwork
from node_agent.sandbox.researcher import Order, Researcher
from node_agent.sandbox.server import Fault
from node_agent.store import presence
from node_agent.store.journal import read_history
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.counting import ENDED_RUNS, STARTED_ONCE, counted, counting_image, nothing_is_left
from tests.lab.engine import EngineError, engine
from tests.lab.registry import registry
from tests.lab.road import LOOPBACK, Road
from tests.lab.sandbox import SandboxLab
from tests.parts import or_missing
from tests.ports import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SERVER_NAME = "coordinator.node-agent.test"
SOON = 40.0
"""Seconds until a test gives up; on an idle machine all is well within five."""
NOTICED = 90.0
FOREVER = 1_000_000
FLAPS = 5
METHODS = ("GET", "POST", "PATCH")
MIB = 1 << 20


# --- the site -------------------------------------------------------------------------------------------------


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    others = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
        **others,
    )


class Certificates:
    """A private authority, and certificates of the server that are good or have expired."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private authority")])
        self._folder = folder
        self.file = folder / "authority.pem"
        authority = self._signed(self._name, self._key.public_key(), days=2, is_authority=True)
        self.file.write_bytes(authority.public_bytes(Encoding.PEM))

    def context(self, name: str, *, days: float) -> ssl.SSLContext:
        """Make a certificate that ends in so many days; negative: that has ended."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._signed(subject, key.public_key(), days=days, is_authority=False)
        chain = self._folder / f"{secrets.token_hex(4)}.pem"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain.write_bytes(made.public_bytes(Encoding.PEM) + secret)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: float, is_authority: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        common = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=9))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(str(common))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            # what Python 3.13 and newer want of an authority and of what it signed
            .add_extension(_usage(signs_certificates=is_authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )


@dataclass(kw_only=True)
class Site:
    """A server, an engine, and an agent that reaches both by roads that can be closed."""

    lab: SandboxLab
    server_road: Road
    engine_road: Road
    registry_road: Road
    hosts: Path
    certificates: Certificates
    client: docker.DockerClient
    image: str
    agent: AgentProcess
    researcher: Researcher
    started: dict[str, object] = field(default_factory=dict)

    def resolve(self, *names: str) -> None:
        """Let the agent's machine know these names and no others."""
        self.hosts.write_text("".join(f"{LOOPBACK} {name}\n" for name in ("localhost", *names)))

    def send(self, seconds: float = 0.5, image: str = "") -> int:
        """Send a task and give its number, which is that of its run."""
        return self.researcher.send(
            Order(
                image=image or self.image,
                method="count",
                organizations=(self.lab.organization_ids["alpha"],),
                collaboration_id=self.lab.collaboration_id,
                kwargs={"seconds": seconds},
            )
        )

    def row(self, run_id: int) -> dict[str, object]:
        """Give a run as the server has it."""
        rows = self.lab.server.database.rows(ENDED_RUNS, self.lab.node_ids["alpha"])
        return next(dict(row) for row in rows if row["id"] == run_id)

    def state(self, run_id: int) -> str:
        """Give a run's state in the agent's journal."""
        rows = read_history(self.agent.state_dir, 1000)
        return next((str(row["state"]) for row in rows if row["run_id"] == run_id), "")

    def said(self) -> presence.Presence | None:
        """Give what the agent last said of itself."""
        return presence.read(self.agent.state_dir).presence

    def knows(self, trouble: str) -> bool:
        """Tell whether the agent has noticed."""
        said = self.said()
        return said is not None and bool(getattr(said, f"{trouble}_problem"))

    def is_well(self) -> bool:
        """Tell whether the agent says that nothing is wrong."""
        said = self.said()
        return said is not None and said.online and not said.server_problem and not said.engine_problem

    def events(self) -> list[str]:
        return [str(line["event"]) for line in self.agent.log_lines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("outages")
    with contextlib.ExitStack() as stack:
        with or_missing(EngineError):
            found = stack.enter_context(engine())
        client = stack.enter_context(contextlib.closing(found.client()))
        lab = counted(stack.enter_context(SandboxLab(("alpha",))))
        port = int(lab.root.rpartition(":")[2])
        certificates = Certificates(folder)
        server_road = stack.enter_context(Road((LOOPBACK, port)))
        server_road.context = certificates.context(SERVER_NAME, days=-1)
        socket_file = found.docker_host.removeprefix("unix://")
        engine_road = stack.enter_context(Road(socket_file, at=folder / "engine.sock"))
        # nobody is there yet
        registry_road = stack.enter_context(Road((LOOPBACK, free_port())))
        agent = AgentProcess(
            server_url=f"https://{SERVER_NAME}:{server_road.port}/api",
            api_key=lab.api_keys["alpha"],
            settings={
                "server": {"ca_bundle": str(certificates.file)},
                "limits": {"concurrent_runs": 4, "cpus": 1, "memory": "64MiB"},
                "policy": {"algorithms": ["node-agent-lab/*", f"{LOOPBACK}:{registry_road.port}/*"]},
            },
        )
        stack.callback(agent.clean_up)
        agent.environment["DOCKER_HOST"] = f"unix://{folder / 'engine.sock'}"
        # a name service of its own: a file that changes, and no server
        nobody = folder / "resolv.conf"
        nobody.write_text(f"nameserver {LOOPBACK}\noptions timeout:1 attempts:1\n")
        hosts = folder / "hosts"
        mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {nobody} /etc/resolv.conf"
        agent.before = ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")
        made = Site(
            lab=lab,
            server_road=server_road,
            engine_road=engine_road,
            registry_road=registry_road,
            hosts=hosts,
            certificates=certificates,
            client=client,
            image=counting_image(client),
            agent=agent,
            researcher=Researcher.at(lab.url, username="alpha", password=lab.server.passwords["alpha"]),
        )
        made.resolve(SERVER_NAME)
        agent.launch()
        stack.callback(agent.stop)
        made.started["lost"] = agent.wait_for("server_lost", within=NOTICED)
        made.server_road.context = certificates.context(SERVER_NAME, days=1)
        began = time.monotonic()
        agent.wait_for("server_back", within=NOTICED)
        made.started["seconds"] = time.monotonic() - began
        agent.wait_until_ready()
        yield made


@pytest.fixture
def well(site: Site) -> Iterator[Site]:
    """The site, everything well; and well again afterwards, whatever the test did."""
    eventually(site.is_well, within=SOON, what="all well")
    yield site
    site.lab.server.faults.clear()
    site.server_road.speak()
    site.resolve(SERVER_NAME)


# --- outages of the server ------------------------------------------------------------------------------------


def everything(site: Site, fault: Fault) -> None:
    """Let every call go wrong."""
    for method in METHODS:
        site.lab.server.faults.add(method, "", fault, times=FOREVER)


def gone(site: Site) -> Callable[[], None]:
    site.server_road.close()
    return site.server_road.open


def silent(site: Site) -> Callable[[], None]:
    """First gone, since that is noticed at once; then there, and silent."""
    site.server_road.close()
    eventually(lambda: site.knows("server"), within=NOTICED, what="the loss")
    site.server_road.fall_silent()
    site.server_road.open()
    before = site.server_road.visitors
    eventually(lambda: site.server_road.visitors > before + 1, within=SOON, what="tries")
    return site.server_road.speak


def nameless(site: Site) -> Callable[[], None]:
    site.resolve()
    site.server_road.close()
    site.server_road.open()
    return lambda: site.resolve(SERVER_NAME)


def expired(site: Site) -> Callable[[], None]:
    site.server_road.context = site.certificates.context(SERVER_NAME, days=-1)
    site.server_road.close()
    site.server_road.open()

    def renew() -> None:
        site.server_road.context = site.certificates.context(SERVER_NAME, days=1)

    return renew


def faulty(fault: Fault) -> Callable[[Site], Callable[[], None]]:
    def begin(site: Site) -> Callable[[], None]:
        everything(site, fault)
        return site.lab.server.faults.clear

    return begin


OUTAGES: dict[str, Callable[[Site], Callable[[], None]]] = {
    "gone": gone,
    "silent": silent,
    "its name gone": nameless,
    "its certificate expired": expired,
    "a login page with 200": faulty(Fault(status=200, body="<html>Log in to the network</html>")),
    "half answers": faulty(Fault(truncate=True)),
    "busy for two seconds": faulty(Fault(status=503, headers={"Retry-After": "2"})),
}


def test_a_certificate_that_expired_is_named_and_one_that_is_renewed_is_found(site: Site) -> None:
    print(f"\ncertificate renewed: server back after {site.started['seconds']:.1f} s")
    lost = site.started["lost"]
    assert isinstance(lost, dict)
    assert "certificate has expired" in lost["reason"]


@pytest.mark.parametrize("outage", OUTAGES)
def test_what_ends_while_the_server_is_away_is_reported_once_when_it_is_back(well: Site, outage: str) -> None:
    run = well.send()
    eventually(lambda: well.row(run)["status"] == "active", within=SOON, what="an algorithm at work")
    mend = OUTAGES[outage](well)
    eventually(lambda: well.state(run) == "finished", within=SOON, what="a report that is owed")
    eventually(lambda: well.knows("server"), within=NOTICED, what="the agent's knowing")
    # an answer that got lost on the way may have been a consent
    assert well.row(run)["accepted"] in ({0, 1} if outage == "half answers" else {0})
    said = well.said()
    began = time.monotonic()
    mend()
    eventually(lambda: well.row(run)["accepted"], within=SOON, what="the report")
    reported = time.monotonic() - began
    eventually(well.is_well, within=SOON, what="all well")
    print(f"\n{outage}: reported after {reported:.1f} s, all well after {time.monotonic() - began:.1f} s")
    print(f"  it said: {said.server_problem if said else ''}")
    found = well.row(run)
    assert (found["status"], found["result"], found["accepted"]) == ("completed", STARTED_ONCE, 1)
    eventually(lambda: nothing_is_left(well.agent), within=SOON, what="nothing left")


def test_a_server_that_comes_and_goes_every_second_loses_nothing_and_fills_no_log(well: Site) -> None:
    runs = [well.send(0.2) for _ in range(3)]
    before = len(well.events())
    for _ in range(FLAPS):
        well.server_road.close()
        time.sleep(0.5)  # the outage itself; nothing is awaited
        well.server_road.open()
        time.sleep(0.5)
    began = time.monotonic()
    for run in runs:
        eventually(lambda run=run: well.row(run)["accepted"], within=SOON, what=f"the report of run {run}")
    eventually(well.is_well, within=SOON, what="all well")
    print(f"\nsteady again: all well after {time.monotonic() - began:.1f} s")
    assert [well.row(run)["accepted"] for run in runs] == [1, 1, 1]
    assert {str(well.row(run)["result"]) for run in runs} == {STARTED_ONCE}
    said = [event for event in well.events()[before:] if event.startswith(("server_", "connection_"))]
    print(f"  {len(said)} lines: {sorted(set(said))}")
    assert len(said) <= 2 * FLAPS + 4


# --- outages of engine and registry ---------------------------------------------------------------------------


def test_what_ends_while_the_engine_is_away_is_found_when_it_is_back(well: Site) -> None:
    run = well.send()
    eventually(lambda: well.row(run)["status"] == "active", within=SOON, what="an algorithm at work")
    (container,) = well.agent.containers()
    well.engine_road.close()
    try:
        eventually(lambda: well.knows("engine"), within=SOON, what="the agent's knowing")
        eventually(lambda: container.wait(timeout=SOON), within=SOON, what="the algorithm's end")
    finally:
        began = time.monotonic()
        well.engine_road.open()
    eventually(lambda: well.row(run)["accepted"], within=SOON, what="the report")
    reported = time.monotonic() - began
    eventually(well.is_well, within=SOON, what="all well")
    print(f"\nengine: reported after {reported:.1f} s, all well after {time.monotonic() - began:.1f} s")
    assert (well.row(run)["result"], well.row(run)["accepted"]) == (STARTED_ONCE, 1)


@dataclass(frozen=True)
class Shop:
    """A registry, and an image in it that takes a while."""

    place: tuple[str, int]
    name: str


def test_a_run_whose_registry_is_away_goes_on_when_it_is_back(well: Site, large: Shop) -> None:
    road = well.registry_road
    run = well.send(0.2, f"{LOOPBACK}:{road.port}/{large.name}")
    eventually(lambda: road.visitors >= 2, within=SOON, what="a pull that fails")
    eventually(lambda: well.state(run) == "admitted", within=SOON, what="a run that waits")
    began = time.monotonic()
    road.to = large.place
    eventually(lambda: well.state(run) not in {"received", "admitted"}, within=SOON, what="the image")
    print(f"\nregistry: pulled after {time.monotonic() - began:.1f} s")
    eventually(lambda: well.row(run)["accepted"], within=SOON, what="the report")
    # there is nothing in the image that could run
    assert well.row(run)["status"] == "start failed"
    well.client.images.remove(f"{LOOPBACK}:{road.port}/{large.name}", force=True)


@pytest.fixture
def large(site: Site) -> Iterator[Shop]:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("content")
        entry.size = MIB
        tar.addfile(entry, io.BytesIO(os.urandom(MIB)))
    name = f"outages-{secrets.token_hex(4)}"
    site.client.api.import_image_from_data(archive.getvalue(), repository=name, tag="1")
    with registry() as found:
        host, _, port = found.host.rpartition(":")
        found.push(site.client, f"{name}:1", f"outages/{name}:1")
        site.client.images.remove(f"{name}:1", force=True)
        yield Shop((host, int(port)), f"outages/{name}:1")


@pytest.fixture
def way(site: Site, large: Shop) -> Iterator[tuple[Road, str]]:
    """A road to that registry, and the image's name on it."""
    with Road(large.place) as road:
        reference = f"{LOOPBACK}:{road.port}/{large.name}"
        yield road, reference
        with contextlib.suppress(docker.errors.ImageNotFound):
            site.client.images.remove(reference, force=True)


def impatient() -> DockerEngine:
    connection = EngineConnection()
    return DockerEngine("outages", connection, IsolatedNetwork("outages", connection), pull_patience=2.5)


def test_a_registry_that_falls_silent_in_the_middle_of_a_pull_is_left_and_asked_again(
    way: tuple[Road, str],
) -> None:
    road, image = way
    road.silent_after = MIB // 2
    began = time.monotonic()
    with pytest.raises(RegistryUnreachable, match="no progress"):
        impatient().pull_image(image, wanted=lambda: True, progress=lambda _: None)
    print(f"\nleft after {time.monotonic() - began:.1f} s")
    road.silent_after = None
    road.close()
    road.open()
    assert impatient().pull_image(image, wanted=lambda: True, progress=lambda _: None).digest


def test_a_registry_that_is_slow_but_goes_on_is_not_left(way: tuple[Road, str]) -> None:
    road, image = way
    road.bytes_a_second = MIB / 4
    seen: list[PullProgress] = []
    began = time.monotonic()
    assert impatient().pull_image(image, wanted=lambda: True, progress=seen.append).digest
    print(f"\npulled in {time.monotonic() - began:.1f} s, longer than the patience without progress")
    assert max(progress.current for progress in seen) >= MIB // 2
