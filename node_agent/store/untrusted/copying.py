"""Copying an open file of an algorithm into a file of ours, whatever somebody does to it meanwhile."""

import errno
import fcntl
import os

_FICLONE = 0x40049409
_PIECE = 8 << 20
_PLAINLY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
"""What copy_file_range fails with where the file systems or a filter of system calls do not let it work."""


def clone_or_copy(source: int, target: int, *, limit: int) -> int:
    """Fill the empty file *target* with what *source* holds and return its size, which is larger than *limit* if that is.

    At most *limit* + 1 bytes are written: the file may grow while it is copied. Shares the blocks where the file system
    can do so.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return copy(source, target, limit=limit)
    return os.fstat(target).st_size


def copy(source: int, target: int, *, limit: int) -> int:
    """Append what *source* holds from its position, at most *limit* + 1 bytes, to *target*; return how many."""
    copied = 0
    move = _moved
    while left := limit + 1 - copied:
        try:
            count = move(source, target, min(_PIECE, left))
        except OSError as error:
            if move is _read_and_written or error.errno not in _PLAINLY:
                raise
            move = _read_and_written
            continue
        if not count:
            break
        copied += count
    return copied


def _moved(source: int, target: int, size: int) -> int:
    return os.copy_file_range(source, target, size)


def _read_and_written(source: int, target: int, size: int) -> int:
    piece = os.read(source, size)
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(target, rest) :]
    return len(piece)
