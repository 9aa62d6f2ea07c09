import json

import pytest

from node_agent.runtime import seccomp
from node_agent.runtime.spec import EngineTraits
from node_agent.runtime.traits import docker_traits, podman_traits

PROFILE = json.loads(seccomp.PROFILE.read_text())
CLOSED = (
    *(
        "io_setup",
        "io_submit",
        "io_getevents",
        "io_destroy",
        "add_key",
        "keyctl",
        "request_key",
        "userfaultfd",
    ),
    *(
        "bpf",
        "perf_event_open",
        "kexec_load",
        "init_module",
        "finit_module",
        "swapon",
        "reboot",
        "acct",
        "iopl",
    ),
    *("pivot_root", "uselib", "move_pages", "modify_ldt", "lookup_dcookie", "memfd_secret"),
)
NEED_A_CAPABILITY = (
    "mount",
    "unshare",
    "setns",
    "open_by_handle_at",
    "chroot",
    "clock_settime",
    "syslog",
    "quotactl",
)


def rules(name):
    return [rule for rule in PROFILE["syscalls"] if name in rule["names"]]


def allowed_families(name):
    return {
        (rule["args"][0]["value"], *(arg["value"] for arg in rule["args"][1:]))
        for rule in rules(name)
        if "includes" not in rule
    }


def test_what_the_profile_does_not_name_is_refused():
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {rule["action"] for rule in PROFILE["syscalls"]} == {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}


@pytest.mark.parametrize("name", CLOSED)
def test_calls_that_no_algorithm_needs_are_closed_to_everybody(name):
    assert rules(name) == []


@pytest.mark.parametrize("name", NEED_A_CAPABILITY)
def test_calls_that_act_on_the_machine_need_a_capability(name):
    assert rules(name)
    assert all(rule["includes"]["caps"] for rule in rules(name))


@pytest.mark.parametrize("name", ["io_uring_setup", "clone3"])
def test_libraries_are_told_that_a_call_does_not_exist_where_they_have_another_way(name):
    refused = next(rule for rule in rules(name) if rule["action"] == "SCMP_ACT_ERRNO")
    assert refused["errnoRet"] == 38


def test_only_families_of_sockets_that_the_firewall_knows_can_be_made():
    assert allowed_families("socket") == {(1,), (2,), (10,), (16, 0)}
    assert allowed_families("socketpair") == {(1,)}


def test_programs_of_another_word_length_are_refused_since_their_calls_have_other_numbers():
    assert all(entry["subArchitectures"] == [] for entry in PROFILE["archMap"])


def test_no_call_is_listed_twice_in_one_rule_and_every_rule_says_why_it_is_there():
    for rule in PROFILE["syscalls"]:
        assert len(set(rule["names"])) == len(rule["names"])
        assert rule["comment"]


def test_a_docker_engine_gets_the_profile_and_podman_gets_the_name_of_its_file():
    assert docker_traits({}).seccomp == seccomp.inline_option()
    assert docker_traits({"SecurityOptions": ["name=seccomp,profile=default"]}).seccomp
    assert podman_traits({}).seccomp == f"seccomp={seccomp.PROFILE}"
    assert EngineTraits().seccomp == seccomp.inline_option()


def test_an_engine_that_cannot_filter_calls_is_not_asked_to_and_the_probe_finds_it():
    assert docker_traits({"SecurityOptions": ["name=apparmor"]}).seccomp == ""
    assert podman_traits({"security": {"seccompEnabled": False}}).seccomp == ""


def test_the_inline_profile_is_the_file_without_its_comments():
    inline = json.loads(seccomp.inline_option().removeprefix("seccomp="))
    assert inline == {
        **PROFILE,
        "syscalls": [{k: v for k, v in rule.items() if k != "comment"} for rule in PROFILE["syscalls"]],
    }


def test_profiles_are_compared_by_content():
    assert seccomp.comparable('seccomp={"a": 1, "b": 2}') == seccomp.comparable('seccomp:{"b":2,"a":1}')
    assert seccomp.comparable('seccomp={"a": 1}') != seccomp.comparable('seccomp={"a": 2}')
    assert seccomp.comparable("seccomp=unconfined") == "seccomp=unconfined"
    assert seccomp.comparable("no-new-privileges") == "no-new-privileges"
