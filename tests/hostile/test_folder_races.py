"""Whatever a sibling exchanges, and before whichever system call, nothing of the host is read, changed or waited for.

Every operation on folders of algorithms is done again and again. Each time, names in them are exchanged one system call
later: for a link to a file or a folder of the host, a pipe, a folder or a file; once, or again before each call that
follows.
"""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from node_agent.compute.ledger import ComputeJobId
from node_agent.compute.results import ResultStore
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.errors import NodeAgentError
from node_agent.store.rundir import DiskRunFolders

pytestmark = pytest.mark.timeout(300)

RUN = RunId(12)
JOB = JobKey("7-1")
COMPUTE_JOB = ComputeJobId("job")
TASK = "runs/000000012/mount/task-000000012"
OUTPUTS = "runs/000000012/mount/outputs"
SHARED = "jobs/7-1"
TREASURE = b"of the host"
LIMIT = 1 << 20
HANGS_AFTER = 5.0
PATIENCE = 25
"""So many times a restless sibling exchanges names; what somebody comes to who never stops has a test of its own."""

CALLS = (
    "access",
    "chmod",
    "chown",
    "copy_file_range",
    "fchmod",
    "fchown",
    "fstat",
    "fsync",
    "listdir",
    "lstat",
    "mkdir",
    "open",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "scandir",
    "setxattr",
    "stat",
    "unlink",
    "utime",
)
"""What may come between two looks at the same name."""

GROUPS = (
    (TASK, OUTPUTS, f"{SHARED}/a"),
    (
        f"{TASK}/input",
        f"{TASK}/output",
        f"{TASK}/token",
        f"{TASK}/sub",
        f"{OUTPUTS}/a.txt",
        f"{OUTPUTS}/z",
        f"{SHARED}/a/b",
    ),
    (
        f"{TASK}/sub/deeper",
        f"{OUTPUTS}/z/b.txt",
        f"{SHARED}/a/b/c",
        f"{TASK}/.token.new",
        f"{TASK}/.input.new",
    ),
)
"""Names that are exchanged at the same time."""


class Stage:
    """An agent's state directory with one run in it, beside files and folders of the host."""

    def __init__(self, place: Path) -> None:
        self.state = place / "state"
        self.host = place / "host"
        self.secret = self.host / "secret"
        self.private = self.host / "private"
        self.private.mkdir(parents=True)
        self.secret.write_bytes(TREASURE)
        # as an output is found in a task folder, and files in folders of outputs
        for name in ("output", "input", "token", "a.txt", "b.txt"):
            (self.private / name).write_bytes(TREASURE)
        for path, mode in ((self.secret, 0o604), (self.private, 0o705), (self.private / "output", 0o640)):
            path.chmod(mode)
        self.state.mkdir()
        ids = range(70_000, 70_256) if os.geteuid() == 0 else None
        self.folders = DiskRunFolders(self.state, user=(65534, 65534), ids=ids)
        self.results = ResultStore(self.state)
        self._fill()

    def _fill(self) -> None:
        self.folders.store_input(RUN, [b"input"])
        prepare(self)
        furnish(self)
        task, outputs, shared = (self.state / name for name in (TASK, OUTPUTS, SHARED))
        (task / "output").write_bytes(b"42" * 100)
        for folder in (task / "sub" / "deeper", outputs / "z", shared / "a" / "b" / "c"):
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(b"mine")
        (outputs / "a.txt").write_bytes(b"mine")
        (outputs / "z" / "b.txt").write_bytes(b"mine")

    def seen_outside(self) -> dict[str, tuple[Any, ...]]:
        """Describe everything of the host that the agent could reach through a link."""
        found = {}
        for path in (self.host, self.secret, self.private, *self.private.iterdir()):
            seen = path.stat()
            content = path.read_bytes() if path.is_file() else sorted(path.iterdir())
            found[str(path)] = (
                seen.st_mode,
                seen.st_uid,
                seen.st_gid,
                seen.st_mtime_ns,
                seen.st_nlink,
                content,
            )
        return found

    def taken_over(self) -> list[Path]:
        """List the files of the agent that leave this machine."""
        return [
            path
            for path in self.state.rglob("*")
            if path.name.startswith("result") or "compute" in path.parts
        ]


def prepare(stage: Stage) -> None:
    stage.folders.prepare(RUN, JOB, token=Secret("token"), open_to_all=False)


def furnish(stage: Stage) -> None:
    stage.folders.furnish(
        RUN,
        files={"inputs/0/file": b"", "sub/code": b"code"},
        executable=("sub/code",),
        writable=("outputs",),
        open_to_all=False,
    )


def capture(stage: Stage) -> None:
    stage.folders.capture_output(RUN, limit=LIMIT)


def collect(stage: Stage) -> None:
    with stage.folders.opened_outputs(RUN, "outputs") as outputs:
        stage.results.collect(COMPUTE_JOB, outputs=outputs, limit=LIMIT)


def measure(stage: Stage) -> None:
    stage.folders.used_bytes(RUN, JOB)


def store_input(stage: Stage) -> None:
    stage.folders.store_input(RUN, [b"input"])
    stage.folders.has_context(RUN)


def remove(stage: Stage) -> None:
    stage.folders.remove(RUN)


def remove_job(stage: Stage) -> None:
    stage.folders.remove_job(JOB)


# --- the sibling ----------------------------------------------------------------------------------------------


def link_to_a_file(name: Path, stage: Stage) -> None:
    name.symlink_to(stage.secret)


def link_to_a_folder(name: Path, stage: Stage) -> None:
    name.symlink_to(stage.private)


def pipe(name: Path, _: Stage) -> None:
    os.mkfifo(name)


def folder(name: Path, _: Stage) -> None:
    name.mkdir()
    (name / "file").write_bytes(b"mine")


def file(name: Path, _: Stage) -> None:
    name.write_bytes(b"mine")


KINDS = (link_to_a_file, link_to_a_folder, pipe, folder, file)
Make = Callable[[Path, Stage], None]


class Sibling:
    """Exchanges names before the call number *at*, and, if it is *restless*, before each one that follows."""

    def __init__(self, stage: Stage, names: tuple[str, ...], make: Make, *, at: int, restless: bool) -> None:
        self._stage = stage
        self._names = [stage.state / name for name in names]
        self._make = make
        self._at = at
        self._restless = restless
        self._is_busy = False
        self.calls = 0

    def meet(self) -> None:
        """Hear that the agent is about to make a call."""
        if self._is_busy:
            return
        self.calls += 1
        last = self._at + (PATIENCE if self._restless else 0)
        if self._at <= self.calls <= last:
            self._is_busy = True
            try:
                for name in self._names:
                    self._exchange(name)
            finally:
                self._is_busy = False

    def _exchange(self, name: Path) -> None:
        aside = name.with_name(f"{name.name}.aside")
        # the folder it lies in may be exchanged, or gone
        with suppress(OSError):
            if os.path.lexists(aside) and self._restless:
                name.rename(name.with_name(f"{name.name}.{self.calls}"))
                aside.rename(name)
            elif not os.path.lexists(aside):
                if os.path.lexists(name):
                    name.rename(aside)
                self._make(name, self._stage)


@contextmanager
def watched(sibling: Sibling) -> Iterator[None]:
    """Let the sibling know of every system call before it is made."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, announced(getattr(os, name), sibling))
        yield


def announced(call: Callable[..., Any], sibling: Sibling) -> Callable[..., Any]:
    def meet_and_call(*args: Any, **kwargs: Any) -> Any:
        sibling.meet()
        return call(*args, **kwargs)

    return meet_and_call


@contextmanager
def alarm() -> Iterator[None]:
    def give_up(_: int, __: FrameType | None) -> None:
        raise AssertionError("the agent waits for the algorithm")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the tests ------------------------------------------------------------------------------------------------

OPERATIONS = (prepare, furnish, store_input, capture, collect, measure, remove, remove_job)


def tried(
    place: Path, operation: Callable[[Stage], None], names: tuple[str, ...], make: Make, **how: Any
) -> int:
    """Do the operation once beside the sibling, check what came of it, and return the number of its system calls."""
    stage = Stage(place)
    before = stage.seen_outside()
    sibling = Sibling(stage, names, make, **how)
    with alarm(), watched(sibling), suppress(NodeAgentError):
        operation(stage)
    context = (names, make.__name__, how)
    assert stage.seen_outside() == before, context
    for path in stage.taken_over():
        assert stat.S_ISDIR(path.lstat().st_mode) or TREASURE not in path.read_bytes(), (context, path)
        assert not path.is_symlink(), (context, path)
    with alarm():
        stage.folders.remove(RUN)
        stage.folders.remove_job(JOB)
    assert stage.seen_outside() == before, context
    assert [*(stage.state / "runs").iterdir(), *(stage.state / "jobs").iterdir()] == []
    return sibling.calls


@pytest.mark.parametrize("restless", [False, True], ids=["once", "restless"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_nothing_of_the_host_is_touched_whenever_names_are_exchanged(
    own_dir: Path, operation: Callable[[Stage], None], restless: bool
) -> None:
    calls = tried(own_dir / "undisturbed", operation, (), file, at=0, restless=False)
    assert calls > 1
    for at in range(1, calls + 1, 4 if restless else 1):
        for group, names in enumerate(GROUPS):
            for make in KINDS:
                place = own_dir / f"{at}-{group}-{make.__name__}"
                tried(place, operation, names, make, at=at, restless=restless)
