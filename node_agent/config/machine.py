"""What loading a configuration asks of the machine: is there such a file, what is in a secret file.

Must not know the settings. Commands that only read the journal load with ANY_MACHINE, so that a data disk
that is away does not keep an operator from asking how the agent is.
"""

import os
import stat
from collections import ChainMap
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from node_agent.domain.secret import Secret

_MAX_SECRET = 4096
_LAST_ID = 2**32 - 2


class Kind(StrEnum):
    """What stands at a path."""

    FILE = "a file"
    FOLDER = "a folder"
    OTHER = "neither a file nor a folder"
    MISSING = "missing"
    HIDDEN = "hidden"
    """Somewhere on the way is a folder the agent may not enter."""


class Machine(Protocol):
    """The questions."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Give the environment variables."""

    @property
    def user(self) -> tuple[int, int]:
        """Give uid and gid of this process."""

    @property
    def last_id(self) -> int:
        """Return the largest uid and gid that this process can give away."""

    def kind(self, path: Path) -> Kind:
        """Say what stands at *path*."""

    def read_secret(self, path: Path) -> Secret:
        """Read a secret file; ValueError says what is wrong with it."""


class ThisMachine:
    """The machine the agent runs on."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = os.environ if environment is None else environment

    @property
    def user(self) -> tuple[int, int]:
        """Give uid and gid of this process."""
        return os.geteuid(), os.getegid()

    @property
    def last_id(self) -> int:
        """Return the largest uid and gid that this process can give away: a user namespace may have few."""
        return min(_last_mapped(Path("/proc/self", name)) for name in ("uid_map", "gid_map"))

    def kind(self, path: Path) -> Kind:
        """Say what stands at *path*."""
        try:
            mode = path.stat().st_mode
        except PermissionError:
            return Kind.HIDDEN
        except (OSError, ValueError):
            return Kind.MISSING
        if stat.S_ISREG(mode):
            return Kind.FILE
        return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.OTHER

    def read_secret(self, path: Path) -> Secret:
        """Read a secret file; ValueError says what is wrong with it."""
        if self.kind(path) not in {Kind.FILE, Kind.HIDDEN}:
            raise ValueError(f"is {self.kind(path)}; the secret must stand in a file there")
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(_MAX_SECRET + 1)
        except OSError as error:
            raise ValueError(f"cannot be read by user {self.user[0]} ({error.strerror})") from error
        if mode & stat.S_IRWXO:
            raise ValueError(f"is open to every user of this machine; run: chmod o= {path}")
        return Secret(_text(content))


def _last_mapped(path: Path) -> int:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return _LAST_ID
    return max((int(first) + int(count) - 1 for first, _, count in lines), default=_LAST_ID)


def _text(content: bytes) -> str:
    if len(content) > _MAX_SECRET:
        raise ValueError(f"holds more than {_MAX_SECRET} bytes; is it the right file?")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        # the cause is left out: it carries the content
        raise ValueError("holds no text; is it the right file?") from None
    if not text:
        raise ValueError("is empty")
    return text


class AnyMachine(ThisMachine):
    """A machine where every file is there and no secret is read."""

    def __init__(self) -> None:
        # an operator's shell has no credentials of a service, and a configuration that names one is right all the same
        super().__init__(ChainMap(os.environ, {"CREDENTIALS_DIRECTORY": "/run/credentials"}))

    def kind(self, path: Path) -> Kind:  # noqa: ARG002 - keeps the shape of the port
        """Say that the file may be there."""
        return Kind.OTHER

    def read_secret(self, path: Path) -> Secret:  # noqa: ARG002 - keeps the shape of the port
        """Give nothing."""
        return Secret("")


THIS_MACHINE: Machine = ThisMachine()
ANY_MACHINE: Machine = AnyMachine()
