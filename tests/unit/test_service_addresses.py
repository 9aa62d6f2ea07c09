"""Database servers in URIs: what is read out of them, and what algorithms are told instead."""

from pathlib import Path

import pytest

from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.service import (
    FIRST_PORT,
    Service,
    Tunnel,
    entrances,
    place_of,
    seen_by_algorithms,
    service_place,
)
from node_agent.gates.gates import GatePlan
from node_agent.gates.tunnel import fingerprint_of, ssh_words

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK5Z/WePvP5LSFIeeL4fGJcKil5aK63AXCjivrfO8moG"
TUNNEL = Tunnel(
    host="gate.example.org",
    port=22,
    user="node",
    key_file=Path("/etc/key"),
    host_key=HOST_KEY,
    target="db:5432",
)


def sql(uri: str, label: str = "Warehouse", kind: DatabaseType = DatabaseType.SQL) -> Database:
    return Database(label=label, type=kind, uri=uri)


def seen(uri: str) -> str:
    database = sql(uri)
    return seen_by_algorithms(database, entrances([database], taken=())).uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://u:pw@db.example.org:6000/x", "postgresql://u:pw@db.example.org:7490/x"),
        ("postgresql://u:pw@db.example.org/x", "postgresql://u:pw@db.example.org:7490/x"),
        ("postgresql+psycopg2://u@db/x?sslmode=verify-full", "postgresql+psycopg2://u@db:7490/x?sslmode=verify-full"),
        ("postgresql://u:p%40%2F@10.0.0.7:5432/x", "postgresql://u:p%40%2F@warehouse.database:7490/x"),
        ("mysql+pymysql://u:pw@localhost/x", "mysql+pymysql://u:pw@warehouse.database:7490/x"),
        ("mssql://u:a@b@host.docker.internal/x", "mssql://u:a@b@warehouse.database:7490/x"),
        ("https://graph.example.org/sparql?q=a@b#c", "https://graph.example.org:7490/sparql?q=a@b#c"),
        ("jdbc:postgresql://db/x", "jdbc:postgresql://db:7490/x"),
        ("jdbc:sqlserver://db;databaseName=x", "jdbc:sqlserver://db:7490;databaseName=x"),
        ("jdbc:oracle:thin:@//db/x", "jdbc:oracle:thin:@//db:7490/x"),
        ("own://db_1:9000", "own://db_1:7490"),
        ("sqlite:////mnt/x.db", "sqlite:////mnt/x.db"),
        ("postgresql:///x?host=/run", "postgresql:///x?host=/run"),
    ],
)  # fmt: skip
def test_only_host_and_port_are_replaced(uri: str, expected: str) -> None:
    assert seen(uri) == expected


@pytest.mark.parametrize(
    ("uri", "port"),
    [
        *(
            ("postgresql://h/x", 5432),
            ("postgres+asyncpg://h", 5432),
            ("MySQL://h", 3306),
            ("mariadb://h", 3306),
        ),
        *(("mssql+pyodbc://h", 1433), ("oracle://h", 1521), ("http://h", 80), ("https://h", 443)),
        *(("mongodb://h", 27017), ("redis://h", 6379), ("jdbc:sqlserver://h", 1433), ("own://h:7", 7)),
    ],
)
def test_a_scheme_has_its_usual_port(uri: str, port: int) -> None:
    place = service_place(uri)
    assert place is not None
    assert (place.host, place.port) == ("h", port)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("own://h/x", "names no port"),
        ("postgresql://u:secret/x@h/x", "%2F"),
        ("postgresql://u:12?secret@h/x", "%2F"),
        ("postgresql://h:port/x", "no valid port"),
        ("postgresql://h:0/x", "no valid port"),
        ("postgresql://h:99999/x", "no valid port"),
        ("postgresql://h:1:2/x", "no valid port"),
        ("postgresql://h h/x", "no valid host name"),
        ("postgresql://-h/x", "no valid host name"),
        ("mongodb://a:1,b:2/x", "several servers"),
        ("postgresql://[::1]:5432/x", "IPv6"),
    ],
)
def test_what_cannot_be_reached_for_sure_is_refused_without_showing_it(uri: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        service_place(uri)
    assert "secret" not in str(caught.value)


def test_what_is_no_server_is_left_to_the_algorithm() -> None:
    assert place_of(sql("s3://bucket/key", kind=DatabaseType.OTHER)) is None
    assert place_of(sql("anything", kind=DatabaseType.OTHER)) is None
    assert place_of(sql("/srv/data", kind=DatabaseType.FOLDER)) is None
    with pytest.raises(ValueError, match="names no port"):
        place_of(sql("s3://bucket/key"))


def test_each_server_has_a_port_and_the_ports_of_others_are_left_out() -> None:
    databases = [
        sql("postgresql://a/x", "one"),
        Database(label="file", type=DatabaseType.CSV, uri="/srv/x.csv"),
        sql("postgresql://a/y", "two"),
    ]
    found = entrances(databases, taken=(FIRST_PORT, 7480))
    assert {label: entrance.port for label, entrance in found.items()} == {"one": 7491, "two": 7492}
    assert found == entrances(databases, taken=(FIRST_PORT, 7480))


def test_a_password_does_not_show() -> None:
    found = entrances([sql("postgresql://u:hunter2@a/x")], taken=())
    assert "hunter2" not in repr(found)


def test_only_services_that_a_database_names_are_made() -> None:
    plan = GatePlan(
        agent="alpha",
        folder=Path("/x"),
        egress_port=1,
        entrances=entrances([sql("postgresql://OMOP/x")], taken=()),
        services=(Service(name="omop", container="pg"), Service(name="other", tunnel=TUNNEL)),
    )
    assert list(plan.services_in_use) == ["omop"]


# --- tunnels ----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_what_the_secure_shell_shows() -> None:
    assert fingerprint_of(HOST_KEY) == "SHA256:4IyKffhmyyBwVdI/m/bA+0WEly+ZkYiZppqBrD5MLKg"
    assert fingerprint_of("SHA256:abc=") == "SHA256:abc"


def test_the_tunnels_command_trusts_the_pinned_key_alone() -> None:
    words = ssh_words("omop", TUNNEL, known_hosts=Path("/state/omop.known"))
    options = {words[at + 1] for at, word in enumerate(words) if word == "-o"}
    assert {
        "StrictHostKeyChecking=yes",
        "UserKnownHostsFile=/state/omop.known",
        "GlobalKnownHostsFile=/dev/null",
        "HostKeyAlias=omop",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
    } <= options
    assert words[words.index("-F") + 1] == "none"
    assert "gate.example.org" not in words
