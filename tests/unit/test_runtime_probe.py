import errno

import pytest

from node_agent.domain.container import ContainerLimits
from node_agent.runtime.firewall import FirewallFacts
from node_agent.runtime.probe import Check, Finding, ProbePlan, ProbeReport, judge
from node_agent.runtime.probe_inside import dns_query

LIMITS = ContainerLimits(cpus=1, memory=2**27, pids=64, tmp_size=1, file_size=1)
CLOSED = {
    "host 10.213.7.1": "closed",
    "udp 10.213.7.1": "closed",
    "neighbour": "closed",
    "dns 127.0.0.11": "closed",
    "proxy": "open",
}


def plan(**changes):
    asked = {
        "agent": "alpha",
        "user": (10, 11),
        "groups": (12,),
        "limits": LIMITS,
        "proxy_port": 7480,
        "firewall": FirewallFacts(loaded=True),
    }
    return ProbePlan(**{**asked, **changes})


def seen(reached=None, **changes):
    status = {f"Cap{kind}": "0000000000000000" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    return {
        "reached": {**CLOSED, **(reached or {})},
        "uid": 10,
        "gid": 11,
        "groups": [11, 12],
        "status": {**status, "NoNewPrivs": "1", "Seccomp": "2"},
        "limits": {
            "memory": str(2**27),
            "pids": "64",
            "cpu": "100000 100000",
            "open_files": "4096",
            "file_size": "1",
        },
        "calls": {"io_setup": 1, "io_uring_setup": 38, "AF_VSOCK": 97},
        "root_read_only": True,
        "tmp_writable": True,
        "ipv6": False,
        **changes,
    }


def checks(found, *, heard=(), asked=None):
    return [finding.check for finding in judge(found, frozenset(heard), asked or plan())]


def test_a_closed_container_gives_no_finding():
    assert checks(seen()) == []


@pytest.mark.parametrize("answer", ["open", "refused"])
def test_any_answer_of_the_host_is_a_finding(answer):
    assert checks(seen({"host 10.213.7.1": answer})) == [Check.HOST]


def test_a_packet_that_reached_the_host_is_a_finding_though_none_came_back():
    assert checks(seen(), heard=["udp 10.213.7.1"]) == [Check.HOST]


def test_a_finding_about_the_host_names_the_address_the_reason_and_the_remedy():
    asked = plan(firewall=FirewallFacts(loaded=False, reason="nft is not installed"))
    finding = next(judge(seen({"host 10.213.7.1": "open"}), frozenset(), asked))
    assert "10.213.7.1" in finding.text
    assert "nft is not installed" in finding.text
    assert "node-agent network ensure" in finding.hint
    assert "accept_open_host" in finding.hint


@pytest.mark.parametrize(
    ("reached", "check"),
    [
        ({"neighbour": "open"}, Check.NEIGHBOUR),
        ({"neighbour": "refused"}, Check.NEIGHBOUR),
        ({"dns 127.0.0.11": "open"}, Check.NAMES),
        ({"proxy": "closed"}, Check.PROXY),
        ({"proxy": "refused"}, Check.PROXY),
    ],
)
def test_each_door_has_its_own_finding(reached, check):
    found = seen(reached)
    assert checks(found) == [check]


def test_a_proxy_that_does_not_listen_yet_is_left_out():
    found = seen()
    del found["reached"]["proxy"]
    assert checks(found, asked=plan(proxy_port=None)) == []


def test_an_address_of_the_new_internet_protocol_is_a_way_out():
    assert checks(seen(ipv6=True)) == [Check.WAY_OUT]


@pytest.mark.parametrize(
    "limits",
    [
        {"memory": "max", "pids": "64", "cpu": "100000 100000"},
        {"memory": str(2**60), "pids": "64", "cpu": "100000"},
        {"memory": str(2**27), "pids": "max", "cpu": "100000"},
        {"memory": str(2**27), "pids": "", "cpu": "100000"},
        {"memory": str(2**27), "pids": "64", "cpu": "-1"},
        {"memory": str(2**27), "pids": "64", "cpu": "max 100000"},
        {"open_files": ""},
        {"open_files": "1048576"},
        {"file_size": "2"},
    ],
)
def test_a_limit_that_is_not_in_force_is_a_finding(limits):
    assert checks(seen(limits={**seen()["limits"], **limits})) == [Check.LIMITS]


@pytest.mark.parametrize(
    "change",
    [
        {"root_read_only": False},
        {"tmp_writable": False},
        {"uid": 0},
        {"gid": 0},
        {"groups": [0, 11, 12]},
        {"groups": []},
        {"status": {}},
        {"status": {**seen()["status"], "CapBnd": "00000000a80425fb"}},
        {"status": {**seen()["status"], "NoNewPrivs": "0"}},
        {"status": {**seen()["status"], "Seccomp": "0"}},
        {"calls": {"io_setup": 0}},
        {"calls": {"io_setup": errno.EFAULT}},
        {"calls": {"ctypes": 0}},
    ],
)
def test_anything_less_closed_than_asked_is_a_finding(change):
    assert checks(seen(**change)) == [Check.HARDENING]


def test_what_the_operator_accepts_is_left_out():
    findings = tuple(Finding(check=check, text="", hint="") for check in (Check.HOST, Check.NAMES))
    assert [f.check for f in ProbeReport(findings).without(frozenset({Check.HOST})).findings] == [Check.NAMES]


def test_a_question_for_a_name_is_written_as_name_servers_read_it():
    assert dns_query("ab.invalid")[12:] == b"\x02ab\x07invalid\x00\x00\x01\x00\x01"


def test_what_was_opened_for_runs_must_be_open():
    found = seen({"gate 7482": "open", "gate 7490": "closed"})
    assert checks(found, asked=plan(gates=(7482,))) == []
    assert checks(found, asked=plan(gates=(7482, 7490))) == [Check.GATES]
