"""Tries whether a user can read a file or folder, by being that user.

Run as a program of its own, so that giving up root is for good and never happens to the agent:
`trial.py PATH [UID GID GROUP…]` prints the first unreadable path as a JSON string relative to PATH ("" is
PATH itself), or null. Standard library only, and nothing of ours: it is started without site packages.
"""

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

MAX_ENTRIES = 1000
"""How many entries of a folder are looked at; a folder of millions must not delay the start."""


def first_refused(root: Path, may_read: Callable[[Path], bool], *, limit: int = MAX_ENTRIES) -> Path | None:
    """Find the first file or folder at or below *root* that *may_read* refuses; links are not followed."""
    entries = chain([root], _below(root)) if root.is_dir() else iter([root])
    for entry in islice(entries, limit):
        if not may_read(entry):
            return entry
    return None


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = Path(parent, name)
            if _is_plain(entry):
                yield entry


def _is_plain(entry: Path) -> bool:
    try:
        mode = entry.lstat().st_mode
    except FileNotFoundError:
        return False  # gone since it was listed
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def can_read(entry: Path) -> bool:
    """Ask the kernel whether this very user may read *entry*, and enter it if it is a folder."""
    return os.access(entry, os.R_OK) and (not entry.is_dir() or os.access(entry, os.X_OK))


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Turn into another user for good."""
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def try_path(opened: int) -> Path | None:
    """Give the first unreadable entry relative to what *opened* stands for.

    The way to it does not count: a container sees the mounted file alone, not the folders it lies in.
    """
    place = Path(f"/proc/self/fd/{opened}")
    if not can_read(place):
        return Path()
    if not place.is_dir():
        return None
    os.fchdir(opened)
    return first_refused(Path(), can_read)


def main(arguments: list[str]) -> None:
    """Try the path and print the answer."""
    path, *identity = arguments
    opened = os.open(path, os.O_PATH)
    if identity:
        uid, gid, *groups = map(int, identity)
        become(uid, gid, groups)
    refused = try_path(opened)
    name = None if refused is None else str(refused) if refused.parts else ""
    sys.stdout.write(json.dumps(name))


if __name__ == "__main__":
    main(sys.argv[1:])
