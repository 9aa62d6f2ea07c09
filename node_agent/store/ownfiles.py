"""Files that are the agent's alone: written under a temporary name, synced and renamed; read without following links.

Must not know what is in them.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from node_agent.store.disk import sync_folder
from node_agent.store.untrusted.opening import own_file

_BEHIND = 8 << 20
"""So many bytes of a large file may wait before the disk begins with them."""


def read_if_there(path: Path) -> bytes:
    """Read a file of ours; one that is not there is empty."""
    try:
        with own_file(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""


def write(path: Path, content: bytes) -> None:
    """Write a whole file."""
    write_pieces(path, (content,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file piece by piece. What *pieces* raises passes through, and nothing is kept then."""
    with new_file(path) as file:
        fill(file, pieces)


def fill(file: BinaryIO, pieces: Iterable[bytes]) -> None:
    """Write *pieces* into an open file, and let the disk begin with them."""
    begun = written = 0
    for piece in pieces:
        written += file.write(piece)
        if written - begun >= _BEHIND:
            # to wait for all of it at the end takes longer
            os.posix_fadvise(file.fileno(), begun, written - begun, os.POSIX_FADV_DONTNEED)
            begun = written


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; once it is complete and on the disk it gets its own."""
    temporary = path.with_name(f".{path.name}.new")
    with draft_file(temporary) as file:
        yield file
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def draft_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file of ours, and sync it; when anything fails it is gone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # half of a large file must not keep the disk full
        path.unlink(missing_ok=True)
        raise
