"""Whose account a registry is asked with: the owner's logins, Docker's configuration, credential helpers."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from node_agent.domain.policy import parse_image
from node_agent.domain.secret import Secret
from node_agent.errors import ImageMissing, RegistryUnreachable
from node_agent.runtime.pulling import refusal
from node_agent.runtime.registries import RegistryAccounts, registry_of

HOST = "registry.example.org"
SECRET = "hunter2-hunter2"


class Login:
    host = HOST
    username = "explicit"
    password = Secret("explicit password")


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def accounts(folder: Path, content: object, *logins: Login, seconds: float = 60) -> RegistryAccounts:
    file = folder / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return RegistryAccounts(logins, docker_config=file, helper_seconds=seconds)


def helper(folder: Path, name: str, script: str) -> None:
    file = folder / f"docker-credential-{name}"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def fields(found: RegistryAccounts, host: str = HOST) -> dict[str, Any]:
    account = found.account_for(host)
    assert account is not None
    return dict(account.fields)


def test_the_owners_own_login_comes_first(folder: Path) -> None:
    config = {"auths": {HOST: basic("docker", "x")}}
    assert fields(accounts(folder, config, Login()))["username"] == "explicit"
    assert fields(accounts(folder, config))["username"] == "docker"


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}", f"https://{HOST}/v1/"])
def test_an_entry_is_found_in_every_spelling_docker_uses(folder: Path, key: str) -> None:
    assert fields(accounts(folder, {"auths": {key: basic("docker", SECRET)}}))["password"] == SECRET


def test_the_hub_is_found_under_its_old_address(folder: Path) -> None:
    config = {"auths": {"https://index.docker.io/v1/": basic("docker", "x")}}
    assert fields(accounts(folder, config), "docker.io")["username"] == "docker"


def test_an_identity_token_is_used_as_it_is(folder: Path) -> None:
    config = {"auths": {HOST: {"auth": "", "identitytoken": SECRET}}}
    assert fields(accounts(folder, config)) == {"IdentityToken": SECRET}


def test_no_entry_is_no_account(folder: Path) -> None:
    assert accounts(folder, {"auths": {}}).account_for(HOST) is None
    assert accounts(folder, {"auths": {HOST: {}}}).account_for(HOST) is None
    assert accounts(folder, {"auths": {f"{HOST}.evil.example": basic("a", "b")}}).account_for(HOST) is None
    assert RegistryAccounts().account_for(HOST) is None


def test_a_helper_is_asked_for_its_own_registry_and_told_which(folder: Path) -> None:
    helper(
        folder,
        "vault",
        'read -r host; echo "{\\"ServerURL\\": \\"$host\\", \\"Username\\": \\"for $1 $host\\",'
        f' \\"Secret\\": \\"{SECRET}\\"}}"',
    )
    found = accounts(folder, {"credHelpers": {HOST: "vault"}, "auths": {"other.example": basic("o", "p")}})
    assert fields(found) == {
        "ServerAddress": HOST,
        "Username": f"for get {HOST}",
        "Password": SECRET,
    }
    assert fields(found, "other.example")["username"] == "o"
    assert found.hosts() == ("other.example", HOST)
    account = found.account_for(HOST)
    assert account is not None
    assert account.source == "images.docker_config, by docker-credential-vault"
    assert SECRET not in repr(account)


def test_a_store_without_the_credentials_leaves_it_to_the_entries(folder: Path) -> None:
    helper(folder, "empty", 'echo "credentials not found in native keychain"; exit 1')
    found = accounts(folder, {"credsStore": "empty", "auths": {HOST: basic("docker", "x")}})
    assert fields(found)["username"] == "docker"


def test_a_token_of_a_helper_is_an_identity_token(folder: Path) -> None:
    helper(folder, "vault", f"""echo '{{"ServerURL": "", "Username": "<token>", "Secret": "{SECRET}"}}'""")
    assert fields(accounts(folder, {"credsStore": "vault"}))["IdentityToken"] == SECRET


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"echo {SECRET}; echo {SECRET} >&2; exit 3", "docker-credential-vault ended with exit code 3"),
        (f"echo {SECRET}", "docker-credential-vault gave no credentials in the form"),
        (f"""echo '["{SECRET}"]'""", "docker-credential-vault gave no credentials in the form"),
    ],
)
def test_a_helper_that_fails_is_named_and_not_quoted(folder: Path, script: str, words: str) -> None:
    helper(folder, "vault", script)
    with pytest.raises(RegistryUnreachable, match=words) as failure:
        accounts(folder, {"credsStore": "vault"}).account_for(HOST)
    assert SECRET not in str(failure.value)
    assert "images.docker_config" in str(failure.value)


def test_a_helper_that_hangs_is_left_with_all_its_children(folder: Path) -> None:
    helper(folder, "vault", "sleep 600 & sleep 600")
    with pytest.raises(RegistryUnreachable, match=r"docker-credential-vault gave no answer within 0\.2 s"):
        accounts(folder, {"credsStore": "vault"}, seconds=0.2).account_for(HOST)


@pytest.mark.parametrize("name", ["nowhere", "../nowhere", "/bin/cat"])
def test_a_helper_that_is_not_there_is_named(folder: Path, name: str) -> None:
    with pytest.raises(RegistryUnreachable, match="is not in the agent's PATH"):
        accounts(folder, {"credHelpers": {HOST: name}}).account_for(HOST)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "7",
        {"auths": {HOST: 3}},
        {"auths": {HOST: {"auth": SECRET}}},
        {"credsStore": 3},
        {"credHelpers": {HOST: None}},
        {"credHelpers": "vault"},
    ],
)
def test_a_file_that_docker_would_not_write_is_refused_without_quoting_it(
    folder: Path, content: object
) -> None:
    with pytest.raises(RegistryUnreachable, match=r"images\.docker_config.* cannot be read") as failure:
        accounts(folder, content).account_for(HOST)
    assert SECRET not in str(failure.value)


def test_a_file_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable, match="No such file"):
        RegistryAccounts(docker_config=tmp_path / "config.json").account_for(HOST)


def test_a_refused_login_is_told_from_a_missing_one() -> None:
    text = "Head https://r/v2/a/manifests/1: unauthorized: authentication required"
    without, wrong = refusal("r/a:1", text), refusal("r/a:1", text, account="images.registries")
    assert isinstance(without, ImageMissing)
    assert isinstance(wrong, ImageMissing)
    assert "needs a login" in str(without)
    assert "has a login for the registry (images.registries), which is wrong" in str(wrong)


@pytest.mark.parametrize(
    ("reference", "registry"),
    [("foo/x", "docker.io"), ("x", "docker.io"), ("Foo/x", "Foo"), ("foo.example/x", "foo.example")],
)
def test_a_first_part_with_a_capital_letter_is_a_host_and_gets_no_login_of_docker_hub(
    reference: str, registry: str
) -> None:
    image = parse_image(reference)
    assert image is not None
    assert registry_of(image) == registry
