import copy

import pytest

from node_agent.domain.container import ContainerLimits, ContainerSpec, Mount, NetworkFacts
from node_agent.domain.run import ContainerId, RunId
from node_agent.runtime import seccomp
from node_agent.runtime.spec import (
    EngineTraits,
    ImageFacts,
    container_config,
    differences,
    image_facts,
    joined_namespace,
)

NETWORK = NetworkFacts(
    id="n", name="node-agent-alpha", bridge="na-1", subnet="10.213.1.0/24", gateway="10.213.1.1"
)
LIMITS = ContainerLimits(cpus=1.5, memory=1000, pids=7, tmp_size=500, file_size=300)


def spec(**changes):
    asked = {
        "name": "node-agent-alpha-run-1",
        "run_id": RunId(1),
        "image_id": "sha256:1",
        "user": (10, 11),
        "groups": (12,),
        "environment": {"A": "secret"},
        "mounts": (
            Mount("/host/run", "/mnt/data", read_only=False),
            Mount("/srv/x.csv", "/mnt/x.csv", read_only=True),
        ),
        "limits": LIMITS,
    }
    return ContainerSpec(**{**asked, **changes})


def config(**changes):
    return container_config(
        spec(**changes),
        agent="alpha",
        network=NETWORK,
        image=ImageFacts(("/var/cache/", "/tmp", "/mnt/data")),
    )


def engine_says(asked):
    """What an honest engine answers when asked about the container it made."""
    host = copy.deepcopy(asked["HostConfig"])
    mounts = [
        {
            "Type": mount["Type"],
            "Source": mount.get("Source", ""),
            "Destination": mount["Target"],
            "RW": not mount.get("ReadOnly", False),
        }
        for mount in host["Mounts"]
    ]
    return {
        "Image": asked["Image"],
        "Config": {
            "User": asked.get("User", ""),
            "Env": [*asked["Env"], "PATH=/usr/bin"],
            "Labels": {**asked["Labels"], "of": "the image"},
            "Entrypoint": asked.get("Entrypoint", ["run"]),
            "Tty": False,
        },
        "HostConfig": {**host, "CgroupnsMode": "private", "Binds": None, "PortBindings": {}},
        "NetworkSettings": {"Networks": {NETWORK.name: {}}},
        "Mounts": mounts,
    }


def test_a_container_gets_nothing_that_was_not_asked_for():
    host = config()["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == []
    assert host["SecurityOpt"] == ["no-new-privileges", seccomp.inline_option()]
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["NetworkMode"] == NETWORK.name
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["AutoRemove"] is False
    assert host["Devices"] == []


def test_a_container_that_joins_a_namespace_has_no_network_and_no_names_of_its_own():
    own, joined = config(), config(namespace=ContainerId("holder"))
    assert joined["HostConfig"]["NetworkMode"] == "container:holder"
    assert "NetworkingConfig" not in joined
    of_the_network = {"NetworkMode", "Dns", "DnsSearch", "DnsOptions", "ExtraHosts"}
    assert own["HostConfig"].keys() - joined["HostConfig"].keys() == of_the_network - {"NetworkMode"}
    for key in own["HostConfig"].keys() - of_the_network:
        assert joined["HostConfig"][key] == own["HostConfig"][key]


def test_a_container_in_another_namespace_than_asked_is_refused():
    asked = config(namespace=ContainerId("holder"))
    made = engine_says(asked)
    made["NetworkSettings"] = {"Networks": {}}
    assert differences(asked, made) == []
    assert joined_namespace(made) == "holder"
    made["HostConfig"]["NetworkMode"] = "host"
    assert differences(asked, made) == ["the network is host instead of container:holder"]
    assert joined_namespace(made) is None


def test_a_container_that_joined_and_has_a_network_besides_is_refused():
    asked = config(namespace=ContainerId("holder"))
    assert len(differences(asked, engine_says(asked))) == 1


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"series": ""}, False),
        ({"writable_root": True}, False),
        ({"capabilities": ("NET_RAW",)}, False),
        ({"user": None}, False),
        ({"hosts": {"wiki": "10.0.0.1"}}, False),
        ({"gateway_names": ("db",)}, False),
        ({"address": "10.213.1.9"}, False),
    ],
)
def test_only_a_run_without_rights_and_names_of_its_own_may_join(changes, may):
    assert spec(**{"series": "average for me", **changes}).may_join is may


def test_the_limits_are_set_and_swap_gives_no_more_memory():
    host = config()["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (1000, 1000)
    assert host["NanoCpus"] == 1_500_000_000
    assert host["PidsLimit"] == 7
    assert {(u["Name"], u["Soft"], u["Hard"]) for u in host["Ulimits"]} == {
        ("nofile", 4096, 4096),
        ("fsize", 300, 300),
        ("core", 0, 0),
    }
    assert "size=500" in host["Tmpfs"]["/tmp"]


def test_an_engine_that_cannot_limit_swap_is_not_asked_to():
    asked = container_config(spec(), agent="alpha", network=NETWORK, traits=EngineTraits(limits_swap=False))
    assert "MemorySwap" not in asked["HostConfig"]


def test_only_the_proxy_has_a_name():
    host = config()["HostConfig"]
    assert host["ExtraHosts"] == ["proxyserver:10.213.1.1"]
    assert host["Dns"] == ["127.0.0.1"]


def test_home_can_be_written_unless_the_task_says_otherwise():
    assert "HOME=/tmp" in config()["Env"]
    assert config(environment={"HOME": "/mnt/data"})["Env"] == ["HOME=/mnt/data"]


def test_a_volume_of_the_image_is_memory_unless_something_is_mounted_there():
    tmpfs = [mount for mount in config()["HostConfig"]["Mounts"] if mount["Type"] == "tmpfs"]
    assert [(mount["Target"], mount["TmpfsOptions"]["SizeBytes"]) for mount in tmpfs] == [("/var/cache", 500)]


def test_the_user_of_the_image_stays_only_when_asked_for():
    assert config()["User"] == "10:11"
    assert "User" not in config(user=None)


def test_a_probe_is_labelled_without_a_run():
    assert config(run_id=None)["Labels"] == {"node-agent.name": "alpha", "node-agent.probe": "true"}
    assert config()["Labels"] == {"node-agent.name": "alpha", "node-agent.run": "1"}


def test_labels_of_ours_that_an_image_brings_are_emptied():
    brought = {
        "node-agent.keeper": "namespace",
        "node-agent.run": "9",
        "node-agent.other": "x",
        "author": "somebody",
    }
    facts = image_facts({"Config": {"Labels": brought, "Volumes": {"/var/cache": {}}}})
    assert facts.volumes == ("/var/cache",)
    asked = container_config(spec(), agent="alpha", network=NETWORK, image=facts)
    assert asked["Labels"] == {
        "node-agent.name": "alpha",
        "node-agent.run": "1",
        "node-agent.keeper": "",
        "node-agent.other": "",
    }


def test_a_container_that_is_as_asked_has_no_differences():
    assert differences(config(), engine_says(config())) == []
    relaxed = config(user=None, writable_root=True, capabilities=("NET_BIND_SERVICE",), command=("x",))
    assert differences(relaxed, engine_says(relaxed)) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("Privileged", True),
        ("CapDrop", []),
        ("CapAdd", ["SYS_ADMIN"]),
        ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
        ("SecurityOpt", ["no-new-privileges"]),
        ("SecurityOpt", ["no-new-privileges", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']),
        ("ReadonlyRootfs", False),
        ("GroupAdd", ["12", "0"]),
        ("IpcMode", "host"),
        ("PidMode", "host"),
        ("UTSMode", "host"),
        ("UsernsMode", "host"),
        ("CgroupnsMode", "host"),
        ("Devices", [{"PathOnHost": "/dev/sda"}]),
        ("DeviceRequests", [{"Count": -1}]),
        ("DeviceCgroupRules", ["a *:* rwm"]),
        ("OomKillDisable", True),
        ("Memory", 0),
        ("MemorySwap", -1),
        ("NanoCpus", 0),
        ("PidsLimit", None),
        ("Ulimits", None),
        ("Tmpfs", None),
        ("NetworkMode", "host"),
        ("Dns", []),
        ("DnsSearch", ["example.org"]),
        ("ExtraHosts", None),
        ("PortBindings", {"80/tcp": [{}]}),
        ("PublishAllPorts", True),
        ("Links", ["a:b"]),
        ("Binds", ["/:/host"]),
        ("VolumesFrom", ["other"]),
        ("Sysctls", {"net.ipv4.ip_forward": "1"}),
        ("LogConfig", {"Type": "none", "Config": {}}),
        ("RestartPolicy", {"Name": "always"}),
        ("AutoRemove", True),
    ],
)
def test_a_setting_that_is_not_as_asked_is_noticed(setting, value):
    found = engine_says(config())
    found["HostConfig"][setting] = value
    assert len(differences(config(), found)) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("CapAdd", None),
        ("Devices", None),
        ("SecurityOpt", ["no-new-privileges:true", seccomp.inline_option()]),
        ("SecurityOpt", [seccomp.inline_option().replace(",", ", "), "no-new-privileges"]),
        ("CapDrop", ["CAP_ALL"]),
        ("OomKillDisable", None),
    ],
)
def test_other_ways_of_saying_the_same_are_no_difference(setting, value):
    found = engine_says(config())
    found["HostConfig"][setting] = value
    assert differences(config(), found) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Image": "sha256:2"}, "the image"),
        ({"Mounts": []}, "mount at /mnt/data"),
        ({"NetworkSettings": {"Networks": {NETWORK.name: {}, "bridge": {}}}}, "the networks"),
        ({"NetworkSettings": {"Networks": {}}}, "the networks"),
    ],
)
def test_another_image_mount_or_network_is_noticed(change, words):
    assert any(words in text for text in differences(config(), {**engine_says(config()), **change}))


def test_a_database_that_could_be_written_is_noticed():
    found = engine_says(config())
    next(m for m in found["Mounts"] if m["Destination"] == "/mnt/x.csv")["RW"] = True
    assert any("/mnt/x.csv" in text for text in differences(config(), found))


def test_a_volume_that_appeared_by_itself_is_noticed():
    found = engine_says(config())
    found["Mounts"].append({"Type": "volume", "Destination": "/data", "Source": "/var/lib", "RW": True})
    assert differences(config(), found) == ["there is a mount at /data that was not asked for"]


@pytest.mark.parametrize(("key", "value"), [("User", "0:0"), ("Tty", True), ("Labels", {})])
def test_another_user_or_label_is_noticed(key, value):
    found = engine_says(config())
    found["Config"][key] = value
    assert len(differences(config(), found)) == 1


def test_a_variable_that_differs_is_named_without_its_value():
    found = engine_says(config())
    found["Config"]["Env"] = ["A=other", "HOME=/tmp"]
    assert differences(config(), found) == ["the variable A is not as asked"]


def test_names_for_our_side_of_the_network_cannot_be_given_another_meaning():
    hosts = config(gateway_names=("omop",), hosts={"omop": "192.0.2.1", "other": "192.0.2.2"})
    assert sorted(hosts["HostConfig"]["ExtraHosts"]) == [
        f"omop:{NETWORK.gateway}",
        "other:192.0.2.2",
        f"proxyserver:{NETWORK.gateway}",
    ]


def test_gpus_are_asked_for_only_when_the_owner_gives_them():
    assert "DeviceRequests" not in config()["HostConfig"]
    (request,) = config(gpus=True)["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])


@pytest.mark.parametrize(
    ("asked", "made", "same"),
    [
        (
            True,
            [{"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}],
            True,
        ),
        (False, [], True),
        (True, None, False),
        (True, [{"Count": 1, "Capabilities": [["gpu"]]}], False),
        (False, [{"Count": -1, "Capabilities": [["gpu"]]}], False),
    ],
)
def test_an_engine_that_hands_in_other_gpus_than_asked_is_noticed(asked, made, same):
    wanted = config(gpus=asked)
    found = engine_says(wanted)
    found["HostConfig"]["DeviceRequests"] = made
    assert (differences(wanted, found) == []) is same


def test_hosts_of_the_owner_have_names_but_never_the_proxys():
    hosts = config(hosts={"db": "192.0.2.7", "proxyserver": "192.0.2.8"})["HostConfig"]["ExtraHosts"]
    assert set(hosts) == {"db:192.0.2.7", f"proxyserver:{NETWORK.gateway}"}
