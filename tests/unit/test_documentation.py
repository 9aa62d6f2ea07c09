"""What is written for people agrees with what the code knows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from node_agent import cli
from node_agent.config import ANY_MACHINE, load
from node_agent.config.settings import IDS_UNDER_ROOT
from node_agent.config.shape import setting_paths
from node_agent.logs import EVENTS

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
MADE_FROM_PARTS = {"server_lost", "server_back", "engine_lost", "engine_back"}


def test_the_errors_that_the_page_on_engines_without_root_names_are_in_the_source() -> None:
    page = (ROOT / "docs" / "rootless.md").read_text(encoding="utf-8")
    told = page.partition("## What is said")[2].partition("## What was tried")[0]
    errors = re.findall(r"^\| [^|]* \| `([^`]+)`", told, flags=re.MULTILINE)
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "node_agent" / "runtime").glob("*.py"))
    # Sentences that are wrapped in the source are joined before they are looked for.
    texts = re.sub(r'"\s+f?"', "", "\n".join(sources))
    assert len(errors) == 7
    assert [error for error in errors if error not in texts] == []


def rows_of(document: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)


def test_every_setting_has_one_row_in_the_documentation_and_no_other_has() -> None:
    assert rows_of("configuration.md") == sorted(rows_of("configuration.md"), key=setting_paths().index)
    assert set(rows_of("configuration.md")) == set(setting_paths())


def test_the_example_names_every_setting() -> None:
    text = (ROOT / "configs" / "example.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"^[\s#-]*([a-z_]+):", text, flags=re.MULTILINE))
    assert {part for path in setting_paths() for part in path.replace("[]", "").split(".")} <= named


def test_the_values_of_the_example_are_the_defaults() -> None:
    example = load(ROOT / "configs" / "example.yaml", machine=ANY_MACHINE)
    minimal = load(ROOT / "configs" / "minimal.yaml", machine=ANY_MACHINE)
    for part in (
        "images",
        "limits",
        "network",
        "egress",
        "services",
        "relaxations",
        "share",
        "extras",
        "docker_host",
        "logging",
        "compute_api",
        "name",
        "state_dir",
    ):
        assert getattr(example, part) == getattr(minimal, part)
    assert example.written is not None
    assert example.written.container_users == IDS_UNDER_ROOT


@pytest.mark.parametrize("name", ["minimal.yaml", "example.yaml"])
def test_the_configurations_load_with_real_files_in_place(name: str, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("age\n1\n", encoding="utf-8")
    key = tmp_path / "alpha.key"
    key.write_text("00000000-0000-4000-8000-000000000000\n", encoding="utf-8")
    key.chmod(0o600)
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    text = text.replace("/srv/data", str(tmp_path)).replace("/etc/node-agent", str(tmp_path))
    (tmp_path / name).write_text(text, encoding="utf-8")
    settings = load(tmp_path / name)
    assert settings.server.api_key.reveal() == "00000000-0000-4000-8000-000000000000"
    assert settings.databases[0].path == tmp_path / "patients.csv"


def test_the_minimal_configuration_has_ten_lines_at_most() -> None:
    assert len((ROOT / "configs" / "minimal.yaml").read_text(encoding="utf-8").splitlines()) <= 10


def test_the_readme_shows_a_configuration_that_loads(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)):
        if not {"name", "server"} <= set(yaml.safe_load(block)):
            continue
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        assert load(file, machine=ANY_MACHINE).name


def commands_of(group: click.Group, prefix: str = "node-agent") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def test_every_command_has_a_section_in_the_documentation_and_no_other_has() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `([^`]+)`$", text, flags=re.MULTILINE)
    assert set(sections) == {name for name, _ in commands_of(cli.commands)}


def test_every_option_of_a_command_is_named_in_its_section() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `([^`]+)`$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    for name, command in commands_of(cli.commands):
        for option in command.params:
            if option.name != "config":
                assert {
                    word.upper() if isinstance(option, click.Argument) else word for word in option.opts
                } & set(re.findall(r"[\w-]+", sections[name]))


def test_every_command_shows_an_example_in_its_help() -> None:
    for name, command in commands_of(cli.commands):
        takes_a_configuration = any(option.name == "config" for option in command.params)
        assert (f"{name} -c " if takes_a_configuration else name) in (command.epilog or "")


def test_every_exit_code_is_documented() -> None:
    codes = {
        value
        for name, value in vars(cli).items()
        if re.match(r"EXIT_[A-Z_]+$", name) and isinstance(value, int)
    }
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)} == codes


def events_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS | {"log"}:
            yield from _names(node.args[:2])
        yield from _names(word.value for word in node.keywords if (word.arg or "").endswith("_event"))


def _names(nodes: object) -> Iterator[str]:
    for node in nodes:  # type: ignore[attr-defined]
        if isinstance(node, ast.IfExp):
            yield from _names([node.body, node.orelse])
        if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)*", str(node.value)):
            yield str(node.value)


def test_every_event_in_the_source_is_in_the_vocabulary_and_the_other_way_round() -> None:
    found = {
        name
        for file in (ROOT / "node_agent").rglob("*.py")
        for name in events_in(file.read_text(encoding="utf-8"))
    }
    assert found | MADE_FROM_PARTS == set(EVENTS)


def test_every_event_has_one_row_in_the_documentation_and_no_other_has() -> None:
    assert rows_of("log-events.md") == sorted(EVENTS)
