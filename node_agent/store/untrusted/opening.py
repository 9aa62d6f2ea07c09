"""Opening without following links and without waiting; whatever is not of the expected kind is "not there"."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from itertools import islice
from pathlib import Path

_UNFOLLOWED = os.O_NOFOLLOW | os.O_CLOEXEC
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | _UNFOLLOWED
# O_NONBLOCK: neither a pipe nor a file lease of the algorithm holds the caller up
FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | _UNFOLLOWED
_HELD = os.O_PATH | os.O_DIRECTORY | _UNFOLLOWED

NOT_THERE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EACCES,
        errno.ENXIO,  # a socket
        errno.EAGAIN,  # a file lease
    }
)
"""What opening fails with when nothing of the expected kind has that name, or it is locked."""


@contextmanager
def opened_folder(path: Path, *inner: str) -> Iterator[int | None]:
    """Open *path*, a folder of ours, and through it the untrusted folders *inner*, each in the one before.

    Yields the descriptor of the last; None when one of them is not a folder, or is locked.
    """
    with ExitStack() as opened:
        folder = open_folder(path)
        for name in inner:
            if folder is None:
                break
            opened.callback(os.close, folder)
            folder = open_folder(name, folder)
        if folder is not None:
            opened.callback(os.close, folder)
        yield folder


def open_folder(name: str | Path, folder: int | None = None) -> int | None:
    """Open a folder for reading; None when there is none of that name."""
    try:
        return os.open(name, FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise


def open_unlocked(name: str | Path, folder: int | None, *, mode: int) -> int | None:
    """Open a folder even if its owner, who is this process, has no right to; it then has *mode*.

    None when there is none of that name. Raises PermissionError when it is somebody else's.
    """
    try:
        return os.open(name, FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        if error.errno != errno.EACCES:
            return None
    # O_PATH needs no right on the folder itself, and the name below leads to exactly what was opened
    held = _hold_folder(name, folder)
    if held is None:
        return None
    try:
        os.chmod(f"/proc/self/fd/{held}", mode)  # noqa: PTH101 - of a descriptor
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(held)


def _hold_folder(name: str | Path, folder: int | None) -> int | None:
    try:
        return os.open(name, _HELD, dir_fd=folder)
    except OSError as error:
        if error.errno in NOT_THERE - {errno.EACCES}:
            return None
        raise


@contextmanager
def opened_file(name: str, folder: int) -> Iterator[int | None]:
    """Open an ordinary file of an untrusted folder for reading; yields None when there is none of that name."""
    file = open_file(name, folder)
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def open_file(name: str | Path, folder: int | None = None) -> int | None:
    """Open an ordinary file for reading; None when there is none of that name, or it is locked."""
    try:
        file = os.open(name, FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def own_file(path: Path) -> BufferedReader:
    """Open a file of ours for reading. Raises FileNotFoundError also when something else has its name."""
    file = open_file(path)
    if file is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return os.fdopen(file, "rb")


def is_file(path: str | Path, folder: int | None = None) -> bool:
    """Check whether *path* is an ordinary file, which a link to one is not."""
    return kind_of(path, folder) == stat.S_IFREG


def kind_of(name: str | Path, folder: int | None = None) -> int:
    """Return the kind of what has that name, as in `stat.S_IFMT`; 0 when there is nothing, or it cannot be seen."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError as error:
        if error.errno in NOT_THERE:
            return 0
        raise


def names_in(folder: int, *, most: int) -> list[str]:
    """List the names in a folder, at most *most* of them."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, most)]
