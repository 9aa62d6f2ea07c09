"""Ties a program to the life of the agent, gives up root for it, and becomes it.

A program of its own: `leash.py AGENT UID GID PROGRAM ARGUMENT…`. It ends with the thread that started it, whatever way
that ends. Standard library only, and nothing of ours: it is started without site packages.
"""

import os
import signal
import sys
from typing import Any

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def give_up_root(uid: int, gid: int) -> None:
    """Become another user for good; the pipe to the agent goes along, since some programs open it by name."""
    if uid == os.geteuid():
        return
    for pipe in (1, 2):
        os.fchown(pipe, uid, gid)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def main(arguments: list[str]) -> None:
    """Set everything up and become the program."""
    agent, uid, gid, *command = arguments
    # While this is still root: another user may not be able to read the library.
    kernel = library()
    give_up_root(int(uid), int(gid))
    if kernel is not None:
        # Only now, for a change of user undoes it.
        kernel.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != int(agent):
        sys.exit("the agent has ended")
    os.execv(command[0], command)  # noqa: S606 - that is what it is for


def library() -> Any:
    """Load the C library; None where that is not to be had, and the agent finds what it left over at its next start."""
    try:
        import ctypes

        return ctypes.CDLL(None)
    except (ImportError, OSError, MemoryError):
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
