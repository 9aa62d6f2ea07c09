"""One engine connection per thread, and the one place where the engine's errors are translated.

Owns how the engine is reached and how its sentences are shortened for people. Must not know what is asked of it.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException
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
    """Gives each thread its own client of one engine, because a client's sockets cannot be shared."""

    def __init__(self, docker_host: str | None = None, *, seconds: float = SECONDS_PER_CALL) -> None:
        self._where = {"base_url": docker_host} if docker_host else kwargs_from_env()
        self._seconds = seconds
        self._of_thread = threading.local()

    @property
    def address(self) -> str:
        """Say where the engine is expected."""
        return str(self._where.get("base_url", "unix:///var/run/docker.sock"))

    @contextmanager
    def client(self) -> Iterator[APIClient]:
        """Give this thread's client; whatever the library raises meanwhile becomes EngineUnreachable."""
        with docker_errors(self.address):
            yield self._client()

    def _client(self) -> APIClient:
        found: _OwnClient | None = getattr(self._of_thread, "client", None)
        if found is None:
            found = _OwnClient(APIClient(version="auto", timeout=int(self._seconds), **self._where))
            self._of_thread.client = found
        return found.client


class _OwnClient:
    """A thread's client, closed when the thread ends or the connection is let go."""

    def __init__(self, client: APIClient) -> None:
        self.client = client

    def __del__(self) -> None:
        self.client.close()


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
