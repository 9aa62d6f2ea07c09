"""Making folders and files where an algorithm can write, and handing them over, by descriptor."""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath

from node_agent.errors import StartFailed
from node_agent.store.untrusted.copying import copy
from node_agent.store.untrusted.opening import NOT_THERE, kind_of, open_unlocked, own_file
from node_agent.store.users import User

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TAKEN = (NOT_THERE - {errno.EACCES}) | {errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
"""What fails with these has something of another kind in its way, which only an algorithm can have put there."""

_DEFAULT_ACL = "system.posix_acl_default"
_GROUP_WRITES = struct.pack(
    "<I" + "HHI" * 4,
    2,  # the version
    *(0x01, 0o7, 0xFFFFFFFF),  # the owner
    *(0x04, 0o7, 0xFFFFFFFF),  # the group
    *(0x10, 0o7, 0xFFFFFFFF),  # the mask
    *(0x20, 0o5, 0xFFFFFFFF),  # everybody else, whom the folder itself keeps out
)


def hand_over(descriptor: int, mode: int, user: User) -> None:
    """Give an open file or folder this mode and, where this process may do so, this owner."""
    if os.geteuid() == 0:
        os.fchown(descriptor, *user)
    os.fchmod(descriptor, mode)


def share(folder: int, group: int, mode: int) -> None:
    """Give an open folder to a group; what its members make in it is the group's, and as far as possible writable to it.

    Whoever owns it keeps it: a container that an earlier agent started may still have it mounted.
    """
    os.fchown(folder, -1, group)
    os.fchmod(folder, mode | stat.S_ISGID)
    # without access lists members read each other's files, and write to those whose makers let them
    with suppress(OSError):
        os.setxattr(folder, _DEFAULT_ACL, _GROUP_WRITES)


@contextmanager
def made_folder(name: str | Path, folder: int | None = None) -> Iterator[int]:
    """Make a folder unless there is one, and open it. Raises StartFailed when something else has its name."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
    opened = open_unlocked(name, folder, mode=0o700)
    if opened is None:
        raise _in_the_way(name)
    try:
        yield opened
    finally:
        os.close(opened)


def make_file(name: str, folder: int) -> None:
    """Make an empty file unless something has that name."""
    with suppress(FileExistsError):
        os.close(os.open(name, _NEW, 0o600, dir_fd=folder))


def move_in(source: Path, folder: int, name: str) -> None:
    """Move a file of ours into *folder*, in place of what has that name. Raises StartFailed when that is a folder."""
    try:
        with _nothing_in_the_way(name):
            os.rename(source, name, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_in(source, folder, name)
        source.unlink()


def _copy_in(source: Path, folder: int, name: str) -> None:
    with own_file(source) as file:
        found = os.fstat(file.fileno())

        def fill(target: int) -> None:
            copy(file.fileno(), target, limit=found.st_size)
            hand_over(target, found.st_mode & 0o777, (found.st_uid, found.st_gid))

        write_in(folder, name, fill)


def write_in(folder: int, name: str, fill: Callable[[int], None]) -> None:
    """Let *fill* write a new file, sync it, and give it its name. Raises StartFailed when a folder has that."""
    draft = f".{name}.new"
    with _nothing_in_the_way(name):
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        file = os.open(draft, _NEW, 0o600, dir_fd=folder)
        try:
            fill(file)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def write_below(folder: int, name: str, content: bytes, *, mode: int) -> None:
    """Write a file at a path below *folder*; folders on the way are made, stay the agent's, and everybody may read them."""
    *above, last = PurePosixPath(name).parts
    with ExitStack() as opened:
        for part in above:
            is_new = not kind_of(part, folder)
            folder = opened.enter_context(made_folder(part, folder))
            if is_new:
                os.fchmod(folder, 0o755)

        def fill(file: int) -> None:
            _write_all(file, content)
            os.fchmod(file, mode)

        write_in(folder, last, fill)


def _write_all(file: int, content: bytes) -> None:
    with os.fdopen(os.dup(file), "wb") as stream:
        stream.write(content)


@contextmanager
def _nothing_in_the_way(name: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise _in_the_way(name) from error


def _in_the_way(name: str | Path) -> StartFailed:
    return StartFailed(
        f"Another run of this job, or this run, put something in the way of {Path(name).name} in the run's folder."
    )
