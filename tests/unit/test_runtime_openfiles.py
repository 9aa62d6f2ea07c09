"""Files without a name that the processes of a control group have open; the processes are real, and this test's own."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node_agent.runtime import openfiles
from node_agent.runtime.openfiles import held_on

MIB = 2**20
CONTAINER = "c" * 64
KEEP = """\
import mmap, os, sys, threading
def file(name):
    descriptor = os.open(name, os.O_CREAT | os.O_RDWR)
    os.unlink(name)
    os.write(descriptor, b"x" * 2**20)
    return descriptor
kept = file("one")
def closed_but_mapped():
    descriptor = file("two")
    found = mmap.mmap(descriptor, 2**20)
    os.close(descriptor)
    return found
mapped = closed_but_mapped()
pipe = os.pipe()
named = os.open("named", os.O_CREAT | os.O_RDWR)
os.write(named, b"x" * 2**20)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a file that is open, one that is mapped, one with a name, and a pipe."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", KEEP], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.stdin.close()
        process.wait()


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Have the kernel say, for this test, that a process belongs to the container."""

    def group(pid: int) -> None:
        folder = tmp_path / "groups" / "pids" / "docker" / CONTAINER
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text(f"{pid}\n")
        monkeypatch.setattr(openfiles, "_CONTROL_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(
            openfiles,
            "_groups_of",
            lambda asked: f"8:pids:/docker/{CONTAINER}\n0::/\n" if asked == pid else "0::/init.scope\n",
        )

    return group


@pytest.mark.parametrize("is_known", [True, False])
def test_files_without_a_name_are_counted_once_and_those_with_one_not(
    keeper: "subprocess.Popen[bytes]", grouped: Callable[[int], None], tmp_path: Path, is_known: bool
) -> None:
    grouped(keeper.pid)
    held = held_on(tmp_path, CONTAINER, pid=keeper.pid if is_known else None)
    mappings_can_be_read = os.geteuid() == 0
    assert held.is_complete is mappings_can_be_read
    assert (2 if mappings_can_be_read else 1) * MIB <= held.unnamed < 3 * MIB


def test_files_on_another_disk_do_not_count(
    keeper: "subprocess.Popen[bytes]", grouped: Callable[[int], None]
) -> None:
    grouped(keeper.pid)
    assert held_on(Path("/proc"), CONTAINER, pid=keeper.pid).unnamed == 0


def test_a_number_that_is_another_process_by_now_is_not_looked_into(
    keeper: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    held = held_on(tmp_path, CONTAINER, pid=keeper.pid)
    assert (held.unnamed, held.is_complete) == (0, False)


def test_a_container_without_processes_or_a_folder_that_is_gone_is_not_complete(tmp_path: Path) -> None:
    assert not held_on(tmp_path, CONTAINER).is_complete
    assert not held_on(tmp_path / "gone", CONTAINER, pid=os.getpid()).is_complete


def test_too_many_open_files_are_not_all_looked_at(
    keeper: "subprocess.Popen[bytes]",
    grouped: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grouped(keeper.pid)
    monkeypatch.setattr(openfiles, "MOST_FILES", 3)
    assert not held_on(tmp_path, CONTAINER, pid=keeper.pid).is_complete


def test_sockets_and_listening_things_are_no_files(tmp_path: Path, grouped: Callable[[int], None]) -> None:
    grouped(os.getpid())
    before = held_on(tmp_path, CONTAINER, pid=os.getpid()).unnamed
    with closing(socket.socket()) as opened:
        opened.bind(("127.0.0.1", 0))
        assert held_on(tmp_path, CONTAINER, pid=os.getpid()).unnamed == before
