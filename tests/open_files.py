"""Which files this process holds open: what fails must not leave any."""

from contextlib import suppress
from pathlib import Path


def open_files_in(folder: Path) -> list[str]:
    """Return the names of the files below *folder* that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        # the descriptor that lists the folder is closed by now
        with suppress(OSError):
            place = descriptor.readlink()
            if place.is_relative_to(folder):
                found.append(place.name)
    return sorted(found)
