"""Ties a program to the life of the agent, gives up root for it, and becomes it.

A program of its own: `leash.py AGENT UID GID PROGRAM ARGUMENT…`. It ends with the thread that started it, whatever way
that ends. Standard library only, and nothing of ours: it is started without site packages.
"""

import contextlib
import os
import signal
import sys

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


def tie_to_parent() -> None:
    """Have the kernel end this process with its parent; to be done after a change of user, which would undo it."""
    # Where that is not to be had, the agent finds what it left over at its next start.
    with contextlib.suppress(ImportError, OSError, MemoryError):
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Set everything up and become the program."""
    agent, uid, gid, *command = arguments
    give_up_root(int(uid), int(gid))
    tie_to_parent()
    if os.getppid() != int(agent):
        sys.exit("the agent has ended")
    os.execv(command[0], command)  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
