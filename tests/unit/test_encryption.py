"""Key and collaboration must fit together; the `key` commands say what there is and what to do next."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node_agent import cli, encryption, screen
from node_agent.config import Settings
from node_agent.config.settings import ServerSettings
from node_agent.domain.ports import NodeIdentity
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId
from node_agent.encryption import (
    Upload,
    check_encryption,
    create_key,
    own_key,
    replace_key,
    show_key,
    upload_key,
)
from node_agent.errors import ConfigError
from node_agent.payload.keys import PrivateKey, create_private_key
from node_agent.server.keys import PublishedKey


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    found = {name: folder / f"{name}.pem" for name in ("own", "other")}
    for file in found.values():
        create_private_key(file)
    return found


def settings(private_key: Path | None, url: str = "http://127.0.0.1:1/api", api_key: str = "k") -> Settings:
    server = ServerSettings(url=url, api_key=Secret(api_key))
    return Settings(name="alpha", server=server, state_dir=Path("/nowhere"), private_key=private_key)


def identity(*, encrypted: bool) -> NodeIdentity:
    return NodeIdentity(
        node_id=1,
        node_name="n",
        organization_id=OrganizationId(2),
        organization_name="alpha",
        collaboration_id=1,
        collaboration_name="study",
        encrypted=encrypted,
    )


# --- before the first run -------------------------------------------------------------------------------------


def test_an_encrypted_collaboration_needs_a_key_and_another_refuses_one(files: dict[str, Path]) -> None:
    key = PrivateKey.load(files["own"])
    check_encryption(identity(encrypted=True), key)
    check_encryption(identity(encrypted=False), None)
    with pytest.raises(ConfigError, match="'study' is encrypted") as missing:
        check_encryption(identity(encrypted=True), None)
    assert "encryption.private_key" in missing.value.hint
    with pytest.raises(ConfigError, match="'study' is not encrypted") as needless:
        check_encryption(identity(encrypted=False), key)
    assert "take encryption.private_key out" in needless.value.hint


def test_a_node_without_key_reads_none(files: dict[str, Path]) -> None:
    assert own_key(settings(None)) is None
    found = own_key(settings(files["own"]))
    assert found is not None
    assert found.public == PrivateKey.load(files["own"]).public


# --- commands -------------------------------------------------------------------------------------------------


def test_a_key_is_made_where_the_configuration_says_or_where_asked(tmp_path: Path) -> None:
    configured, asked = tmp_path / "configured.pem", tmp_path / "asked.pem"
    made = create_key(settings(configured), None)
    assert (made.file, made.in_configuration) == (configured, True)
    other = create_key(settings(configured), asked)
    assert (other.file, other.in_configuration) == (asked, False)
    assert PrivateKey.load(asked).public == other.public
    with pytest.raises(ConfigError, match="does not say where") as caught:
        create_key(settings(None), None)
    assert "--out" in caught.value.hint


def test_without_a_key_there_is_nothing_to_show_or_upload() -> None:
    for command in (show_key, upload_key, replace_key):
        with pytest.raises(ConfigError, match="names no private key"):
            command(settings(None))  # type: ignore[operator]


@dataclass
class Parts:
    """The parts of the command line, with the real ones for keys."""

    settings: Settings

    def load(self, _: Path) -> Settings:
        return self.settings

    load_place = load

    def __getattr__(self, name: str) -> Any:
        return getattr(encryption, name)


def shown(capsys: pytest.CaptureFixture[str], own: Settings, *argv: str) -> str:
    assert cli.main([*argv, "-c", "x"], parts=Parts(own)) == 0  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_a_new_key_comes_with_its_fingerprint_and_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = shown(capsys, settings(None), "key", "create", "--out", str(tmp_path / "k.pem"))
    assert PrivateKey.load(tmp_path / "k.pem").public.fingerprint in text
    assert f"encryption.private_key: {tmp_path / 'k.pem'}" in text
    assert "encryption.private_key:" not in shown(capsys, settings(tmp_path / "other.pem"), "key", "create")


def test_the_public_part_is_shown_for_people_and_for_programs(
    capsys: pytest.CaptureFixture[str], files: dict[str, Path]
) -> None:
    public = PrivateKey.load(files["own"]).public
    text = shown(capsys, settings(files["own"]), "key", "show")
    assert public.fingerprint in text
    assert public.wire in text.splitlines()
    found = json.loads(shown(capsys, settings(files["own"]), "key", "show", "--json"))
    assert found == {"file": str(files["own"]), "fingerprint": public.fingerprint, "public_key": public.wire}


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("own", "already"),
        ("none", "has the public key now"),
        ("other", "replaces"),
        ("broken", "unreadable (it is odd)"),
    ],
)
def test_what_an_upload_changed_is_told(files: dict[str, Path], before: str, words: str) -> None:
    own, other = (PrivateKey.load(files[name]).public for name in ("own", "other"))
    published = {
        "own": PublishedKey(own),
        "none": PublishedKey(None),
        "other": PublishedKey(other),
        "broken": PublishedKey(None, "it is odd"),
    }
    text = "\n".join(screen.upload_lines(Upload(published[before], own)))
    assert words in text
    assert own.fingerprint in text
