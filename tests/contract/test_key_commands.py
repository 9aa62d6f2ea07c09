"""The commands and the start that speak with the server about the organization's key."""

from pathlib import Path

import pytest

from node_agent import encryption
from node_agent.config import Settings
from node_agent.config.settings import ServerSettings
from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError
from node_agent.payload.keys import PrivateKey, create_private_key
from node_agent.server.keys import KeyState
from tests.contract.server_stage import agent_at
from tests.doubles.fake_server import FakeServer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    found = {name: folder / f"{name}.pem" for name in ("own", "other")}
    for file in found.values():
        create_private_key(file)
    return found


def settings(server: FakeServer, private_key: Path) -> Settings:
    at = ServerSettings(url=server.url, api_key=Secret(server.api_key))
    return Settings(name="alpha", server=at, state_dir=Path("/nowhere"), private_key=private_key)


def test_a_key_is_uploaded_kept_and_replaced_only_when_asked(files: dict[str, Path]) -> None:
    own, other = (PrivateKey.load(files[name]).public for name in ("own", "other"))
    with FakeServer(encrypted=True) as server:
        mine, theirs = settings(server, files["own"]), settings(server, files["other"])
        first, again = encryption.upload_key(mine), encryption.upload_key(mine)
        assert (first.before.state(own), again.before.state(own)) == (KeyState.NONE_THERE, KeyState.SAME)
        with pytest.raises(ConfigError, match="another public key") as caught:
            encryption.upload_key(theirs)
        assert [own.fingerprint in caught.value.faults[0], other.fingerprint in caught.value.faults[1]] == [
            True,
            True,
        ]
        assert encryption.replace_key(theirs).before.key == own
        assert server.node().public_key == other.wire


def test_a_start_uploads_the_first_key_and_refuses_another(files: dict[str, Path]) -> None:
    with FakeServer(encrypted=True) as server:
        start(server, files["own"])
        start(server, files["own"])
        with pytest.raises(ConfigError, match="another public key"):
            start(server, files["other"])


def start(server: FakeServer, file: Path) -> None:
    key = PrivateKey.load(file)
    agent = agent_at(server.url, server.api_key, key=key)
    try:
        encryption.join(agent.server.identify(), key, agent.server)
    finally:
        agent.server.close()
