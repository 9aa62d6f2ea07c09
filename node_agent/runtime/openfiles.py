"""What the processes of a container keep on a disk without a name: files that were deleted while they are open.

Owns the reading of /proc. A container's processes can only be seen when they run on this machine and in this agent's
process namespace, and be looked into only as root or as the user they run as; whatever cannot be read is reported as such.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final

from node_agent.domain.diskuse import Held

_PROC: Final = Path("/proc")
_CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
_BLOCK: Final = 512
"""The unit of st_blocks, whatever the file system's own is."""
_DELETED: Final = "(deleted)"
MOST_FILES: Final = 100_000
"""So many open files are looked at: an algorithm may have millions, and to look at each costs some microseconds."""

_File = tuple[int, int]
"""Device and number of a file: many processes may hold the same one."""


def held_on(folder: Path, container: str, *, pid: int | None = None) -> Held:
    """Look at the open files of a container that lie on the disk of *folder*; *pid* is its first process, if known."""
    try:
        look = _Look(folder.stat().st_dev)
    except OSError:
        return Held()
    processes = _processes(container, pid)
    for process in processes:
        look.into(_PROC / str(process))
    return Held(
        unnamed=sum(look.files.values()),
        written=look.written,
        is_complete=bool(processes) and look.is_complete,
    )


# --- which processes a container has --------------------------------------------------------------------------


def _processes(container: str, pid: int | None) -> list[int]:
    """List the container's processes; a number that belongs to another one by now, or to another machine, gives none."""
    if pid is None:
        return [found for found in _all_processes() if container in _groups_of(found)]
    group = _group_of(container, _groups_of(pid))
    if not group:
        return []
    for file in group:
        with suppress(OSError, ValueError):
            return [int(number) for number in file.read_text().split()]
    return _processes(container, None)


def _all_processes() -> list[int]:
    try:
        return [int(place.name) for place in _PROC.iterdir() if place.name.isdecimal()]
    except OSError:
        return []


def _groups_of(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cgroup").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _group_of(container: str, groups: str) -> list[Path]:
    """Give the places where the kernel may list the processes of the control group named after the container."""
    found = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if container in path:
            found.append(_CONTROL_GROUPS / controllers.removeprefix("name=") / path.lstrip("/"))
    return [folder / "cgroup.procs" for folder in found]


# --- what they have open --------------------------------------------------------------------------------------


class _Look:
    """Adds up what processes have open on one device."""

    def __init__(self, device: int) -> None:
        self.files: dict[_File, int] = {}
        self.written = 0
        self.is_complete = True
        self._device = device
        self._left = MOST_FILES

    def into(self, process: Path) -> None:
        """Add what a process has open; one that ended has nothing."""
        try:
            self.written += _written_by(process)
            for path in chain(_open_files(process), _deleted_mappings(process)):
                if self._left <= 0:
                    self.is_complete = False
                    return
                self._left -= 1
                self._count(path)
        except (FileNotFoundError, ProcessLookupError):
            pass
        except OSError:
            self.is_complete = False

    def _count(self, path: str) -> None:
        with suppress(FileNotFoundError):  # closed meanwhile
            # this looks at the open file itself, and opens nothing
            found = os.stat(path)  # noqa: PTH116 - many thousands, and each is text
            if found.st_nlink == 0 and found.st_dev == self._device and stat.S_ISREG(found.st_mode):
                self.files[(found.st_dev, found.st_ino)] = found.st_blocks * _BLOCK


def _written_by(process: Path) -> int:
    lines = (process / "io").read_text().splitlines()
    said = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
    return max(0, said.get("write_bytes", 0) - said.get("cancelled_write_bytes", 0))


def _open_files(process: Path) -> Iterator[str]:
    # each thread may have a table of its own
    for thread in (process / "task").iterdir():
        with os.scandir(thread / "fd") as entries:
            yield from (entry.path for entry in entries)


def _deleted_mappings(process: Path) -> Iterator[str]:
    """List the mapped files that have no name: a mapping outlives the closing of its file."""
    lines = (process / "maps").read_text(errors="replace").splitlines()
    for line in lines:
        if line.endswith(_DELETED) and "/" in line:
            yield str(process / "map_files" / line.split(" ", 1)[0])
