"""Public keys at the server: read when needed, believed for a while, and never replaced in silence."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from node_agent import cli
from node_agent.commands import PARTS
from node_agent.config import ServerSettings, Settings
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId
from node_agent.errors import ConfigError, KeyChanged, KeyMissing, ServerUnreachable
from node_agent.payload.keys import PrivateKey, PublicKey
from node_agent.server.exchange import Call, Reply
from node_agent.server.keys import (
    BELIEVED_SECONDS,
    REMEMBERED,
    KeyState,
    KeyTrust,
    OrganizationKeys,
    ensure_published,
)
from node_agent.store.journal import SqliteJournal
from node_agent.store.pins import JournalPins, read_pins

ALPHA, BETA = OrganizationId(2), OrganizationId(3)
OWN, OTHER = (PrivateKey(rsa.generate_private_key(65537, 2048)).public for _ in range(2))


class Server:
    """Shows and takes public keys."""

    def __init__(self, **texts: str | None) -> None:
        self.texts: dict[str, str | None] = texts
        self.asked: list[str] = []
        self.refuses = False
        self.now = 0.0

    def ask(self, call: Call) -> Reply:
        self.asked.append(str(call))
        organization = call.path.removeprefix("organization/")
        if self.refuses or f"o{organization}" not in self.texts:
            return reply(401, {"msg": "You lack the permission to do that!"})
        if call.method == "PATCH":
            assert isinstance(call.body, bytes)
            self.texts[f"o{organization}"] = json.loads(call.body)["public_key"]
        return reply(200, {"id": 2, "name": "alpha", "public_key": self.texts[f"o{organization}"]})

    def keys(self, trust: KeyTrust | None = None) -> OrganizationKeys:
        return OrganizationKeys(self.ask, trust=trust, monotonic=lambda: self.now)


def reply(status: int, content: Any) -> Reply:
    return Reply(call="GET /organization", status=status, body=json.dumps(content).encode())


def test_a_key_is_read_once_and_believed_for_a_while() -> None:
    server = Server(o2=OTHER.wire)
    keys = server.keys()
    assert [keys.of(ALPHA), keys.of(ALPHA)] == [OTHER, OTHER]
    assert server.asked == ["GET /organization/2"]
    server.texts["o2"] = OWN.wire
    server.now = BELIEVED_SECONDS
    assert keys.of(ALPHA) == OWN


def test_a_forgotten_key_is_read_anew() -> None:
    server = Server(o2=OTHER.wire)
    keys = server.keys()
    keys.of(ALPHA)
    server.texts["o2"] = OWN.wire
    keys.forget(ALPHA)
    keys.forget(None)
    assert keys.of(ALPHA) == OWN


def test_only_so_many_keys_are_remembered() -> None:
    server = Server(**{f"o{number}": OTHER.wire for number in range(1, REMEMBERED + 2)})
    keys = server.keys()
    for number in range(1, REMEMBERED + 2):
        keys.of(OrganizationId(number))
    server.asked.clear()
    keys.of(OrganizationId(REMEMBERED + 1))
    assert server.asked == []
    keys.of(OrganizationId(1))
    assert server.asked == ["GET /organization/1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no public key"),
        ("", "has no public key"),
        ("AAAA", "cannot be used: it is no base64 of a PEM"),
    ],
)
def test_an_organization_without_a_usable_key_is_named(text: str | None, said: str) -> None:
    keys = Server(o3=text).keys()
    with pytest.raises(KeyMissing, match=f"Organization 3 .*{said}"):
        keys.of(BETA)


def test_a_missing_key_is_not_remembered() -> None:
    server = Server(o3="")
    keys = server.keys()
    with pytest.raises(KeyMissing):
        keys.of(BETA)
    server.texts["o3"] = OTHER.wire
    assert keys.of(BETA) == OTHER


def test_an_organization_the_server_does_not_show_has_no_key() -> None:
    with pytest.raises(KeyMissing, match="You lack the permission"):
        Server().keys().of(BETA)


@pytest.mark.parametrize("content", [[], {"public_key": 3}, {"public_key": "A" * 70_000}])
def test_nonsense_is_no_answer(content: Any) -> None:
    keys = OrganizationKeys(lambda _: reply(200, content))
    with pytest.raises(ServerUnreachable):
        keys.of(BETA)


# --- this organization's key ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", None])
def test_the_key_is_uploaded_when_the_server_has_none(text: str | None) -> None:
    server = Server(o2=text)
    with capture_logs() as logged:
        ensure_published(server.keys(), ALPHA, OWN)
    assert server.texts["o2"] == OWN.wire
    assert [(line["event"], line["fingerprint"]) for line in logged] == [
        ("public_key_uploaded", OWN.fingerprint)
    ]


def test_the_right_key_is_left_alone() -> None:
    server = Server(o2=OWN.wire)
    ensure_published(server.keys(), ALPHA, OWN)
    assert server.asked == ["GET /organization/2"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [(OTHER.wire, OTHER.fingerprint), ("AAAA", "unreadable")],
    ids=["another key", "no key"],
)
def test_a_different_key_stops_the_start_and_both_are_shown(text: str, shown: str) -> None:
    server = Server(o2=text)
    with pytest.raises(ConfigError, match="another public key") as caught:
        ensure_published(server.keys(), ALPHA, OWN)
    assert server.texts["o2"] == text
    assert "key upload --replace" in caught.value.hint
    at_server, here = caught.value.faults
    assert shown in at_server
    assert OWN.fingerprint in here


def test_a_server_that_does_not_take_the_key_or_does_not_show_it_is_quoted() -> None:
    server = Server(o2="")
    keys = server.keys()
    server.refuses = True
    with pytest.raises(ConfigError, match="does not take the public key: You lack the permission"):
        keys.publish(ALPHA, OWN)
    with pytest.raises(ConfigError, match="You lack the permission"):
        ensure_published(keys, ALPHA, OWN)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", KeyState.NONE_THERE),
        (OWN.wire, KeyState.SAME),
        (OTHER.wire, KeyState.DIFFERENT),
        ("?", KeyState.DIFFERENT),
    ],
)
def test_the_state_of_the_key_is_told(text: str, state: KeyState) -> None:
    assert Server(o2=text).keys().published(ALPHA).state(OWN) is state


def test_a_key_written_in_another_way_is_the_same() -> None:
    assert Server(o2=OWN.wire).keys().of(ALPHA) == PublicKey.from_wire(OWN.wire)


# --- whose key is believed ------------------------------------------------------------------------------------


@pytest.fixture
def pins(quick_dir: Path) -> Iterator[JournalPins]:
    with closing(SqliteJournal(quick_dir)):
        yield JournalPins(quick_dir)


def test_the_own_organizations_key_is_the_one_on_this_machine_and_is_never_asked_for(
    pins: JournalPins,
) -> None:
    server = Server(o2=OTHER.wire)
    keys = server.keys(KeyTrust(pins=pins))
    keys.keep_own(ALPHA, OWN)
    keys.forget(ALPHA)
    assert keys.of(ALPHA) == OWN
    assert server.asked == []


def test_a_server_that_names_another_organization_as_this_nodes_own_meets_the_pin(pins: JournalPins) -> None:
    Server().keys(KeyTrust(pins=pins)).keep_own(ALPHA, OWN)
    keys = Server(o2=OTHER.wire).keys(KeyTrust(pins=pins))
    keys.keep_own(OrganizationId(66), OWN)
    with pytest.raises(KeyChanged):
        keys.of(ALPHA)


def test_a_key_that_the_server_exchanges_is_not_used_and_that_is_logged_once(pins: JournalPins) -> None:
    server = Server(o3=OWN.wire)
    keys = server.keys(KeyTrust(pins=pins))
    assert keys.of(BETA) == OWN
    server.texts["o3"] = OTHER.wire
    server.now = BELIEVED_SECONDS
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(
                KeyChanged, match=f"{OTHER.fingerprint}.*{OWN.fingerprint}.*key accept -c FILE 3"
            ):
                keys.of(BETA)
    assert [(line["event"], line["expected"], line["offered"]) for line in lines] == [
        ("organization_key_changed", OWN.fingerprint, OTHER.fingerprint)
    ]


def test_a_pin_outlives_the_process(pins: JournalPins) -> None:
    assert Server(o3=OWN.wire).keys(KeyTrust(pins=pins)).of(BETA) == OWN
    with pytest.raises(KeyChanged):
        Server(o3=OTHER.wire).keys(KeyTrust(pins=pins)).of(BETA)


def test_an_accepted_key_is_used_by_the_running_agent(pins: JournalPins, quick_dir: Path) -> None:
    server = Server(o3=OWN.wire)
    keys = server.keys(KeyTrust(pins=pins))
    keys.of(BETA)
    server.texts["o3"] = OTHER.wire
    keys.forget(BETA)
    with pytest.raises(KeyChanged):
        keys.of(BETA)
    (shown,) = read_pins(quick_dir)
    assert (shown.key, shown.offered) == (OWN.wire, OTHER.wire)
    assert not JournalPins(quick_dir).accept(BETA, "yet another key")
    assert JournalPins(quick_dir).accept(BETA, OTHER.wire)
    assert keys.of(BETA) == OTHER


def test_an_offer_is_over_when_the_server_shows_the_pinned_key_again(
    pins: JournalPins, quick_dir: Path
) -> None:
    server = Server(o3=OWN.wire)
    keys = server.keys(KeyTrust(pins=pins))
    keys.of(BETA)
    for text in (OTHER.wire, OWN.wire):
        server.texts["o3"] = text
        keys.forget(BETA)
        with suppress(KeyChanged):
            keys.of(BETA)
    assert [pin.offered for pin in read_pins(quick_dir)] == [None]


def test_of_an_organization_with_a_fingerprint_in_the_configuration_only_that_key_is_taken(
    pins: JournalPins, quick_dir: Path
) -> None:
    trust = KeyTrust(pins=pins, fingerprints={3: OWN.fingerprint})
    assert Server(o3=OWN.wire).keys(trust).of(BETA) == OWN
    with pytest.raises(KeyChanged, match=r"encryption\.fingerprints"), capture_logs() as lines:
        Server(o3=OTHER.wire).keys(trust).of(BETA)
    assert [line["event"] for line in lines] == ["organization_key_changed"]
    assert read_pins(quick_dir) == []


def test_a_journal_that_no_agent_of_this_version_has_opened_has_no_pins(quick_dir: Path) -> None:
    assert read_pins(quick_dir) == []
    with closing(sqlite3.connect(quick_dir / "journal.sqlite")) as older:
        older.execute("CREATE TABLE run (run_id INTEGER)")
    assert read_pins(quick_dir) == []


def test_the_command_accepts_what_is_offered_and_shows_both_fingerprints(
    pins: JournalPins, quick_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Settings(
        name="alpha",
        server=ServerSettings(url="http://127.0.0.1:1", api_key=Secret("k")),
        state_dir=quick_dir,
    )
    pins.pin(BETA, OWN.wire)
    pins.offer(BETA, OTHER.wire)
    parts = replace(PARTS, load_place=lambda _: place)
    assert cli.main(["key", "list", "-c", "/a.yaml"], parts=parts) == 0
    assert (
        f"organization 3: {OWN.fingerprint}; the server shows {OTHER.fingerprint}" in capsys.readouterr().out
    )
    assert cli.main(["key", "accept", "-c", "/a.yaml", "3", "--json"], parts=parts) == 0
    assert json.loads(capsys.readouterr().out) == {
        "organization": 3,
        "old_fingerprint": OWN.fingerprint,
        "new_fingerprint": OTHER.fingerprint,
    }
    assert [(pin.key, pin.offered) for pin in read_pins(quick_dir)] == [(OTHER.wire, None)]
    assert cli.main(["key", "accept", "-c", "/a.yaml", "3"], parts=parts) == 78
    assert cli.main(["key", "list", "-c", "/a.yaml", "--json"], parts=parts) == 0
