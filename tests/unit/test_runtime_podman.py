"""Podman's words in Docker's, and what is asked of engines that enforce less."""

import os
from dataclasses import replace

import pytest

from node_agent.domain.container import ContainerLimits, ContainerSpec, Mount, NetworkFacts
from node_agent.runtime import podman, probe_inside
from node_agent.runtime.firewall import bridge_name
from node_agent.runtime.network import network_faults
from node_agent.runtime.spec import container_config, differences
from node_agent.runtime.traits import docker_traits, podman_traits

BRIDGE = bridge_name("alpha")
NETWORK = NetworkFacts(
    id="n", name="node-agent-alpha", bridge=BRIDGE, subnet="10.213.7.0/24", gateway="10.213.7.1"
)
LIMITS = ContainerLimits(cpus=1, memory=2**27, pids=64, tmp_size=2**20, file_size=2**20)
SPEC = ContainerSpec(
    name="node-agent-alpha-run-1",
    run_id=None,
    image_id="sha256:1",
    user=(10, 11),
    groups=(12,),
    environment={},
    mounts=(Mount("/srv/data", "/mnt/data", read_only=True),),
    limits=LIMITS,
)
ROOTLESS_V1 = {"cgroupVersion": "v1", "cgroupControllers": [], "security": {"rootless": True}}
ROOTLESS_V2 = {
    "cgroupVersion": "v2",
    "cgroupControllers": ["cpu", "memory", "pids"],
    "security": {"rootless": True},
}


def podman_network(**changes):
    return {
        "name": "node-agent-alpha",
        "id": "n",
        "driver": "bridge",
        "network_interface": BRIDGE,
        "subnets": [{"subnet": "10.213.7.0/24", "gateway": "10.213.7.1"}],
        "ipv6_enabled": False,
        "internal": True,
        "dns_enabled": False,
        "labels": {"node-agent.name": "alpha"},
        **changes,
    }


def faults(found):
    options = podman.network_options(BRIDGE)
    return network_faults(podman.in_docker_words(found), agent="alpha", subnet=None, options=options)


def test_a_network_of_podman_that_is_as_it_must_be_has_no_faults():
    assert faults(podman_network()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"dns_enabled": True},
        {"network_interface": "podman1"},
        {"internal": False},
        {"ipv6_enabled": True},
        {"labels": {}},
        {"labels": None},
        {"subnets": None},
        {"driver": "macvlan"},
        {"options": {"mtu": "9000"}},
    ],
)
def test_a_network_of_podman_that_is_not_as_it_must_be_is_named(change):
    assert len(faults(podman_network(**change))) == 1


def asked(traits):
    return container_config(SPEC, agent="alpha", network=NETWORK, traits=traits)


def as_podman_tells(config):
    """What Podman 4.3.1 says of a container it made as it was asked to."""
    host = config["HostConfig"]
    return {
        "Id": "c",
        "Image": config["Image"],
        "Config": {key: config.get(key) for key in ("User", "Entrypoint", "Labels", "Env")},
        "HostConfig": {
            **host,
            "CapDrop": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "IpcMode": "shareable",
            "PidMode": "private",
            "UTSMode": "private",
            "NetworkMode": "bridge",
            "Sysctls": None,
            "Tmpfs": {path: f"{options},rprivate,tmpcopyup" for path, options in host["Tmpfs"].items()},
            "Binds": ["/srv/data:/mnt/data:ro,rprivate,bind"],
            "LogConfig": {"Type": "json-file", "Config": None},
        },
        "Mounts": [{"Type": "bind", "Source": "/srv/data", "Destination": "/mnt/data", "RW": False}],
        "NetworkSettings": {"Networks": {NETWORK.name: {}}},
    }


OWN = {"BoundingCaps": None, "HostConfig": {"LogConfig": {"Size": "100MB"}}}


def seen_differences(*, found=None, own=None, host=None):
    config = asked(podman_traits(ROOTLESS_V2))
    told = {**as_podman_tells(config), **(found or {})}
    told["HostConfig"] = {**told["HostConfig"], **(host or {})}
    return differences(config, podman.container_in_docker_words(told, own or OWN))


def test_a_container_that_podman_made_as_asked_shows_no_difference():
    assert seen_differences() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"own": {**OWN, "BoundingCaps": ["CAP_KILL"]}}, "dropped capabilities"),
        ({"own": {"HostConfig": OWN["HostConfig"]}}, "dropped capabilities"),
        ({"own": {"BoundingCaps": []}}, "log settings"),
        ({"host": {"IpcMode": "host"}}, "IPC namespace"),
        ({"host": {"PidMode": "host"}}, "PID namespace"),
        ({"host": {"NetworkMode": "host"}}, "the network is"),
        ({"host": {"Binds": ["/etc:/mnt/etc:ro"]}}, "bind list"),
        ({"host": {"Memory": 0}}, "memory limit"),
        ({"host": {"Tmpfs": {"/tmp": "rw"}}}, "memory file systems"),
        ({"found": {"NetworkSettings": {"Networks": {NETWORK.name: {}, "podman": {}}}}}, "networks are"),
    ],
)
def test_a_container_that_podman_made_otherwise_is_named(change, words):
    assert any(words in difference for difference in seen_differences(**change))


def test_a_limit_the_engine_says_it_cannot_enforce_is_not_asked_for():
    host = asked(podman_traits(ROOTLESS_V1))["HostConfig"]
    assert not {"Memory", "MemorySwap", "NanoCpus", "PidsLimit", "Ulimits"} & host.keys()
    host = asked(podman_traits(ROOTLESS_V2))["HostConfig"]
    assert (host["Memory"], host["PidsLimit"]) == (LIMITS.memory, LIMITS.pids)


def test_podman_with_root_lists_no_controllers_and_has_all_of_them():
    traits = podman_traits({**ROOTLESS_V1, "security": {"rootless": False}})
    assert traits.unenforced == {"ulimits"}


def test_a_docker_engine_is_taken_at_its_word_about_what_it_cannot_do():
    assert docker_traits({"MemoryLimit": False, "PidsLimit": True}).unenforced == {"memory"}
    assert docker_traits({}).unenforced == frozenset()


def test_folders_that_podman_makes_writable_in_memory_are_bounded():
    sizes = asked(podman_traits(ROOTLESS_V2))["HostConfig"]["Tmpfs"]
    assert set(sizes) == {"/tmp", "/run", "/var/tmp"}
    assert all(f"size={LIMITS.tmp_size}," in options for options in sizes.values())


def test_ipv6_is_switched_off_where_the_engine_does_not_do_it_by_itself():
    assert "net.ipv6.conf.all.disable_ipv6" in asked(podman_traits(ROOTLESS_V2))["HostConfig"]["Sysctls"]
    assert "Sysctls" not in asked(replace(docker_traits({}), limits_swap=False))["HostConfig"]


# --- what the probe believes ----------------------------------------------------------------------------------


def cgroup(root, *, members):
    folder = root / "pids"
    folder.mkdir()
    (folder / "pids.max").write_text("64\n")
    (folder / "cgroup.procs").write_text(members)
    return probe_inside.limits(str(root))["pids"]


def test_a_limit_counts_when_this_process_is_in_its_group(tmp_path):
    assert cgroup(tmp_path, members=f"1\n{os.getpid()}\n") == "64"


def test_a_limit_of_somebody_elses_group_is_no_limit(tmp_path):
    assert cgroup(tmp_path, members="1\n") == ""
