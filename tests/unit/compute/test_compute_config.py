"""The settings of the compute API: what is refused at its place, and what counts when nothing is said."""

from pathlib import Path

import pytest

from node_agent.config import Settings, load
from node_agent.config.compute import is_loopback, place_of_listener
from node_agent.config.machine import Kind
from node_agent.config.reloading import reread
from node_agent.config.showing import effective_settings
from node_agent.domain.assets import JobContract
from node_agent.domain.joboffer import AccessKind
from node_agent.errors import ConfigError
from tests.unit.test_config import PaperMachine

OWNER = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
DID = "did:op:" + "ab" * 32
DIGEST = "sha256:" + "0" * 64
REST = """
name: alpha
server: {url: https://server.example.org/api, api_key: key}
state_dir: /var/lib/alpha
databases:
- {label: patients, type: sql, uri: 'postgresql://h/db'}
- {label: visits, type: sql, uri: 'postgresql://h/other'}
"""
ALGORITHM = f"{{owner: '{OWNER}', image: x/mean, digest: '{DIGEST}'}}"
FILES = {"/file": Kind.FILE, "/folder": Kind.FOLDER, "/hidden": Kind.HIDDEN}


def load_with(compute: str, tmp_path: Path, *, more: str = "", **files: Kind) -> Settings:
    file = tmp_path / "alpha.yaml"
    file.write_text(f"{REST}{more}\ncompute_api: {compute}\n", encoding="utf-8")
    return load(file, machine=PaperMachine(FILES | files))


def faults(compute: str, tmp_path: Path, *, more: str = "") -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_with(compute, tmp_path, more=more)
    return caught.value.faults


def test_it_is_off_when_nothing_is_said(tmp_path: Path) -> None:
    compute = load_with("", tmp_path).compute_api
    assert (compute.listen, compute.access) == (None, AccessKind.DENY)
    assert (compute.environments, compute.data_sets, compute.algorithms) == ((), (), ())


def test_everything_said_is_taken(tmp_path: Path) -> None:
    compute = load_with(
        f"""
  listen: 127.0.0.1:8030
  access: addresses
  addresses: ['{OWNER}']
  environments: [{{id: small, cpus: 1, memory: 1GiB, disk: 1MiB, max_jobs: 1, max_job_time: 1m, keep_results: 1h}}]
  data_sets:
  - label: patients
    did: {DID}
    service_id: 7
    consumers: ['*']
    denied_consumers: ['{OWNER}']
    trusted_algorithms: [{{did: '*', files_checksum: '{"AB" * 32}'}}]
    trusted_publishers: ['*']
    raw_algorithms: true
    share_log: true
  algorithms:
  - {{owner: '{OWNER}', image: 'x/mean:1', digest: '{DIGEST}', contract: vantage6, code: /file}}
""",
        tmp_path,
    ).compute_api
    data_set, algorithm, environment = compute.data_sets[0], compute.algorithms[0], compute.environments[0]
    assert compute.addresses == (OWNER.lower(),)
    assert (data_set.did, data_set.service_id, data_set.consumers) == (DID, "7", ("*",))
    assert data_set.trusted_algorithms[0].files_checksum == "ab" * 32
    assert (algorithm.owner, algorithm.contract) == (OWNER.lower(), JobContract.VANTAGE6)
    assert (environment.memory, environment.max_job_time, environment.keep_results) == (2**30, 60, 3600)


FAULTS = [
    ("{listen: 127.0.0.1}", "compute_api.listen", "is not address:port"),
    ("{listen: 'example.org:80'}", "compute_api.listen", "is not address:port"),
    ("{listen: '300.1.1.1:80'}", "compute_api.listen", "is not address:port"),
    ("{listen: '127.0.0.1:0'}", "compute_api.listen", "is not address:port"),
    ("{listen: '127.0.0.1:70000'}", "compute_api.listen", "is not address:port"),
    ("{listen: '[::1]:7480', access: x}", "compute_api.access", "is not one of deny"),
    ("{listen: 10.0.0.1:80}", "compute_api.tls", "needs a certificate"),
    ("{listen: 0.0.0.0:80}", "compute_api.tls", "needs a certificate"),
    ("{listen: '[::]:80'}", "compute_api.tls", "needs a certificate"),
    ("{tls: {certificate: /none, key: /file}}", "compute_api.tls.certificate", "is no file"),
    ("{tls: {certificate: /folder, key: /file}}", "compute_api.tls.certificate", "is no file"),
    ("{tls: {certificate: /file}}", "compute_api.tls.key", "is missing"),
    ("{access: command}", "compute_api.command", "is missing"),
    ("{access: callback}", "compute_api.callback", "is missing"),
    ("{callback: 'http://example.org/ask'}", "compute_api.callback", "must begin with https://"),
    ("{callback: 'ftp://example.org/ask'}", "compute_api.callback", "must begin with https://"),
    ("{callback: 'https://u:p@example.org/'}", "compute_api.callback", "no user name or password"),
    ("{addresses: ['0x12']}", "compute_api.addresses[0]", "is not an address"),
    (f"{{addresses: [{OWNER}]}}", "compute_api.addresses[0]", "put it in quotes"),
    (f"{{addresses: ['{OWNER}', '{OWNER}']}}", "compute_api.addresses", "the same entry twice"),
    ("{environments: [{id: a b}]}", "compute_api.environments[0].id", "is not a name"),
    ("{environments: [{id: a}, {id: a}]}", "compute_api.environments", "two entries of the same id"),
    (
        "{environments: [{id: a, keep_results: 1s}]}",
        "compute_api.environments[0].keep_results",
        "at least 1m",
    ),
    (
        "{environments: [{id: a, cpus: 3}]}",
        "compute_api.environments[0].cpus",
        "is 3.0, more than limits.cpus (2.0)",
    ),
    ("{environments: [{id: a, memory: 5GiB}]}", "compute_api.environments[0].memory", "limits.memory (4GiB)"),
    (
        "{environments: [{id: a, disk: 2GiB}]}",
        "compute_api.environments[0].disk",
        "limits.output_size (1GiB)",
    ),
    ("{environments: [{id: a, max_jobs: 9}]}", "compute_api.environments[0].max_jobs", "concurrent_runs (4)"),
    (
        "{environments: [{id: a, max_job_time: 25h}]}",
        "compute_api.environments[0].max_job_time",
        "is 25h, more than limits.run_time (1d)",
    ),
    ("{data_sets: [{label: patience}]}", "compute_api.data_sets[0].label", 'did you mean "patients"?'),
    ("{data_sets: [{label: patients, did: x}]}", "compute_api.data_sets[0].did", "is not a DID"),
    (
        f"{{data_sets: [{{label: patients, did: '{DID.upper()}'}}]}}",
        "compute_api.data_sets[0].did",
        "is not a DID",
    ),
    (
        f"{{data_sets: [{{label: patients, did: '{DID}'}}, {{label: visits, did: '{DID}'}}]}}",
        "compute_api.data_sets[1].did",
        "has the DID that compute_api.data_sets[0] has",
    ),
    (
        "{data_sets: [{label: patients}, {label: patients}]}",
        "compute_api.data_sets[1]",
        "give one of the two a did of its own",
    ),
    (
        f"{{algorithms: [{ALGORITHM}, {ALGORITHM}]}}",
        "compute_api.algorithms[1]",
        "has the DID that compute_api.algorithms[0] has",
    ),
    (
        f"{{data_sets: [{{label: patients, trusted_algorithms: [{{did: '{DID}', files_checksum: ab}}]}}]}}",
        "compute_api.data_sets[0].trusted_algorithms[0].files_checksum",
        "is not a checksum",
    ),
    (
        f"{{algorithms: [{{owner: '*', image: x/mean, digest: '{DIGEST}'}}]}}",
        "compute_api.algorithms[0].owner",
        "is not an address",
    ),
    (
        f"{{algorithms: [{{owner: '{OWNER}', image: 'x mean', digest: '{DIGEST}'}}]}}",
        "compute_api.algorithms[0].image",
        "is not an image reference",
    ),
    (
        f"{{algorithms: [{{owner: '{OWNER}', image: 'x/mean@{DIGEST}', digest: '{DIGEST}'}}]}}",
        "compute_api.algorithms[0].image",
        "has a digest in it",
    ),
    (
        f"{{algorithms: [{{owner: '{OWNER}', image: x/mean, digest: 'sha256:12'}}]}}",
        "compute_api.algorithms[0].digest",
        "is not a digest",
    ),
    (
        f"{{algorithms: [{{owner: '{OWNER}', image: x/mean, digest: '{DIGEST}', code: /none}}]}}",
        "compute_api.algorithms[0].code",
        "is no file that the agent can reach (missing)",
    ),
    (
        f"{{algorithms: [{{owner: '{OWNER}', image: x/mean, digest: '{DIGEST}', code: /folder}}]}}",
        "compute_api.algorithms[0].code",
        "(a folder)",
    ),
    (
        f"{{algorithms: [{{owner: '{OWNER}', image: x/mean, digest: '{DIGEST}', code: /hidden}}]}}",
        "compute_api.algorithms[0].code",
        "(hidden)",
    ),
]


@pytest.mark.parametrize(("compute", "place", "text"), FAULTS)
def test_a_fault_is_told_at_its_place(compute: str, place: str, text: str, tmp_path: Path) -> None:
    (fault,) = faults(compute, tmp_path)
    assert fault.startswith(f"{place} (line ") or (place.endswith((".tls", ".command", ".callback", ".key")))
    assert fault.partition(":")[0].partition(" ")[0] == place
    assert text in fault


def test_a_listener_on_every_address_leaves_the_port_of_the_proxy_alone(tmp_path: Path) -> None:
    (fault,) = faults("{listen: '0.0.0.0:7480', tls: {certificate: /file, key: /file}}", tmp_path)
    assert "compute_api.listen" in fault
    assert "network.proxy_port" in fault


def test_what_does_not_fit_together_is_told_beside_faults_of_other_parts(tmp_path: Path) -> None:
    found = faults(
        "{data_sets: [{label: nothing}], environments: [{id: a, memory: 2GiB}]}",
        tmp_path,
        more="limits: {memory: 1GiB}\nlogging: {level: loud}",
    )
    assert [fault.partition(" ")[0] for fault in found] == [
        "logging.level",
        "compute_api.data_sets[0].label",
        "compute_api.environments[0].memory",
    ]


@pytest.mark.parametrize(
    "compute",
    [
        "{listen: 127.0.0.1:8030}",
        "{listen: localhost:8030}",
        "{listen: '[::1]:8030'}",
        "{listen: 127.5.5.5:8030}",
        "{listen: '0.0.0.0:8030', tls: {certificate: /file, key: /file}}",
        "{access: callback, callback: 'http://127.0.0.1:9/ask'}",
        "{access: callback, callback: 'https://example.org/ask', callback_ca_bundle: /file}",
        "{access: command, command: /anything}",
    ],
)
def test_what_is_right_is_taken(compute: str, tmp_path: Path) -> None:
    assert load_with(compute, tmp_path).compute_api


def test_a_place_is_taken_apart() -> None:
    assert place_of_listener("127.0.0.1:80") == ("127.0.0.1", 80)
    assert place_of_listener("[::1]:8030") == ("::1", 8030)
    assert not is_loopback("127.0.0.1.:80")
    assert not is_loopback("[::]:80")


def test_a_change_needs_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "alpha.yaml"
    text = REST.replace("api_key: key", "api_key: key") + "compute_api: {listen: '127.0.0.1:8030'}\n"
    file.write_text(text, encoding="utf-8")
    running = load(file)
    file.write_text(text.replace("8030", "8031"), encoding="utf-8")
    found = reread(running)
    assert (found.taken, found.left) == ((), ("compute_api.listen",))
    assert found.settings.compute_api.listen == "127.0.0.1:8030"


def test_it_is_shown_with_what_counts(tmp_path: Path) -> None:
    file = tmp_path / "alpha.yaml"
    file.write_text(
        f"{REST}\ncompute_api: {{environments: [{{id: small, memory: 1GiB}}], algorithms: [{ALGORITHM}]}}\n",
        encoding="utf-8",
    )
    shown = effective_settings(file)
    assert shown["compute_api.environments[0].memory"] == "1GiB"
    assert shown["compute_api.environments[0].keep_results"] == "7d"
    assert shown["compute_api.algorithms[0].contract"] == "ocean"
    assert shown["compute_api.access"] == "deny"
