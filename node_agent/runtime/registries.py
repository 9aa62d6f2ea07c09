"""Whose account an image registry is asked with: the owner's own logins first, then Docker's configuration file.

Owns the search for credentials, the calls of credential helpers, and how long these may take. How the file is read is left
to the Docker SDK. Must not talk to a registry. Nothing a helper says is repeated anywhere, for it may be a secret.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from docker.auth import INDEX_NAME, AuthConfig, resolve_index_name
from docker.credentials.constants import PROGRAM_PREFIX
from docker.credentials.errors import CredentialsNotFound, StoreError, process_store_error
from docker.credentials.store import Store
from docker.errors import DockerException

from node_agent.domain.policy import ImageName
from node_agent.domain.secret import Secret
from node_agent.errors import RegistryUnreachable

DOCKER_HUB = INDEX_NAME
HELPER_SECONDS = 20.0
LARGEST_CONFIG = 1024 * 1024
_MOST_HELPER_SAYS = 64 * 1024
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*\Z")


class RegistryLogin(Protocol):
    """How to log in to one registry."""

    @property
    def host(self) -> str:
        """Host and port, as image names begin with."""

    @property
    def username(self) -> str:
        """Who logs in."""

    @property
    def password(self) -> Secret:
        """The password or access token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who the engine is to be at one registry."""

    host: str
    source: str
    """Where it was found, in words for the owner."""
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def header(self) -> dict[str, str]:
        """Give the header that hands the account to the engine."""
        return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(dict(self.fields)).encode()).decode()}


def registry_of(image: ImageName) -> str:
    """Name the registry an image comes from."""
    first, slash, _ = image.name.partition("/")
    # engines take a part with a capital letter for a host: no name at Docker Hub has one
    named = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    return first if named else DOCKER_HUB


class RegistryAccounts:
    """The accounts of this node, by registry."""

    def __init__(
        self,
        logins: Sequence[RegistryLogin] = (),
        *,
        docker_config: Path | None = None,
        helper_seconds: float = HELPER_SECONDS,
    ) -> None:
        self._logins = tuple(logins)
        self._docker_config = docker_config
        self._helper_seconds = helper_seconds

    def account_for(self, host: str) -> Account | None:
        """Find the account for a registry; None where there is none. Raises RegistryUnreachable."""
        for login in self._logins:
            if resolve_index_name(login.host) == resolve_index_name(host):
                return _account_of(login)
        return None if self._docker_config is None else self._from_docker(self._docker_config, host)

    def hosts(self) -> tuple[str, ...]:
        """List the registries there are accounts for, as far as the files name them. Raises RegistryUnreachable."""
        found = [login.host for login in self._logins]
        if self._docker_config is not None:
            config = _loaded(self._docker_config, self._helper_seconds)
            found += [resolve_index_name(key) for key in (*config.auths, *config.cred_helpers)]
        return tuple(dict.fromkeys(found))

    def _from_docker(self, path: Path, host: str) -> Account | None:
        config = _loaded(path, self._helper_seconds)
        try:
            fields = config.resolve_authconfig(host)
        except DockerException as error:
            # the helper's own name and fault; the library would add what it said
            raise RegistryUnreachable(
                str(error.__cause__ or "A credential helper failed."), hint=_HINT
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            helper = PROGRAM_PREFIX + str(config.get_credential_store(host))
            raise RegistryUnreachable(
                f"The credential helper {helper} gave no credentials in the form that is expected.",
                hint=_HINT,
            ) from None
        if not fields:
            return None
        return Account(host=host, source=_source(config, host), fields=fields)


_HINT = "The owner of the node must look at images.docker_config."


def _account_of(login: RegistryLogin) -> Account:
    fields = {
        "username": login.username,
        "password": login.password.reveal(),
        "serveraddress": login.host,
    }
    return Account(host=login.host, source="images.registries", fields=fields)


def _source(config: AuthConfig, host: str) -> str:
    helper = config.get_credential_store(host)
    return f"images.docker_config, by docker-credential-{helper}" if helper else "images.docker_config"


def _loaded(path: Path, helper_seconds: float) -> "_Auth":
    """Read Docker's configuration now: `docker login` may have changed it."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST_CONFIG))
        found: _Auth = _Auth.load_config(None, _shaped(content))
    except OSError as error:
        raise _unreadable(str(error.strerror)) from error
    except (ValueError, TypeError, AttributeError, DockerException):
        # the cause is left out: it may quote the file
        raise _unreadable("it is not in the form that Docker writes") from None
    found.helper_seconds = helper_seconds
    return found


def _shaped(content: Any) -> dict[str, Any]:
    """Refuse what the SDK would stumble over only later."""
    helpers = {**content.get("credHelpers", {}), "": content.get("credsStore", "")}
    if not all(isinstance(name, str) for name in helpers.values()):
        raise TypeError
    return dict(content)


def _unreadable(reason: str) -> RegistryUnreachable:
    return RegistryUnreachable(
        f"The logins of this node for registries (images.docker_config) cannot be read: {reason}.", hint=_HINT
    )


class _Auth(AuthConfig):
    """The SDK's reading of the file, with helpers that are not waited for without end."""

    helper_seconds = HELPER_SECONDS

    def _get_store_instance(self, name: str) -> Store:
        return _Helper(name, seconds=self.helper_seconds)


class _Helper(Store):
    """A credential helper that gets some seconds, and is ended with all its children when they are over."""

    def __init__(self, name: str, *, seconds: float) -> None:
        # the library's own beginning warns on standard error
        self.program = PROGRAM_PREFIX + name
        self.exe = shutil.which(self.program) if _HELPER_NAME.match(name) else None
        self._seconds = seconds

    def _execute(self, subcmd: str, data_input: bytes | None) -> bytes:
        if self.exe is None:
            raise StoreError(f"The credential helper {self.program} is not in the agent's PATH.")
        try:
            code, output = _run([self.exe, subcmd], data_input or b"", seconds=self._seconds)
        except subprocess.TimeoutExpired:
            raise StoreError(
                f"The credential helper {self.program} gave no answer within {self._seconds:g} s."
            ) from None
        except OSError as error:
            raise StoreError(
                f"The credential helper {self.program} cannot be started: {error.strerror}."
            ) from error
        if code:
            self._refuse(subcmd, code, output)
        return output[:_MOST_HELPER_SAYS]

    def _refuse(self, subcmd: str, code: int, output: bytes) -> None:
        said = process_store_error(subprocess.CalledProcessError(code, subcmd, output), self.program)
        if isinstance(said, CredentialsNotFound):
            raise CredentialsNotFound(self.program)
        raise StoreError(f"The credential helper {self.program} ended with exit code {code}.")


def _run(command: list[str], content: bytes, *, seconds: float) -> tuple[int, bytes]:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(content, timeout=seconds)
        except BaseException:
            # a child of the helper may hold the pipe open
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output
