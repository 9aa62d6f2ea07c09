"""What the agent does when the server, or the way to it, is in trouble; over real connections on loopback."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import certifi
import pytest

from node_agent.domain.messages import KillRequested, Message, ServerOffline, ServerOnline, TaskHinted
from node_agent.domain.ports import FinalReport, NodeIdentity
from node_agent.domain.run import RunId, Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId, TaskId
from node_agent.errors import DiskFull, RunClosed, ServerUnreachable
from node_agent.server.address import ServerAddress
from node_agent.server.client import HttpServer
from node_agent.server.exchange import AnswerTooLarge, Call, Exchange
from node_agent.server.listener import ANSWER_SECONDS, SocketListener
from node_agent.server.tokens import Tokens
from tests.doubles.certificate import own_certificate
from tests.doubles.fake_server import FakeServer, Fault
from tests.lab.road import LOOPBACK, Road
from tests.ports import free_port


class Agent:
    def __init__(
        self,
        fake: FakeServer,
        ca_bundle: Path | None = None,
        *,
        url: str = "",
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.address = ServerAddress.of(url or fake.url, ca_bundle=ca_bundle)
        self.exchange = Exchange(self.address)
        self.tokens = Tokens(self.exchange, Secret(fake.api_key))
        self.server = HttpServer(self.exchange, self.tokens)
        self.listener = SocketListener(
            self.address, self.tokens, identity(fake), self.post, answer_seconds=answer_seconds
        )
        self.messages: list[Message] = []
        self._changed = threading.Condition()

    def post(self, message: Message) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=20), self.messages

    def connect(self, times: int = 1) -> None:
        if times == 1:
            self.listener.start()
        self.wait_until(lambda: self.messages.count(ServerOnline()) >= times)

    def losses(self) -> list[ServerOffline]:
        return [m for m in self.messages if isinstance(m, ServerOffline)]


def identity(fake: FakeServer) -> NodeIdentity:
    node = fake.node()
    return NodeIdentity(
        node_id=node.id,
        node_name=node.name,
        organization_id=OrganizationId(node.organization_id),
        organization_name=node.name,
        collaboration_id=1,
        collaboration_name="fake",
        encrypted=False,
    )


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def agent(fake: FakeServer) -> Iterator[Agent]:
    found = Agent(fake)
    yield found
    found.listener.stop()
    found.server.close()


def final(result: Path | None = None) -> FinalReport:
    return FinalReport(
        status=Status.COMPLETED, result=result, log=None, started_at=0, finished_at=1, init_org_id=None
    )


def new_run(fake: FakeServer) -> RunId:
    return RunId(fake.create_task().run_ids[0])


# --- calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        Fault(truncate=True),
        Fault(status=502),
        Fault(status=503, body=""),
        Fault(status=504),
    ],
)
def test_a_listing_survives_a_blip(fake: FakeServer, agent: Agent, fault: Fault) -> None:
    run_id = new_run(fake)
    fake.fail("GET", "/run", fault)
    assert [run.id for run in agent.server.open_runs()] == [run_id]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        Fault(truncate=True),
        Fault(status=500),
        Fault(status=200),
        Fault(status=200, body="[]", content_type="application/json"),
        Fault(status=404),
        Fault(status=302),
        Fault(status=200, body="[" * 100_000, content_type="application/json"),
    ],
)
def test_nonsense_is_never_taken_for_an_empty_listing(fake: FakeServer, agent: Agent, fault: Fault) -> None:
    new_run(fake)
    fake.fail("GET", "/run", fault, times=10)
    with pytest.raises(ServerUnreachable) as caught:
        list(agent.server.open_runs())
    assert len(str(caught.value)) < 500


def test_a_server_that_is_away_is_named_with_its_address(fake: FakeServer, agent: Agent) -> None:
    fake.stop()
    with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1.*refused"):
        agent.server.identify()


def test_a_server_that_comes_back_is_used_again(fake: FakeServer, agent: Agent) -> None:
    run_id = new_run(fake)
    assert agent.server.is_open(run_id)
    fake.stop()
    with pytest.raises(ServerUnreachable):
        agent.server.is_open(run_id)
    fake.start()
    assert agent.server.is_open(run_id)


@pytest.mark.parametrize("trouble", ["access", "refresh", "secret"])
def test_tokens_that_stopped_working_are_replaced_unnoticed(
    fake: FakeServer, agent: Agent, trouble: str
) -> None:
    run_id = new_run(fake)
    agent.server.claim(run_id, at=0)
    fake.expire_access_tokens()
    if trouble == "refresh":
        fake.expire_refresh_tokens()
    if trouble == "secret":
        fake.change_secret()
    agent.server.announce(run_id, Status.ACTIVE)
    assert fake.run(run_id).status == "active"
    assert fake.count("POST", "/token/node") == (1 if trouble == "access" else 2)


def listing(agent: Agent, folder: Path, limit: int = 1 << 30) -> Call:
    return Call(method="GET", path="run", token=agent.tokens.access_token(), spool=folder, limit=limit)


def test_long_texts_of_an_answer_lie_on_disk(fake: FakeServer, agent: Agent, tmp_path: Path) -> None:
    fake.create_task(input="A" * 1_000_000)
    reply = agent.exchange.send(listing(agent, tmp_path))
    assert reply.body == b""
    (run,) = reply.json()["data"]  # type: ignore[index]
    assert b"".join(run["input"]) == b"A" * 1_000_000
    assert list(tmp_path.iterdir()) == [run["input"].path]


def test_an_answer_that_is_too_large_for_the_disk_tells_how_long_the_list_is(
    fake: FakeServer, agent: Agent, tmp_path: Path
) -> None:
    fake.create_task(input="A" * 1_000_000)
    with pytest.raises(AnswerTooLarge) as caught:
        agent.exchange.send(listing(agent, tmp_path, limit=500_000))
    assert caught.value.total == 1


def test_a_long_answer_that_breaks_off_or_is_no_json_may_come_right_later(
    fake: FakeServer, agent: Agent, tmp_path: Path
) -> None:
    fake.create_task(input="A" * 1_000_000)
    fake.faults.add("GET", "/run", Fault(truncate=True))
    with pytest.raises(ServerUnreachable):
        agent.exchange.send(listing(agent, tmp_path))
    fake.faults.add("GET", "/run", Fault(status=200, body="<html>"))
    with pytest.raises(ServerUnreachable, match="cannot be used"):
        agent.exchange.send(listing(agent, tmp_path))


def test_a_disk_without_room_for_an_answer_says_so(fake: FakeServer, agent: Agent, tmp_path: Path) -> None:
    fake.create_task(input="A" * 1_000_000)
    with pytest.raises(DiskFull, match="No such file or directory"):
        agent.exchange.send(listing(agent, tmp_path / "not there"))


def test_an_answer_over_the_limit_is_not_read(fake: FakeServer, agent: Agent) -> None:
    with pytest.raises(ServerUnreachable, match="larger than 10 bytes"):
        agent.exchange.send(Call(method="GET", path="version", limit=10))


def test_the_input_in_the_answer_to_an_update_is_not_read(fake: FakeServer, agent: Agent) -> None:
    run_id = RunId(fake.create_task(input=b"x" * 1_000_000).run_ids[0])
    body = b'{"status": "active"}'
    call = Call(
        method="PATCH", path=f"run/{run_id}", body=body, token=agent.tokens.access_token(), skip_large=True
    )
    reply = agent.exchange.send(call)
    assert (reply.status, reply.body) == (200, b"")
    agent.server.claim(run_id, at=0)
    assert fake.run(run_id).accepted == 2


def test_settings_for_other_programs_do_not_replace_the_token(
    fake: FakeServer, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    agent.server.identify()
    assert all(not c.headers.get("Authorization", "").startswith("Basic") for c in fake.calls)


def test_the_server_is_told_who_calls(fake: FakeServer, agent: Agent) -> None:
    agent.server.identify()
    assert {call.headers["User-Agent"].split("/")[0] for call in fake.calls} == {"node-agent"}


# --- certificates ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    file: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    made = own_certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.chain, made.key)
    return Certificate(made.chain, context)


@pytest.fixture
def secured(certificate: Certificate) -> Iterator[FakeServer]:
    with FakeServer(tls=certificate.context) as server:
        yield server


def test_a_private_authority_is_trusted_by_calls_and_socket_when_configured(
    secured: FakeServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what other programs of this machine are told must not win
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    agent = Agent(secured, certificate.file)
    agent.server.identify()
    agent.connect()
    secured.create_task()
    agent.wait_until(lambda: TaskHinted(TaskId(1)) in agent.messages)
    # polling alone would work too, but at a cost for the server
    assert any("websocket" in line for line in secured.upgrades)
    agent.listener.stop()
    agent.server.close()


def test_an_unknown_certificate_is_refused_and_the_setting_named(secured: FakeServer) -> None:
    agent = Agent(secured)
    with pytest.raises(ServerUnreachable, match=r"server\.ca_bundle"):
        agent.server.identify()
    assert secured.calls == []
    agent.server.close()


# --- reports --------------------------------------------------------------------------------------------------


def test_a_large_result_arrives_with_its_length(fake: FakeServer, agent: Agent, tmp_path: Path) -> None:
    run_id = new_run(fake)
    result = tmp_path / "result"
    with result.open("wb") as file:
        file.truncate(5_000_001)
    agent.server.report(run_id, final(result))
    headers = fake.calls[-1].headers
    assert "Transfer-Encoding" not in headers
    assert int(headers["Content-Length"]) > 6_666_668
    assert len(fake.run(run_id).result or "") == 6_666_668


def test_a_report_whose_answer_is_lost_is_accepted_once(fake: FakeServer, agent: Agent) -> None:
    run_id = new_run(fake)
    fake.fail("PATCH", "/run", Fault(lose_answer=True))
    with pytest.raises(ServerUnreachable):
        agent.server.report(run_id, final())
    agent.server.report(run_id, final())
    assert fake.run(run_id).accepted == 1


def test_a_result_the_server_does_not_take_still_ends_the_run(
    fake: FakeServer, agent: Agent, tmp_path: Path
) -> None:
    run_id = new_run(fake)
    result = tmp_path / "result"
    result.write_bytes(b"x" * 100)
    fake.fail("PATCH", "/run", Fault(status=413))
    with pytest.raises(RunClosed, match="too large"):
        agent.server.report(run_id, final(result))
    run = fake.run(run_id)
    assert (run.status, run.result) == ("failed", "")
    assert run.finished_at is not None
    assert "too large" in (run.log or "")


# --- socket ---------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_said_once_and_comes_back(fake: FakeServer, agent: Agent) -> None:
    agent.connect()
    fake.stop()
    agent.wait_until(lambda: len(agent.losses()) == 1)
    assert not agent.listener.online
    agent.listener.ping()
    fake.start()
    agent.connect(times=2)
    assert len(agent.losses()) == 1


def test_a_first_failure_is_said_once(fake: FakeServer, agent: Agent) -> None:
    fake.stop()
    agent.listener.start()
    agent.wait_until(lambda: len(agent.losses()) == 1)
    fake.start()
    agent.wait_until(lambda: ServerOnline() in agent.messages)
    assert len(agent.losses()) == 1


@pytest.mark.parametrize("trouble", ["expired", "invalid"])
def test_a_socket_with_a_bad_token_gets_another(fake: FakeServer, agent: Agent, trouble: str) -> None:
    agent.tokens.access_token()
    if trouble == "expired":
        fake.expire_access_tokens()
    else:
        fake.change_secret()
    agent.connect()
    assert fake.count("POST", "/token/refresh") == (1 if trouble == "expired" else 0)
    assert fake.count("POST", "/token/node") == (1 if trouble == "expired" else 2)


def test_a_reconnect_uses_a_fresh_token(fake: FakeServer, agent: Agent) -> None:
    agent.connect()
    first = agent.tokens.access_token()
    fake.expire_access_tokens()
    agent.tokens.renew(first)
    logins = fake.count("POST", "/token")
    fake.cut_sockets()
    agent.connect(times=2)
    assert fake.count("POST", "/token") == logins


def test_a_node_that_stops_is_away_at_once(fake: FakeServer, agent: Agent) -> None:
    agent.connect()
    fake.wait_until(lambda: fake.node().status == "online")
    agent.listener.stop()
    fake.wait_until(lambda: fake.node().status == "offline")


def test_a_listener_stops_while_the_server_is_away(fake: FakeServer, agent: Agent) -> None:
    fake.stop()
    agent.listener.start()
    agent.wait_until(lambda: bool(agent.losses()))
    agent.listener.stop()
    assert not agent.listener.online


def test_a_listener_that_never_started_stops(agent: Agent) -> None:
    agent.listener.stop()


def test_what_the_node_says_arrives(fake: FakeServer, agent: Agent) -> None:
    agent.connect()
    agent.listener.ping()
    agent.listener.tell_node({"database_labels": ["default"]})
    fake.wait_until(lambda: len(fake.heard) == 2)
    assert fake.heard == [("ping", None), ("node_info_update", {"database_labels": ["default"]})]


def test_what_is_too_large_for_the_socket_is_dropped(fake: FakeServer, agent: Agent) -> None:
    agent.connect()
    agent.listener.tell_node({"database_columns": {"columns_x": ["c" * 1000] * 1000}})
    agent.listener.ping()
    fake.wait_until(lambda: fake.heard)
    assert [event for event, _ in fake.heard] == ["ping"]
    assert agent.losses() == []


@pytest.mark.parametrize("nonsense", [None, [], {}, "x", {"id": "1"}, {"kill_list": 3}, {"id": 1.5}])
def test_nonsense_on_the_socket_is_survived(fake: FakeServer, agent: Agent, nonsense: object) -> None:
    agent.connect()
    fake.wait_until(lambda: fake.node().status == "online")
    for event in ("new_task", "kill_containers", "status_update", "something_else"):
        fake.emit(event, nonsense)
    fake.emit("new_task", {"id": 5})
    agent.wait_until(lambda: TaskHinted(TaskId(5)) in agent.messages)
    assert agent.messages == [ServerOnline(), TaskHinted(TaskId(5))]


def test_a_kill_of_everything_on_this_node_arrives(fake: FakeServer, agent: Agent) -> None:
    agent.connect()
    fake.wait_until(lambda: fake.node().status == "online")
    fake.emit("kill_containers", {"node_id": fake.node().id, "collaboration_id": 1})
    agent.wait_until(lambda: KillRequested(None) in agent.messages)


# --- a way that falls silent, is slow, or leads elsewhere ---------------------------------------------------------


@pytest.fixture
def road(fake: FakeServer) -> Iterator[Road]:
    with Road((LOOPBACK, int(fake.root.rpartition(":")[2]))) as made:
        yield made


@pytest.fixture
def behind(fake: FakeServer, road: Road) -> Iterator[Agent]:
    """An agent that reaches the server by a road."""
    found = Agent(fake, url=f"http://{LOOPBACK}:{road.port}/api", answer_seconds=0.5)
    yield found
    road.speak()
    found.listener.stop()
    found.server.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pings(fake: FakeServer) -> int:
    return [event for event, _ in fake.heard].count("ping")


def test_a_connection_that_falls_silent_is_found_out_and_made_again(
    fake: FakeServer, road: Road, behind: Agent
) -> None:
    behind.connect()
    behind.listener.ping()
    eventually(lambda: behind.listener.is_confirmed)
    road.fall_silent()
    behind.listener.ping()
    behind.wait_until(lambda: bool(behind.losses()))
    assert "does not confirm" in behind.losses()[0].reason
    road.speak()
    behind.listener.hurry()
    behind.wait_until(lambda: behind.messages.count(ServerOnline()) >= 2)


def test_a_connection_whose_pings_are_confirmed_stays(fake: FakeServer, behind: Agent) -> None:
    behind.connect()
    for number in range(1, 6):
        behind.listener.ping()
        fake.wait_until(lambda number=number: pings(fake) >= number)
    behind.server.identify()
    assert behind.losses() == []


def test_a_node_that_is_hurried_connects_without_the_pause(
    fake: FakeServer, road: Road, behind: Agent
) -> None:
    road.close()
    behind.listener.start()
    behind.wait_until(lambda: bool(behind.losses()))
    road.open()
    behind.listener.hurry()
    behind.wait_until(lambda: ServerOnline() in behind.messages)


@pytest.mark.parametrize("spooled", [True, False])
def test_an_answer_of_a_byte_a_second_is_given_up(
    fake: FakeServer, road: Road, behind: Agent, tmp_path: Path, spooled: bool
) -> None:
    behind.server.identify()
    road.bytes_a_second = 300  # the headers come in time
    call = Call(
        method="GET",
        path="version",
        spool=tmp_path / "spool" if spooled else None,
        body_seconds=0.0,
        token=behind.tokens.access_token(),
    )
    with pytest.raises(ServerUnreachable, match="too slowly"):
        behind.exchange.send(call)


def test_credentials_follow_no_redirect(fake: FakeServer) -> None:
    """Neither of calls nor of the socket: the other place hears nothing at all."""
    with Road((LOOPBACK, 1)) as elsewhere:
        there = f"http://{LOOPBACK}:{elsewhere.port}/"
        away = f"HTTP/1.1 307 Go\r\nLocation: {there}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        with saying(away.encode()) as port:
            agent = Agent(fake, url=f"http://{LOOPBACK}:{port}/api")
            with pytest.raises(ServerUnreachable, match="307"):
                agent.server.identify()
            # with tokens at hand the socket gets as far as the redirect
            agent.tokens = Tokens(Exchange(ServerAddress.of(fake.url)), Secret(fake.api_key))
            listener = SocketListener(agent.address, agent.tokens, identity(fake), agent.post)
            listener.start()
            agent.wait_until(lambda: bool(agent.losses()))
            listener.stop()
            agent.server.close()
        assert "307" in agent.losses()[0].reason
        assert elsewhere.visitors == 0


@contextmanager
def saying(answer: bytes) -> Iterator[int]:
    """Answer every call on a port with the same words."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                caller, _ = listener.accept()
                with caller:
                    caller.recv(65_536)
                    caller.sendall(answer)

    with socket.create_server((LOOPBACK, free_port())) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
