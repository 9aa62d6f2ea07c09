"""The schema of the configuration, the examples it is proven on, and what `config show` gives."""

import json
from collections import ChainMap
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from node_agent import cli
from node_agent.config import load
from node_agent.config.machine import AnyMachine
from node_agent.config.meanings import MEANINGS
from node_agent.config.schema import PIECES, json_schema, readers
from node_agent.config.shape import setting_paths
from node_agent.config.showing import effective_settings
from tests.meanings import documented

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "compose.yaml")
VARIABLES = {"WAREHOUSE_PASSWORD": "a", "OMOP_PASSWORD": "b", "REGISTRATIONS_PASSWORD": "c"}
SCHEMA = json_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
REST = "name: alpha\nserver: {url: https://h.org/api, api_key: k}\nstate_dir: /s\n"


def machine() -> AnyMachine:
    found = AnyMachine()
    found.environment = ChainMap(VARIABLES, {"CREDENTIALS_DIRECTORY": "/run/credentials"})
    return found


def complaints(text: str) -> list[str]:
    return [error.message for error in CHECK.iter_errors(yaml.safe_load(text))]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads_and_fits_the_schema(path: Path) -> None:
    assert load(path, machine=machine()).name
    assert complaints(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_begins_with_its_use(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") or path.name == "minimal.yaml"


@pytest.mark.parametrize(
    "more",
    [
        "limits: {memory: null}\ndatabases:",
        "limits: {cpus: '${CPUS}', memory: '${SIZE}'}",
        "network: {accept_open_host: '${OPEN}'}",
        "share: {algorithm_logs: off}",
        "share: {algorithm_logs: errors}",
        "policy: {users: [1, alice], restrict: [{image: x/y, methods: []}]}",
        "images: {registries: [{host: 'r:5000', username: u, password_file: /p}]}",
        "egress: {allow: ['*.x.org:443', '10.0.0.0/8:80-90']}",
        "container_user: '5:5'",
        "limits: {run_time: 1h30m, memory: 1.5GiB}",
        "compute_api: {listen: '127.0.0.1:8030', access: grants, data_sets: [{label: a, service_id: 0}]}",
        "compute_api: {addresses: ['*'], environments: [{id: a, memory: 1GiB, keep_results: 1d}]}",
    ],
)
def test_what_is_right_fits(more: str) -> None:
    assert complaints(REST + more) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "name: alpha",
        REST.replace("alpha", "Alpha"),
        REST.replace(", api_key: k", ""),
        REST.replace("api_key: k", "api_key: k, api_key_file: /k"),
        REST.replace("https:", "ftp:"),
        REST.replace("/s\n", "s\n"),
        REST + "databses: []",
        REST + "limits: {memory: 4}",
        REST + "limits: {memory: 4G}",
        REST + "limits: {run_time: 24}",
        REST + "limits: {pids: 1}",
        REST + "limits: {cpus: '2'}",
        REST + "limits: []",
        REST + "images: {pull: sometimes}",
        REST + "images: {registries: [{host: r, username: u}]}",
        REST + "databases: [{label: 1a, type: csv, uri: /x}]",
        REST + "databases: [{label: a, type: cvs, uri: /x}]",
        REST + "databases: [{label: a, type: csv}]",
        REST + "databases: {}",
        REST + "policy: {algorithms: x}",
        REST + "policy: {algorithms: ['x@sha256:12']}",
        REST + "policy: {algorithms: [x/y, x/y]}",
        REST + "egress: {allow: [x.org]}",
        REST + "services: [{name: a}]",
        REST + "services: [{name: a_b, container: c}]",
        REST + "network: {proxy_port: 70000}",
        REST + "algorithm_env: {a-b: x}",
        REST + "share: {algorithm_logs: some}",
        REST + "logging: {level: loud}",
        REST + "container_user: root",
        REST + "compute_api: {listen: example.org}",
        REST + "compute_api: {addresses: ['0x12']}",
        REST + "compute_api: {access: everybody}",
        REST + "compute_api: {data_sets: [{label: a, did: x}]}",
        REST + "compute_api: {data_sets: [{label: a, trusted_algorithms: [{did: x}]}]}",
        REST + "compute_api: {environments: [{id: a, memory: 4}]}",
        REST + "compute_api: {algorithms: [{image: a}]}",
    ],
)
def test_what_is_wrong_does_not_fit(text: str) -> None:
    assert complaints(text)


def properties(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, inner in schema["properties"].items():
        forms = inner.get("anyOf", [inner])
        blocks = [form for form in forms if "properties" in form]
        lists = [form["items"] for form in forms if "properties" in form.get("items", {})]
        for block, joint in [*((block, ".") for block in blocks), *((block, "[].") for block in lists)]:
            found |= properties(block, f"{path}{key}{joint}")
        if not blocks and not lists:
            found[f"{path}{key}"] = inner
    return found


def test_the_schema_has_every_setting_with_a_sentence() -> None:
    found = properties(SCHEMA)
    assert list(found) == setting_paths()
    assert [path for path, setting in found.items() if not setting.get("description")] == []


def test_defaults_are_written_the_way_a_file_writes_them() -> None:
    found = properties(SCHEMA)
    assert found["limits.memory"]["default"] == "4GiB"
    assert found["limits.run_time"]["default"] == "1d"
    assert found["limits.pids"]["default"] == 512
    assert found["images.pull"]["default"] == "always"
    assert "From 16MiB to 64TiB." in found["limits.memory"]["description"]


def test_every_kind_of_value_has_a_form_in_the_schema() -> None:
    assert readers() == set(PIECES)


def test_the_sentences_are_those_of_the_documentation() -> None:
    assert dict(MEANINGS) == documented(), "run: .venv/bin/python -m tests.meanings"


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


# --- config show -----------------------------------------------------------------------------------------------


def test_every_setting_is_shown_with_its_default(tmp_path: Path) -> None:
    file = tmp_path / "alpha.yaml"
    file.write_text(REST, encoding="utf-8")
    shown = effective_settings(file)
    assert shown["server.url"] == "https://h.org/api"
    assert shown["limits.memory"] == "4GiB"
    assert shown["images.pull"] == "always"
    assert {path for path in setting_paths() if "[]" not in path} <= shown.keys() | {
        path.partition("[")[0] for path in setting_paths()
    }


@pytest.mark.parametrize("written", ["36h", "90m", "1d", "3601s", "90s"])
def test_a_duration_is_shown_to_the_second(written: str, tmp_path: Path) -> None:
    file = tmp_path / "alpha.yaml"
    file.write_text(f"{REST}limits: {{run_time: {written}}}\n", encoding="utf-8")
    assert effective_settings(file)["limits.run_time"] == written


def test_no_secret_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "alpha.yaml"
    file.write_text(
        REST.replace("api_key: k", "api_key: hunter2")
        + "databases:\n"
        + "- {label: a, type: sql, uri: 'postgresql://u:hunter2@h/db', env: {p: hunter2}}\n"
        + "- {label: b, type: sql, uri: 'postgresql://h/db?user=u&password=hunter2'}\n"
        + "images: {registries: [{host: r, username: u, password: hunter2}]}\n"
        + "algorithm_env: {TOKEN: hunter2}\n",
        encoding="utf-8",
    )
    for command in (["config", "show"], ["config", "show", "--json"]):
        assert cli.main([*command, "-c", str(file)]) == 0
        shown = capsys.readouterr().out
        assert "hunter2" not in shown
        assert "***@h/db" in shown
