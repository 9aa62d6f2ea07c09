import itertools
from ipaddress import IPv4Network

import pytest

from node_agent.runtime.firewall import bridge_name, rules, table_name
from node_agent.runtime.network import docker_options, network_faults
from node_agent.runtime.subnets import candidates, parsed_routes

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
OPTIONS = docker_options(bridge_name("alpha"))


def network(**changes):
    return {
        "Name": "node-agent-alpha",
        "Driver": "bridge",
        "Internal": True,
        "EnableIPv6": False,
        "Attachable": False,
        "Labels": {"node-agent.name": "alpha"},
        "Options": {
            "com.docker.network.bridge.name": bridge_name("alpha"),
            "com.docker.network.bridge.enable_icc": "false",
        },
        "IPAM": {"Config": [{"Subnet": "10.213.7.0/24", "Gateway": "10.213.7.1"}]},
        **changes,
    }


def test_a_network_that_is_as_it_must_be_has_no_faults():
    assert network_faults(network(), agent="alpha", subnet=None, options=OPTIONS) == []
    assert network_faults(network(), agent="alpha", subnet="10.213.7.0/24", options=OPTIONS) == []


@pytest.mark.parametrize(
    "change",
    [
        {"Labels": {}},
        {"Labels": None},
        {"Labels": {"node-agent.name": "beta"}},
        {"Driver": "macvlan"},
        {"Internal": False},
        {"EnableIPv6": True},
        {"Attachable": True},
        {"IPAM": {"Config": []}},
        {"IPAM": {"Config": [{"Subnet": "10.213.7.0/24"}]}},
        {
            "IPAM": {
                "Config": [
                    {"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.1"},
                    {"Subnet": "fd00::/64", "Gateway": "fd00::1"},
                ]
            }
        },
    ],
)
def test_a_network_that_is_not_as_it_must_be_is_named(change):
    assert len(network_faults(network(**change), agent="alpha", subnet=None, options=OPTIONS)) == 1


@pytest.mark.parametrize(
    "option",
    [
        {"com.docker.network.bridge.name": "br0"},
        {"com.docker.network.bridge.enable_icc": "true"},
        {"com.docker.network.bridge.enable_ip_masquerade": "true"},
    ],
)
def test_options_that_open_the_network_are_named(option):
    found = network()
    found["Options"] = {**found["Options"], **option}
    assert len(network_faults(found, agent="alpha", subnet=None, options=OPTIONS)) == 1


def test_other_addresses_than_configured_are_named():
    assert network_faults(network(), agent="alpha", subnet="10.9.0.0/24", options=OPTIONS) == [
        "its addresses are not 10.9.0.0/24 (network.subnet)"
    ]


def test_an_agent_always_begins_with_the_same_addresses():
    first = next(candidates("alpha", taken=()))
    assert first == next(candidates("alpha", taken=()))
    assert first != next(candidates("beta", taken=()))


def test_addresses_in_use_are_passed_over():
    first = next(candidates("alpha", taken=()))
    second = next(candidates("alpha", taken=[first]))
    assert not second.overlaps(first)
    elsewhere = next(candidates("alpha", taken=[IPv4Network("10.0.0.0/8")]))
    assert str(elsewhere).startswith("198.18.")
    assert list(candidates("alpha", taken=[IPv4Network("0.0.0.0/0")])) == []


def test_every_range_is_offered_once():
    offered = list(itertools.islice(candidates("alpha", taken=()), 512))
    assert len(set(offered)) == 512


def test_routes_are_read_as_the_kernel_writes_them():
    assert list(parsed_routes(ROUTES)) == [IPv4Network("0.0.0.0/0"), IPv4Network("172.18.0.0/16")]


def test_names_fit_where_names_are_short():
    assert len(bridge_name("a" * 41)) <= 15
    assert bridge_name("alpha") != bridge_name("beta")


def test_the_rule_lets_only_the_proxy_through_and_replaces_itself():
    text = rules("alpha", gateway="10.213.7.1", proxy_port=7480)
    bridge = bridge_name("alpha")
    assert (
        f'iifname "{bridge}" ip daddr 10.213.7.1 tcp dport 7480 accept\n    iifname "{bridge}" drop' in text
    )
    assert text.startswith(f"table inet {table_name('alpha')}\ndelete table inet {table_name('alpha')}\n")
    assert text.count("accept\n") == 1


def test_the_rule_keeps_everybody_but_the_bridge_from_proxy_and_gates():
    text = rules("alpha", gateway="10.213.7.1", proxy_port=7480, gates=(7482,))
    from_bridge, from_others = text.index("drop"), text.index("reject with tcp reset")
    assert from_bridge < from_others
    assert "    ip daddr 10.213.7.1 tcp dport { 7480, 7482 } reject with tcp reset\n" in text
