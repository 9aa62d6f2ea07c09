"""What the disk of the state directory may refuse, translated once; also how full it is.

Must not know what is written there.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node_agent.errors import ConfigError, DiskFull, DiskUnwritable

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE = frozenset({errno.EROFS, errno.EIO})


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate what only the disk is to blame for: nothing is wrong with the run, and the same thing is tried again."""
    try:
        yield
    except OSError as error:
        what = error.filename or error.strerror
        if error.errno in _FULL:
            raise DiskFull(
                f"The disk under the state directory is full ({what}).",
                hint="Free some space; the work goes on by itself.",
            ) from error
        if error.errno in _UNWRITABLE:
            raise DiskUnwritable(
                f"The state directory cannot be written to now: {error.strerror} ({what}).",
                hint="Look at its disk (dmesg); the work goes on by itself once it can be written to.",
            ) from error
        raise


def refuse_another_user(state_dir: Path, *, command: str, besides: str = "") -> None:
    """Refuse to make files that the agent could not open later, for a *command* in another user's folder.

    *besides* ends the sentence with what else is so. Raises ConfigError.
    """
    owner = state_dir.stat().st_uid
    if owner != os.geteuid():
        raise ConfigError(
            f"The state directory {state_dir} belongs to the user {owner}{besides}.",
            hint=f"Run this command as that user: sudo -u '#{owner}' node-agent {command} …",
        )


def sync_folder(path: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Say how much an ordinary user may still write where *folder* lies."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def is_read_only(file: Path) -> bool:
    """Tell whether nothing at all may be written where *file* lies, which need not be there."""
    if os.statvfs(file.parent).f_flag & os.ST_RDONLY:
        return True
    # a disk that failed under its file system does not always say so before somebody wants to write
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError as error:
        return error.errno in _UNWRITABLE
    return False
