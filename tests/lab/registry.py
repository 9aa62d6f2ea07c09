"""An image registry on loopback, with or without a login.

Owns one `docker-registry` process and its storage. Must not know how images are made.
"""

import ctypes
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import requests
import yaml

from tests.lab.places import lab_dir
from tests.ports import free_port

START_SECONDS = 20


class RegistryError(Exception):
    """The registry does not start or refuses an image; the text says why."""


@dataclass(frozen=True)
class Login:
    """A user of the registry."""

    username: str
    password: str

    @classmethod
    def random(cls) -> "Login":
        """Make up a user with a password nobody knows."""
        return cls(username="lab", password=secrets.token_urlsafe(12))


@dataclass(frozen=True)
class Pushed:
    """An image in the registry, by tag and by content."""

    reference: str
    digest: str

    @property
    def pinned(self) -> str:
        """Return the reference that names exactly this content."""
        return f"{self.reference.rpartition(':')[0]}@{self.digest}"


@dataclass(frozen=True)
class Registry:
    """A registry that answers at *host* (`127.0.0.1:PORT`)."""

    host: str
    login: Login | None

    def push(self, client: docker.DockerClient, local_tag: str, name: str) -> Pushed:
        """Put the local image there as *name* (`repository:tag`), and drop the tag that pushing needs."""
        repository, _, tag = f"{self.host}/{name if ':' in name else f'{name}:latest'}".rpartition(":")
        client.images.get(local_tag).tag(repository, tag)
        progress = client.api.push(repository, tag, stream=True, decode=True, auth_config=self._auth())
        digest = _digest(progress)
        # Otherwise the engine would have the image already, and no pull could ever fail.
        client.images.remove(f"{repository}:{tag}")
        return Pushed(f"{repository}:{tag}", digest)

    def _auth(self) -> dict[str, str] | None:
        if self.login is None:
            return None
        return {"username": self.login.username, "password": self.login.password}


@contextmanager
def registry(login: Login | None = None) -> Iterator[Registry]:
    """Run a registry on a free port of loopback; images pushed by earlier runs are still in it."""
    program = shutil.which("docker-registry")
    if program is None:
        raise RegistryError("docker-registry is not installed: run tests/lab/setup.sh")
    with tempfile.TemporaryDirectory(prefix="lab-registry-") as folder:
        # Layers are kept between runs: compressing the big ones anew would cost half a minute each time.
        storage = lab_dir("registry")
        host = f"127.0.0.1:{free_port()}"
        config = _write_config(Path(folder), storage, host, login)
        log = Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [program, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            _wait_until_answering(host, process, log)
            yield Registry(host, login)
        finally:
            process.terminate()
            process.wait()


def _write_config(folder: Path, storage: Path, host: str, login: Login | None) -> Path:
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": host, "secret": secrets.token_hex(8)},
    }
    if login is not None:
        passwords = folder / "htpasswd"
        passwords.write_text(f"{login.username}:{_bcrypt(login.password)}\n")
        config["auth"] = {"htpasswd": {"realm": "lab", "path": str(passwords)}}
    path = folder / "registry.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _bcrypt(password: str) -> str:
    """Hash with the C library's crypt: the registry takes bcrypt only, and Python has none of its own."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    salt = secrets.token_hex(11)
    hashed = crypt(password.encode(), f"$2b$05${salt}".encode())
    if not hashed:
        raise RegistryError("the C library knows no bcrypt")
    return str(hashed.decode())


def _wait_until_answering(host: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            requests.get(f"http://{host}/v2/", timeout=2)
        except requests.ConnectionError:
            time.sleep(0.05)
        else:
            return
    raise RegistryError(f"docker-registry does not answer: {log.read_text()[-600:]}")


def _digest(progress: Iterator[Mapping[str, object]]) -> str:
    """Read the progress of a push to its end and return the digest the registry gave."""
    digest = None
    for line in progress:
        if "error" in line:
            raise RegistryError(f"the registry refuses the image: {line['error']}")
        match line.get("aux"):
            case {"Digest": str(found)}:
                digest = found
    if digest is None:
        raise RegistryError(f"the engine named no digest; its last words: {json.dumps(line)}")
    return digest
