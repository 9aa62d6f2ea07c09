"""The lock: one agent per name and per state directory; the second one learns who the first is."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from node_agent.errors import ConfigError, DiskFull
from node_agent.store.lock import AgentLock, running_pid

HOLD = """
import sys
from pathlib import Path
from node_agent.store.lock import AgentLock
lock = AgentLock(sys.argv[1], Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def name() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def other(name: str, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of the name in `tmp_path`."""
    command = [sys.executable, "-c", HOLD, name, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_agent_in_the_same_directory_is_refused_and_learns_the_pid(
    name: str, tmp_path: Path, other: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(ConfigError, match=f"process {other.pid}") as refusal:
        AgentLock(name, tmp_path)
    assert name in refusal.value.message
    assert "Stop it first" in refusal.value.hint


def test_a_second_agent_of_the_same_name_elsewhere_is_refused_and_learns_the_pid(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, other: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(ConfigError, match=f"process {other.pid}"):
        AgentLock(name, tmp_path_factory.mktemp("elsewhere"))


def test_however_many_agents_are_refused_the_next_one_is_refused_too(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = AgentLock(name, tmp_path)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for _ in range(200):
        with pytest.raises(ConfigError, match=f"process ({os.getpid()}|unknown)"):
            AgentLock(name, elsewhere)
    first.release()


def test_a_refused_agent_leaves_its_directory_free(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, other: "subprocess.Popen[str]"
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(ConfigError):
        AgentLock(name, elsewhere)
    assert running_pid(elsewhere) is None
    AgentLock(f"{name}-b", elsewhere).release()


def test_agents_of_different_names_do_not_meet(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with ExitStack() as stack:
        for number in range(3):
            lock = AgentLock(f"{name}-{number}", tmp_path_factory.mktemp("state"))
            stack.callback(lock.release)


def test_the_lock_ends_with_its_process_however_it_ends(
    name: str, tmp_path: Path, other: "subprocess.Popen[str]"
) -> None:
    assert running_pid(tmp_path) == other.pid
    other.kill()
    other.wait()
    assert running_pid(tmp_path) is None
    lock = AgentLock(name, tmp_path)
    assert running_pid(tmp_path) == os.getpid()
    lock.release()
    assert running_pid(tmp_path) is None


def test_where_no_agent_ever_ran_there_is_none(tmp_path: Path) -> None:
    assert running_pid(tmp_path) is None


def test_a_lock_without_a_readable_pid_is_still_a_lock(name: str, tmp_path: Path) -> None:
    lock = AgentLock(name, tmp_path)
    (tmp_path / "lock").write_text("")
    with pytest.raises(ConfigError, match="process unknown"):
        AgentLock(name, tmp_path)
    assert running_pid(tmp_path) is None
    lock.release()


def test_a_full_disk_is_said_and_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match="full") as trouble:
        AgentLock(name, tmp_path)
    assert "Free some space" in trouble.value.hint


def test_a_lock_file_that_cannot_be_opened_is_the_operators_matter(name: str, tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(ConfigError, match=r"lock file .* cannot be used") as refusal:
        AgentLock(name, tmp_path)
    assert "owner" in refusal.value.hint


def test_the_lock_file_does_not_grow_from_one_agent_to_the_next(name: str, tmp_path: Path) -> None:
    AgentLock(name, tmp_path).release()
    size = (tmp_path / "lock").stat().st_size
    (tmp_path / "lock").write_text("123456789\n")
    AgentLock(name, tmp_path).release()
    assert (tmp_path / "lock").stat().st_size == size
    assert (tmp_path / "lock").read_text().split() == [str(os.getpid())]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("listens", [True, False])
def test_another_user_who_binds_the_abstract_socket_keeps_no_agent_from_starting(
    name: str, tmp_path: Path, *, listens: bool
) -> None:
    squat = (
        "import os, socket, sys; os.setuid(64300); s = socket.socket(socket.AF_UNIX);"
        f"s.bind('\\0node-agent.' + sys.argv[1]); {'s.listen()' if listens else 'pass'};"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", squat, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "held\n"
        lock = AgentLock(name, tmp_path)
        with pytest.raises(ConfigError):
            AgentLock(name, tmp_path.parent)
        lock.release()
        squatter.kill()
