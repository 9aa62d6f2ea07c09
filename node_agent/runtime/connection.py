"""The connections to one engine, and the one place where the engine's errors are translated.

Owns how the engine is reached and how its sentences are shortened for people. Must not know what is asked of it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException
from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnectionPool
from docker.utils import kwargs_from_env

from node_agent.errors import EngineUnreachable

SECONDS_PER_CALL = 60
LONGEST_TEXT = 300

# What runc and the engine wrap around the sentence that says what is wrong.
_WRAPPING = re.compile(
    r"(failed to create (shim task|task for container|shim): )|(OCI runtime create failed: )|(runc create failed: )"
    r"|(container_linux\.go:\d+: )|(process_linux\.go:\d+: )|(rootfs_linux\.go:\d+: )|(: unknown$)"
)


class EngineConnection:
    """Lends clients of one engine to any thread; each has one borrower at a time, as its sockets cannot be shared."""

    def __init__(self, docker_host: str | None = None, *, seconds: float = SECONDS_PER_CALL) -> None:
        self._where = {"base_url": docker_host} if docker_host else kwargs_from_env()
        self._seconds = seconds
        self._met = _Meeting()

    @property
    def address(self) -> str:
        """Say where the engine is expected."""
        return str(self._where.get("base_url", "unix:///var/run/docker.sock"))

    @contextmanager
    def client(self) -> Iterator[APIClient]:
        """Lend a client; whatever the library raises meanwhile becomes EngineUnreachable."""
        with self.errors():
            met = self._met
            try:
                client = met.idle.pop()
            except IndexError:
                client = self._new_client(met)
            try:
                yield client
            finally:
                met.idle.append(client)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the library raises into EngineUnreachable; whoever answers after that may be another engine."""
        try:
            with docker_errors(self.address):
                yield
        except EngineUnreachable:
            self._met = _Meeting()
            raise

    def _new_client(self, met: "_Meeting") -> APIClient:
        client = APIClient(version=met.version, timeout=int(self._seconds), **self._where)
        met.version = client.api_version
        _make_local_calls_short(client)
        return client


class _Meeting:
    """An engine as it was met: the version it speaks, and clients that wait for a borrower.

    It ends with the first error, and its clients are closed when the last of them is given back.
    """

    def __init__(self) -> None:
        self.version = "auto"
        self.idle: list[APIClient] = []

    def __del__(self) -> None:
        for client in self.idle:
            client.close()


class _OneForAll(UnixHTTPAdapter):
    """Has the same sockets for all addresses of the engine; the library has others for each of them."""

    def get_connection(self, url: str | bytes, proxies: Any = None) -> UnixHTTPConnectionPool:
        del url
        return super().get_connection("", proxies)


def _make_local_calls_short(client: APIClient) -> None:
    """Leave out what makes a call over a local socket twice as long, and has no use there."""
    usual = client.get_adapter(client.base_url)
    if isinstance(usual, UnixHTTPAdapter):
        # The proxies and passwords of the environment are looked for before each call.
        client.trust_env = False
        client.mount("http+docker://", _OneForAll(f"http+unix://{usual.socket_path}", usual.timeout))
        usual.close()


@contextmanager
def docker_errors(address: str) -> Iterator[None]:
    """Turn what the libraries below raise into EngineUnreachable; refusals with a meaning are caught further in."""
    try:
        yield
    except APIError as error:
        raise EngineUnreachable(f"The container engine refuses: {engine_text(error)}") from error
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise EngineUnreachable(
            f"The container engine does not answer at {address}: {one_line(str(error))}.",
            hint="Is it running, and may this user open its socket?",
        ) from error


def engine_text(error: APIError) -> str:
    """Give the engine's own sentence, without the wrapping of the layers below it."""
    return readable(str(error.explanation or error))


def readable(text: str) -> str:
    """Shorten an engine's sentence to the part that says what is wrong."""
    return one_line(_WRAPPING.sub("", text.strip()))


def one_line(text: str) -> str:
    """Bring *text* onto one line of bounded length, for it may hold what a container or a registry wrote."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return flat if len(flat) <= LONGEST_TEXT else flat[: LONGEST_TEXT - 1] + "…"
