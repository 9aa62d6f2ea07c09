"""What an owner may open, and the configuration that keeps everything else shut."""

import pytest

from node_agent.domain.contract import encode, way_out
from node_agent.domain.egress import parse_rule
from node_agent.gates.egress import EgressPlan, squid_conf
from node_agent.gates.quiet import Quiet


@pytest.mark.parametrize(
    ("text", "place", "ports"),
    [
        ("api.example.org:443", "api.example.org", "443"),
        ("API.Example.ORG:443", "api.example.org", "443"),
        ("registry:5000", "registry", "5000"),
        ("*.example.org:8000-8010", "*.example.org", "8000-8010"),
        ("192.0.2.7:80", "192.0.2.7/32", "80"),
        ("10.2.0.0/16:5432", "10.2.0.0/16", "5432"),
        ("xn--bcher-kva.example:443", "xn--bcher-kva.example", "443"),
    ],
)
def test_a_place_is_a_name_a_domain_an_address_or_a_network(text: str, place: str, ports: str) -> None:
    rule = parse_rule(text)
    assert (rule.place, rule.ports) == (place, ports)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api.example.org", "names no port"),
        ("api.example.org:", "names no port"),
        ("api.example.org:http", "names no port"),
        ("api.example.org:0", "names no port"),
        ("api.example.org:70000", "impossible ports"),
        ("api.example.org:90-80", "impossible ports"),
        ("*:443", "is not a host name"),
        ("*.org:443", "top-level domain"),
        ("*.:443", "is not `*.` and a domain"),
        ("api.*.org:443", "is not a host name"),
        ("*example.org:443", "is not a host name"),
        (".example.org:443", "is not a host name"),
        ("example.org.:443", "is not a host name"),
        ("https://example.org:443", "IPv6"),
        ("https//example.org:443", "is not an IPv4 address or network"),
        ("user@example.org:443", "is not a host name"),
        ("exa mple.org:443", "is not a host name"),
        ("example.org\nhttp_access allow all:443", "is not a host name"),
        ("[::1]:443", "IPv6"),
        ("2001:db8::1:443", "IPv6"),
        ("10.2.0.1/16:443", "part behind the prefix"),
        ("0.0.0.0/0:443", "opens too much"),
        ("10.2:443", "is not an IPv4 address"),
        ("0x7f.1:443", "is not an IPv4 address"),
        ("2130706433:443", "is not an IPv4 address"),
        ("a.b.1:443", "is not an IPv4 address"),
        ("bücher.example:443", "is not a host name"),
        ("", "names no port"),
    ],
)
def test_nonsense_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("*", r"\*").replace(".", r"\.")):
        parse_rule(text)


def conf(*rules: str, inside: tuple[str, ...] = ()) -> list[str]:
    plan = EgressPlan(
        agent="alpha",
        address="10.213.0.1",
        port=7482,
        clients="10.213.0.0/24",
        rules=tuple(map(parse_rule, rules)),
    )
    return squid_conf(plan, inside=inside).splitlines()


def test_the_last_word_is_no_and_the_first_words_are_too() -> None:
    lines = conf("api.example.org:443")
    access = [line for line in lines if line.startswith("http_access")]
    assert access[:3] == [
        "http_access deny host",
        "http_access deny !runs",
        "http_access deny manager",
    ]
    assert access[-1] == "http_access deny all"
    assert [line for line in access if " allow " in line] == [
        "http_access allow port0 place0 !inside0",
    ]


def test_it_listens_on_the_one_address() -> None:
    assert [line for line in conf("a.org:1") if line.startswith("http_port")] == ["http_port 10.213.0.1:7482"]


def test_a_name_is_looked_up_only_behind_the_rule_that_names_it() -> None:
    """Conditions are tried from left to right: the one that needs an address comes last."""
    lines = conf("api.example.org:443", "*.example.net:80", "192.0.2.7:5432")
    looking_up = [line for line in lines if line.startswith("acl") and " dst " in line and " -n " not in line]
    assert {line.split()[1] for line in looking_up} == {"inside0", "inside1"}
    assert "acl place2 dst -n 192.0.2.7/32" in lines
    for line in lines:
        if "inside" in line and line.startswith("http_access"):
            assert line.split()[-1].startswith("!inside")
            assert line.split()[2:4][0].startswith("port")


def closed_for(lines: list[str], number: int) -> str:
    return next(line for line in lines if line.startswith(f"acl inside{number} "))


def test_names_lead_neither_to_this_machine_nor_to_its_containers() -> None:
    lines = conf("api.example.org:443", inside=("192.0.2.2", "172.17.0.0/16", "fd00::2/128"))
    closed = closed_for(lines, 0).split()
    assert {"127.0.0.0/8", "169.254.0.0/16", "10.213.0.0/24", "192.0.2.2/32", "172.17.0.0/16"} <= {*closed}
    assert {"::/127", "fe80::/10", "fd00::2/128"} <= {*closed}


def test_an_address_that_is_listed_with_the_port_is_open_to_names_too() -> None:
    inside = ("172.17.0.0/30",)
    listed = conf("db.example.org:443", "172.17.0.1:443", inside=inside)
    other_port = conf("db.example.org:443", "172.17.0.1:80", inside=inside)
    assert "172.17.0.0/32" in closed_for(listed, 0)
    assert "172.17.0.1/32" not in closed_for(listed, 0)
    assert "172.17.0.0/30" in closed_for(other_port, 0)


def test_a_wildcard_leaves_the_domain_itself_out() -> None:
    assert "http_access allow port0 place0 !apex0 !inside0" in conf("*.example.org:443")


def test_nothing_of_a_call_beyond_its_place_is_written_down() -> None:
    lines = conf("a.example.org:443")
    assert next(line for line in lines if line.startswith("logformat")).split()[2:] == [
        *("algorithm", "%>a", "%>Hs", "%rm", "%>rd", "%>rP")
    ]


def test_tools_find_the_way_out_and_the_way_to_the_server_without_it() -> None:
    found = way_out(egress_port=7482, inside=("omop",))
    assert found["https_proxy"] == found["HTTP_PROXY"] == "http://proxyserver:7482"
    assert found["NO_PROXY"] == found["no_proxy"] == "localhost,127.0.0.1,proxyserver,omop"
    assert encode(found["NO_PROXY"]) != found["NO_PROXY"]
    assert way_out(egress_port=None) == {}


def test_a_flood_of_lines_is_counted_instead_of_written() -> None:
    now = [0.0]
    quiet = Quiet(lines=2, seconds=60, clock=lambda: now[0])
    assert [quiet.left_out() for _ in range(5)] == [0, 0, None, None, None]
    now[0] = 61
    assert quiet.left_out() == 3
    assert quiet.left_out() == 0
