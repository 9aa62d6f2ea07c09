"""Where sandboxes lie, what their nodes are told, and how they stand."""

import json
import stat
from pathlib import Path

import pytest
import yaml

from node_agent.cli import main
from node_agent.config import ANY_MACHINE, load
from node_agent.domain.container import PullPolicy
from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError
from node_agent.sandbox.connection import Connection, Member, read_connection, researcher_text
from node_agent.sandbox.place import Place, all_places, existing_place, home, place_of
from node_agent.sandbox.raising import ORGANIZATIONS, Blueprint, node_settings
from node_agent.sandbox.samples import COLUMNS, write_samples
from node_agent.sandbox.standing import long_text, short_text, standing_of

KEY = "00000000-0000-4000-8000-000000000000"
MEMBER = Member(
    id=1, name="alpha", username="alpha", password=Secret("pass-word"), node_id=11, api_key=Secret(KEY)
)
CONNECTION = Connection(
    url="http://127.0.0.1:7601/api", server_url="http://127.0.0.1", port=7601, api_path="/api",
    collaboration_id=1, collaboration="sandbox", members=(MEMBER,),
)  # fmt: skip


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "node-agent" / "sandbox"


# --- places ---------------------------------------------------------------------------------------------------


def test_sandboxes_lie_in_the_state_folder_of_the_user(
    state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place_of("second").folder == state_home / "second"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    assert home() == Path.home() / ".local" / "state" / "node-agent" / "sandbox"


@pytest.mark.parametrize("name", ["", "..", "a/b", "Upper", "-x", "x" * 17])
def test_a_name_that_is_no_folder_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        place_of(name)


def test_a_name_is_claimed_once_and_only_its_owner_can_look_in() -> None:
    place = place_of("x")
    place.claim(("alpha", "beta"))
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert list(place.nodes) == ["alpha", "beta"]
    with pytest.raises(ConfigError, match="down --name x"):
        place.claim(("alpha",))


def test_sandboxes_are_found_and_gone_when_removed() -> None:
    assert all_places() == ()
    for name in ("b", "a"):
        place_of(name).claim(("alpha",))
    assert [place.name for place in all_places()] == ["a", "b"]
    place_of("a").remove()
    with pytest.raises(ConfigError, match="there are: b"):
        existing_place("a")
    assert existing_place("b").exists


# --- what the nodes are told ----------------------------------------------------------------------------------


def test_without_anything_said_there_are_three_nodes_with_sample_data_for_any_image() -> None:
    assert Blueprint.of(nodes=None, sources=[], images=[]) == Blueprint(
        organizations=("alpha", "beta", "gamma"), sources=(), images=("*",)
    )


def test_there_is_a_node_for_each_file_and_no_other_number_of_them(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.csv", "b.parquet")]
    for file in files:
        file.touch()
    assert Blueprint.of(nodes=None, sources=files, images=["my/*"]).organizations == ORGANIZATIONS[:2]
    with pytest.raises(ConfigError, match="3 nodes cannot share 2 files"):
        Blueprint.of(nodes=3, sources=files, images=[])


@pytest.mark.parametrize("name", ["missing.csv", "text.txt"])
def test_a_file_no_node_could_offer_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    with pytest.raises(ConfigError, match=name):
        Blueprint.of(nodes=None, sources=[tmp_path / name], images=[])


@pytest.mark.parametrize("organization", ORGANIZATIONS)
def test_what_a_node_is_told_is_a_configuration_the_agent_takes(organization: str, tmp_path: Path) -> None:
    place = place_of("longest-possible"[:16])
    place.claim((organization,))
    source = tmp_path / "a.csv"
    source.touch()
    node = place.nodes[organization]
    node.key_file.write_text(KEY)
    node.key_file.chmod(0o600)
    member = Member(
        id=1, name=organization, username="u", password=Secret("p"), node_id=11, api_key=Secret(KEY)
    )
    told = node_settings(place, member, url=CONNECTION.url, source=source, images=["*"])
    node.config.write_text(yaml.safe_dump(told))
    settings = load(node.config)
    assert settings.name == f"sandbox-{place.name}-{organization}"
    assert settings.images.pull is PullPolicy.MISSING
    assert KEY not in node.config.read_text()
    assert load(node.config, machine=ANY_MACHINE).state_dir == node.state_dir


def test_sample_data_is_the_same_every_time_and_differs_between_hospitals(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = write_samples(tmp_path, ("alpha", "beta"))
    again = write_samples(tmp_path / "again", ("alpha", "beta"))
    assert {name: file.read_text() for name, file in first.items()} == {
        name: file.read_text() for name, file in again.items()
    }
    assert first["alpha"].read_text() != first["beta"].read_text()
    assert first["alpha"].read_text().splitlines()[0] == ",".join(COLUMNS)


# --- how they stand -------------------------------------------------------------------------------------------


def claimed(name: str = "default") -> Place:
    place = place_of(name)
    place.claim(("alpha",))
    return place


def test_a_connection_is_read_as_it_was_written_and_not_before_it_is_whole() -> None:
    place = claimed()
    assert read_connection(place.connection) is None
    text = json.dumps(CONNECTION.as_dict())
    place.connection.write_text(text)
    assert read_connection(place.connection) is None
    place.connection.write_text(text + "\n")
    assert read_connection(place.connection) == CONNECTION


def test_a_connection_that_makes_no_sense_is_told_with_what_to_do() -> None:
    place = claimed()
    place.connection.write_text('{"url": 1}\n')
    with pytest.raises(ConfigError, match="Take the sandbox down"):
        read_connection(place.connection)
    assert standing_of(place).connection is None


def test_a_researcher_is_shown_how_to_connect_but_no_key_of_a_node() -> None:
    text = researcher_text(CONNECTION)
    assert "UserClient('http://127.0.0.1', 7601, '/api')" in text
    assert "pass-word" in text
    assert KEY not in text


def test_a_sandbox_whose_processes_are_gone_is_shown_as_not_running() -> None:
    standing = standing_of(claimed())
    assert not standing.running
    assert "NOT running" in short_text(standing)
    assert "alpha      gone" in long_text(standing)


# --- the commands ---------------------------------------------------------------------------------------------


def test_status_without_any_sandbox_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "status"]) == 3
    assert "sandbox up" in capsys.readouterr().out


def test_status_of_several_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    claimed("a")
    claimed("b")
    assert main(["sandbox", "status"]) == 3
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["sandbox", "status", "--name", "b", "--json"]) == 3
    (standing,) = json.loads(capsys.readouterr().out)
    assert (standing["name"], standing["running"]) == ("b", False)


def test_run_without_a_sandbox_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "run", "i", "--method", "m"]) == 78
    assert "sandbox up" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--kwargs", "{a"], ["--kwargs", "[]"], ["--args", "{}"]])
def test_arguments_that_are_not_the_right_json_are_wrong_usage(words: list[str]) -> None:
    assert main(["sandbox", "run", "i", "--method", "m", *words]) == 64


def test_down_without_a_sandbox_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "down"]) == 0
    assert "Nothing to take down" in capsys.readouterr().err
