"""What an owner opens, from the file to the firewall."""

from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.config import Settings, load
from node_agent.domain.run import Outcome, RunId
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import ConfigError
from node_agent.openings import plan_of
from node_agent.runtable import RunTable
from node_agent.runtime.firewall import rules
from tests.doubles.core import make_run, make_task

BASE = """\
name: alpha
server: {url: "https://server.example.org/api", api_key: 00000000-0000-4000-8000-000000000000}
state_dir: /var/lib/node-agent/alpha
"""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK5Z/WePvP5LSFIeeL4fGJcKil5aK63AXCjivrfO8moG"


def settings_of(text: str, folder: Path) -> Settings:
    file = folder / "alpha.yaml"
    file.write_text(BASE + text)
    return load(file)


def faults_of(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_of(text, folder)
    return "\n".join(caught.value.faults)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "id"
    file.write_text("key")
    file.chmod(0o600)
    return file


def test_without_a_word_nothing_is_open(tmp_path: Path) -> None:
    settings = settings_of("", tmp_path)
    assert settings.egress_port is None
    assert settings.entrances == {}
    assert plan_of(settings).egress == ()


def test_what_is_opened_has_ports_that_the_proxy_does_not_have(tmp_path: Path) -> None:
    text = """\
network: {proxy_port: 7491}
egress: {allow: ["api.example.org:443"], port: 7490}
databases:
  - {label: one, type: sql, uri: "postgresql://db/x"}
  - {label: two, type: sparql, uri: "https://graph.example.org/sparql"}
"""
    settings = settings_of(text, tmp_path)
    assert settings.egress_port == 7490
    assert [entrance.port for entrance in settings.entrances.values()] == [7492, 7493]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('egress: {allow: ["*:443"]}', "is not a host name"),
        ('egress: {allow: ["api.example.org"]}', "names no port"),
        ('egress: {allow: ["api.example.org:443"], port: 7480}', "network.proxy_port"),
        ("egress: {allow: [], port: 80}", "at least 1024"),
        ("services: [{name: omop}]", "exactly one of the two"),
        ("services: [{name: proxyserver, container: x}]", "a meaning of its own"),
        ("services: [{name: localhost, container: x}]", "a meaning of its own"),
        ("services: [{name: a, container: x}, {name: a, container: y}]", "same name"),
        ("services: [{name: a, container: 'x y'}]", "is not the name of a container"),
        ("services: [{name: A B, container: x}]", "is not a host name"),
        ("databases: [{label: a, type: sql, uri: 'own://h/x'}]", "names no port"),
        ("databases: [{label: a, type: sql, uri: 'postgresql://proxyserver/x'}]", "our own"),
    ],
)
def test_nonsense_is_a_fault_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    assert words in faults_of(text, tmp_path)


def tunnel_text(key_file: Path, **changes: str) -> str:
    words = {
        "host": "gate.example.org",
        "user": "node",
        "key_file": str(key_file),
        "host_key": KEY,
        "target": "db:5432",
    }
    inside = ", ".join(f"{name}: '{value}'" for name, value in {**words, **changes}.items())
    return f"services: [{{name: omop, tunnel: {{{inside}}}}}]"


def test_a_tunnel_is_read(key_file: Path, tmp_path: Path) -> None:
    (service,) = settings_of(tunnel_text(key_file, host_key=KEY + " comment"), tmp_path).services
    assert service.tunnel is not None
    assert (service.name, service.tunnel.port, service.tunnel.host_key) == ("omop", 22, KEY)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "-oProxyCommand=x"}, "is not a host name"),
        ({"user": "-x"}, "is not the name of an account"),
        ({"host_key": "ssh-ed25519"}, "is not a host key"),
        ({"host_key": "ssh-rsa " + KEY.split()[1]}, "is not a host key"),
        ({"host_key": "ssh-ed25519 ????"}, "is not a host key"),
        ({"host_key": "SHA256:abc"}, "is not a host key"),
        ({"host_key": "MD5:00:11"}, "is not a host key"),
        ({"target": "db"}, "host:port"),
        ({"target": "db:0"}, "host:port"),
        ({"target": "a:1:b"}, "host:port"),
    ],
)
def test_a_tunnel_takes_no_nonsense(
    changes: dict[str, str], words: str, key_file: Path, tmp_path: Path
) -> None:
    assert words in faults_of(tunnel_text(key_file, **changes), tmp_path)


def test_a_tunnels_key_that_others_can_read_is_refused(key_file: Path, tmp_path: Path) -> None:
    key_file.chmod(0o644)
    assert "chmod o=" in faults_of(tunnel_text(key_file), tmp_path)


# --- the firewall and the runs -------------------------------------------------------------------------------------


def test_the_rule_is_the_same_as_before_when_nothing_is_opened() -> None:
    text = rules("alpha", gateway="10.213.0.1", proxy_port=7480)
    assert "ip daddr 10.213.0.1 tcp dport 7480 accept" in text


def test_the_rule_opens_exactly_the_gates() -> None:
    text = rules("alpha", gateway="10.213.0.1", proxy_port=7480, gates=(7482, 7490))
    assert "ip daddr 10.213.0.1 tcp dport { 7480, 7482, 7490 } accept" in text
    assert text.count("accept\n") == 1


def test_a_label_is_open_to_the_runs_that_asked_for_it_while_they_go_on() -> None:
    asking = make_run(1, task=make_task(databases=(DatabaseRequest(label="warehouse"),)))
    runs = RunTable()
    runs.keep(asking)
    runs.keep(make_run(2))
    assert runs.asks_for(RunId(1), "warehouse")
    assert not runs.asks_for(RunId(1), "Warehouse")
    assert not runs.asks_for(RunId(2), "warehouse")
    assert not runs.asks_for(RunId(3), "warehouse")
    runs.keep(replace(asking, ending=Outcome.KILLED))
    assert not runs.asks_for(RunId(1), "warehouse")
