"""The state directory before it is used: it and all directly in it belong to this process's user, and nothing is a link.

Once the checks are over nobody else may enter the directory, so what was found stays so. Must not know what lies in it.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from node_agent.errors import ConfigError

_OWN_IT = "Create it and make the agent's user its owner (state_dir)."


def claim_state_dir(path: Path) -> None:
    """Make the state directory, or check that it is ours, and close it to everybody else. Raises ConfigError."""
    try:
        _claim(path)
    except OSError as error:
        raise ConfigError(
            f"The state directory {path} cannot be used: {error.strerror}.", hint=_OWN_IT
        ) from error


def _claim(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(os.fstat(folder), f"The state directory {path}")
        # first closed, then looked into: what is not there by now no stranger can put there
        os.fchmod(folder, 0o700)
        for name in os.listdir(folder):  # noqa: PTH208 - by descriptor
            # another agent that holds the directory may be at work
            with suppress(FileNotFoundError):
                _check_entry(os.stat(name, dir_fd=folder, follow_symlinks=False), path / name)
    finally:
        os.close(folder)


def _check_entry(found: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(
            f"{path} is a symbolic link; links in the state directory are not followed.",
            hint="Put what it points to in its place, or name that place as state_dir.",
        )
    _check_owner(found, str(path))


def _check_owner(found: os.stat_result, what: str) -> None:
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{what} belongs to user {found.st_uid}, and the agent runs as user {os.geteuid()}.",
            hint="Name a directory of the agent's own, or make the agent's user the owner of all in it (chown -R).",
        )
