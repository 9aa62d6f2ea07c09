"""What the owner gives algorithms beyond the contract: GPUs, the description of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from node_agent.config import ImageSettings, ServerSettings, Settings
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.gpu import gets_gpus
from node_agent.domain.runcontext import run_context
from node_agent.domain.secret import Secret
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import StartFailed
from node_agent.imagechecks import check_logins, judge_gpus
from node_agent.runtime.connection import EngineConnection
from tests.doubles.core import DIGEST, make_run, make_task

TABLE = Database(label="default", type=DatabaseType.CSV, uri="/srv/patients.csv")
SERVICE = Database(label="study", type=DatabaseType.SQL, uri="postgresql://u:hidden@h/db")
FOLDER = Database(label="scans", type=DatabaseType.FOLDER, uri="/srv/scans")


@pytest.mark.parametrize(
    ("pattern", "reference", "expected"),
    [
        ("registry.example.org/deep/*", "registry.example.org/deep/net:3", True),
        ("registry.example.org/deep/*", "registry.example.org/deeper/net:3", False),
        ("registry.example.org/deep/*", "evil.example/registry.example.org/deep/net", False),
        (f"registry.example.org/deep/net@{DIGEST}", "registry.example.org/deep/net:3", True),
        (f"registry.example.org/deep/net@{'sha256:' + 'b' * 64}", "registry.example.org/deep/net:3", False),
        ("*", "not an image", False),
    ],
)
def test_gpus_go_to_the_images_the_owner_names(pattern: str, reference: str, *, expected: bool) -> None:
    assert gets_gpus(reference, [pattern], digest=DIGEST) is expected


def test_nobody_gets_gpus_unless_the_owner_says_so() -> None:
    assert not gets_gpus("registry.example.org/deep/net:3", [], digest=DIGEST)


def test_check_warns_when_gpus_are_promised_that_the_engine_cannot_hand_in() -> None:
    assert judge_gpus({"Runtimes": {"runc": {}}}, []) == []
    assert [str(result.verdict) for result in judge_gpus({"Runtimes": {"runc": {}}}, ["a/*"])] == ["warning"]
    assert [str(result.verdict) for result in judge_gpus({"Runtimes": {"nvidia": {}}}, ["a/*"])] == ["ok"]


def described(content: object, *requests: DatabaseRequest) -> Any:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    run = make_run(12, task=make_task(3, databases=requests))
    made = run_context(run, text, databases=[TABLE, SERVICE, FOLDER], node_id=4, proxy_port=7480)
    return json.loads(made)


def nested(depth: int) -> bytes:
    return b'{"method": "average", "args": ' + b"[" * depth + b"]" * depth + b"}"


def test_an_input_may_nest_as_deep_as_anybody_writes() -> None:
    assert described(nested(99))["entrypoint"] == {"name": "average"}


@pytest.mark.parametrize("depth", [100, 600, 900, 5_000, 60_000, 1_000_000])
def test_an_input_that_nests_too_deeply_fails_the_run_and_not_the_agent(depth: int) -> None:
    with pytest.raises(StartFailed):
        described(nested(depth))


def test_a_run_is_described_in_the_recorded_form() -> None:
    asked = {"method": "average", "args": [1], "kwargs": {"column": "age"}}
    request = DatabaseRequest(label="default", query="not told", arguments={"depth": 2})
    assert described(asked, request) == {
        "schema_version": "0.1",
        "entrypoint": {"name": "average"},
        "arguments": {"positional": [1], "named": {"column": "age"}},
        "executor": {"id": 4, "kind": "vantage6-node"},
        "inputs": [
            {"id": "default", "uri": "/mnt/default.csv", "type": "csv", "arguments": {"depth": 2}},
        ],
        "outputs": [{"id": "result", "uri": "/mnt/data/task-000000012/output"}],
        "x-vantage6": {
            "run_id": 12,
            "task_id": 3,
            "collaboration_id": 1,
            "token_file": "/mnt/data/task-000000012/token",
            "api_proxy": {"host": "http://proxyserver", "port": "7480", "api_path": ""},
            "temporary_directory": "/mnt/tmp",
        },
    }


def test_what_the_input_leaves_out_is_empty() -> None:
    made = described({"method": "average"})
    assert made["arguments"] == {"positional": [], "named": {}}
    assert made["inputs"] == []


@pytest.mark.parametrize("label", ["study", "scans"])
def test_a_run_that_asks_for_more_than_files_cannot_be_described(label: str) -> None:
    with pytest.raises(StartFailed, match=f"'{label}' is none.*switch run_context_file off") as failure:
        described({"method": "average"}, DatabaseRequest(label=label))
    assert "hidden" not in str(failure.value)


@pytest.mark.parametrize("content", [b"hello", b"\xff", b"[" * 100_000])
def test_an_input_that_is_no_json_cannot_be_described(content: bytes) -> None:
    with pytest.raises(StartFailed, match="not JSON"):
        described(content)


# --- what check says of logins --------------------------------------------------------------------------------


def test_check_says_what_is_wrong_with_dockers_configuration_before_any_registry_is_asked(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.json"
    settings = Settings(
        name="alpha",
        server=ServerSettings(url="https://server.example.org/api", api_key=Secret("key")),
        state_dir=tmp_path,
        images=ImageSettings(docker_config=file),
    )
    connection = EngineConnection(f"unix://{tmp_path}/no.sock")
    file.write_text("{nonsense")
    (result,) = check_logins(settings, connection)
    assert (str(result.verdict), "cannot be read" in result.found) == ("fail", True)
    file.write_text("{}")
    file.chmod(0o644)
    (result,) = check_logins(settings, connection)
    assert (str(result.verdict), result.todo) == ("warning", f"Run: chmod o= {file}")
    file.chmod(0o600)
    assert list(check_logins(settings, connection)) == []
