"""Folders that algorithms write to: bounds, what cannot be opened, and what lies in the way."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from node_agent.compute.ledger import ComputeJobId
from node_agent.compute.results import MAX_ENTRIES, ResultStore
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.errors import FolderBusy, OutputTooLarge, StartFailed
from node_agent.payload.chunks import EscapedText, PlainFile
from node_agent.store.rundir import DiskRunFolders
from node_agent.store.untrusted.opening import opened_file, opened_folder
from node_agent.store.untrusted.trees import LONGEST_REMOVAL, remove_tree, tree_size

RUN = RunId(12)
JOB = JobKey("7-1")
LIMIT = 100_000
JOB_ID = ComputeJobId("job")


@pytest.fixture
def folders(own_dir: Path) -> DiskRunFolders:
    return DiskRunFolders(own_dir, user=(65534, 65534))


@pytest.fixture
def output(folders: DiskRunFolders, own_dir: Path) -> Path:
    prepare(folders)
    return own_dir / "runs" / "000000012" / "mount" / "task-000000012" / "output"


def prepare(folders: DiskRunFolders) -> None:
    folders.store_input(RUN, [b"input"])
    folders.prepare(RUN, JOB, token=Secret("token"), open_to_all=False)


def content_of(folders: DiskRunFolders) -> bytes:
    result = folders.result_path(RUN)
    assert result is not None
    return result.read_bytes()


# --- copying --------------------------------------------------------------------------------------------------


def test_a_result_that_grows_while_it_is_copied_is_refused_at_the_limit(
    folders: DiskRunFolders, output: Path, own_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = 0
    copy = os.copy_file_range

    def grow(source: int, target: int, size: int) -> int:
        nonlocal copied
        with output.open("ab") as file:
            file.write(b"x" * 1000)
        copied += (moved := copy(source, target, min(size, 1000)))
        return moved

    output.write_bytes(b"x")
    monkeypatch.setattr(os, "copy_file_range", grow)
    with pytest.raises(OutputTooLarge, match=r"100,001 bytes.*100,000"):
        folders.capture_output(RUN, limit=LIMIT)
    assert copied == LIMIT + 1
    assert folders.result_path(RUN) is None
    assert not list(own_dir.rglob(".result.new"))


def test_a_result_that_shrinks_while_it_is_copied_is_what_was_read(
    folders: DiskRunFolders, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range

    def cut(source: int, target: int, _: int) -> int:
        moved = copy(source, target, 10)
        os.truncate(output, 10)
        return moved

    output.write_bytes(b"0123456789abc")
    monkeypatch.setattr(os, "copy_file_range", cut)
    assert folders.capture_output(RUN, limit=LIMIT) == 10
    assert content_of(folders) == b"0123456789"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_result_is_read_and_written_where_the_kernel_cannot_copy(
    folders: DiskRunFolders, output: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    output.write_bytes(bytes(range(256)) * 100)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert folders.capture_output(RUN, limit=LIMIT) == 25_600
    assert content_of(folders) == bytes(range(256)) * 100


def shared_blocks(target: int, request: int, source: int) -> int:
    """Do what FICLONE does where a file system can share blocks: the whole file, whatever its size."""
    assert request == 0x40049409
    with os.fdopen(os.dup(source), "rb") as whole, os.fdopen(os.dup(target), "wb") as clone:
        shutil.copyfileobj(whole, clone)
    return 0


def test_a_clone_is_taken_where_the_file_system_makes_one(
    folders: DiskRunFolders, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.write_bytes(b"42")
    monkeypatch.setattr(fcntl, "ioctl", shared_blocks)
    assert folders.capture_output(RUN, limit=LIMIT) == 2
    assert content_of(folders) == b"42"


def test_a_clone_of_a_file_that_grew_is_refused(
    folders: DiskRunFolders, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow_and_clone(target: int, request: int, source: int) -> int:
        output.write_bytes(b"x" * (LIMIT + 7))
        return shared_blocks(target, request, source)

    monkeypatch.setattr(fcntl, "ioctl", grow_and_clone)
    with pytest.raises(OutputTooLarge, match=r"100,007 bytes"):
        folders.capture_output(RUN, limit=LIMIT)
    assert folders.result_path(RUN) is None


def test_what_is_written_after_the_copy_does_not_reach_the_result(
    folders: DiskRunFolders, output: Path
) -> None:
    output.write_bytes(b"42")
    with output.open("r+b") as kept_open:
        folders.capture_output(RUN, limit=LIMIT)
        kept_open.write(b"no")
    assert content_of(folders) == b"42"
    assert not output.exists()


def test_a_result_of_the_agent_with_a_second_name_elsewhere_is_not_made(
    folders: DiskRunFolders, output: Path
) -> None:
    output.write_bytes(b"42")
    os.link(output, output.with_name("second"))
    folders.capture_output(RUN, limit=LIMIT)
    result = folders.result_path(RUN)
    assert result is not None
    assert (result.stat().st_nlink, stat.S_IMODE(result.stat().st_mode)) == (1, 0o600)


# --- opening --------------------------------------------------------------------------------------------------


def test_a_file_lease_of_the_algorithm_holds_nobody_up(own_dir: Path) -> None:
    (own_dir / "output").write_bytes(b"42")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel tells the owner of the lease
    with (own_dir / "output").open("r+b") as leased, opened_folder(own_dir) as folder:
        assert folder is not None
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with opened_file("output", folder) as file:
            assert file is None
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, before)


def test_a_link_in_place_of_a_result_is_no_result(folders: DiskRunFolders, own_dir: Path) -> None:
    prepare(folders)
    (own_dir / "secret").write_bytes(b"secret")
    for name in ("result", "result.sealed"):
        (own_dir / "runs" / "000000012" / name).symlink_to(own_dir / "secret")
    assert (folders.result_path(RUN), folders.sealed_path(RUN)) == (None, None)


def test_neither_a_link_nor_a_pipe_is_sent(own_dir: Path) -> None:
    (own_dir / "secret").write_bytes(b"secret")
    (own_dir / "link").symlink_to(own_dir / "secret")
    os.mkfifo(own_dir / "pipe")
    for send in (
        lambda: list(PlainFile(own_dir / "link")),
        lambda: EscapedText(own_dir / "link"),
        lambda: list(PlainFile(own_dir / "pipe")) or EscapedText(own_dir / "pipe"),
    ):
        with pytest.raises(OSError, match=r"symbolic links|ordinary file"):
            send()


# --- handing over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input", "token"])
def test_a_folder_in_the_place_of_a_file_ends_the_run_and_not_the_step(
    folders: DiskRunFolders, output: Path, name: str
) -> None:
    (output.with_name(name)).unlink()
    (output.with_name(name) / "inner").mkdir(parents=True)
    folders.store_input(RUN, [b"again"])
    with pytest.raises(StartFailed, match=f"in the way of {name}"):
        folders.prepare(RUN, JOB, token=Secret("t"), open_to_all=False)


def test_a_link_in_the_place_of_the_task_folder_ends_the_run(folders: DiskRunFolders, output: Path) -> None:
    output.parent.rename(output.parent.with_name("elsewhere"))
    output.parent.symlink_to("elsewhere")
    with pytest.raises(StartFailed, match="in the way of task-000000012"):
        folders.prepare(RUN, JOB, token=Secret("t"), open_to_all=False)


def test_files_are_handed_over_also_into_another_file_system(
    folders: DiskRunFolders, own_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def within(source: str | Path, target: str | Path, **folders_of: int) -> None:
        if "dst_dir_fd" in folders_of and "src_dir_fd" not in folders_of:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **folders_of)

    monkeypatch.setattr(os, "rename", within)
    prepare(folders)
    task = own_dir / "runs" / "000000012" / "mount" / "task-000000012"
    assert {path.name: path.read_bytes() for path in task.iterdir()} == {
        "input": b"input",
        "token": b"token",
        "output": b"",
    }
    assert sorted(path.name for path in task.parents[1].iterdir()) == ["mount"]


# --- measuring ------------------------------------------------------------------------------------------------


def test_more_entries_than_are_counted_are_too_large(own_dir: Path) -> None:
    for number in range(11):
        (own_dir / "tree" / str(number)).mkdir(parents=True)
    assert tree_size(own_dir / "tree", most=11) >= 11 * 4096
    with pytest.raises(OutputTooLarge, match="more than 10 files"):
        tree_size(own_dir / "tree", most=10)


def test_a_folder_that_grows_ahead_of_the_walk_does_not_hold_it(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_dir / "tree" / "0").mkdir(parents=True)
    scan, numbers = os.scandir, count(1)

    def grow(folder: int) -> object:
        os.mkdir(f"/proc/self/fd/{folder}/{next(numbers)}")  # noqa: PTH102 - of a descriptor
        return scan(folder)

    monkeypatch.setattr(os, "scandir", grow)
    with pytest.raises(OutputTooLarge, match=r"deep|more than 50 files"):
        tree_size(own_dir / "tree", most=50)


def test_what_lies_in_a_locked_folder_counts(own_dir: Path) -> None:
    (own_dir / "tree" / "locked").mkdir(parents=True)
    (own_dir / "tree" / "locked" / "file").write_bytes(b"x" * 1_000_000)
    (own_dir / "tree" / "locked").chmod(0)
    assert tree_size(own_dir / "tree") > 1_000_000


# --- removing -------------------------------------------------------------------------------------------------


def test_a_removal_that_never_ends_is_interrupted_and_goes_on_later(own_dir: Path) -> None:
    tree = own_dir / "tree"
    for number in range(10):
        (tree / str(number)).mkdir(parents=True)
    seconds = count(0.0, LONGEST_REMOVAL / 5)
    with pytest.raises(FolderBusy, match="not empty after 60 seconds"):
        remove_tree(tree, now=lambda: next(seconds))
    assert len(list(tree.iterdir())) > 0
    remove_tree(tree)
    assert not tree.exists()


@contextmanager
def as_root() -> Iterator[None]:
    uid, gid = os.geteuid(), os.getegid()
    os.seteuid(0)
    os.setegid(0)
    try:
        yield
    finally:
        os.setegid(gid)
        os.seteuid(uid)


def test_what_belongs_to_somebody_else_is_tried_again_later(own_dir: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs an ordinary user beside root")
    (own_dir / "tree").mkdir()
    with as_root():
        (own_dir / "tree" / "foreign" / "inner").mkdir(parents=True)
    if os.geteuid() != 0:
        with pytest.raises(FolderBusy, match="cannot be removed now"):
            remove_tree(own_dir / "tree")
    with as_root():
        shutil.rmtree(own_dir / "tree" / "foreign", ignore_errors=True)
    remove_tree(own_dir / "tree")
    assert not (own_dir / "tree").exists()


def test_a_removal_takes_folders_from_those_who_hold_them_open(quick_dir: Path) -> None:
    own_dir = quick_dir
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    (own_dir / "tree" / "inner").mkdir(parents=True)
    for path in (own_dir / "tree", own_dir / "tree" / "inner"):
        os.chown(path, 65534, 65534)
    held = os.open(own_dir / "tree" / "inner", os.O_RDONLY | os.O_DIRECTORY)
    tried: list[str] = []

    def write_on(name: str, make: Callable[[str], None]) -> float:
        os.seteuid(65534)
        try:
            make(name)
        except OSError as error:
            tried.append(errno.errorcode[error.errno or 0])
        finally:
            os.seteuid(0)
        return 0.0

    names = (str(number) for number in count())
    remove_tree(
        own_dir / "tree",
        now=lambda: write_on(next(names), lambda name: os.mkdir(name, dir_fd=held)),
    )
    os.close(held)
    assert not (own_dir / "tree").exists()
    assert {"EACCES", "ENOENT"} >= set(tried[3:]) != set()


def test_a_job_folder_with_a_time_in_the_future_is_idle_all_the_same(
    folders: DiskRunFolders, own_dir: Path
) -> None:
    prepare(folders)
    os.utime(own_dir / "jobs" / JOB, (4e9, 4e9))
    assert list(folders.idle_jobs(before=3e9)) == [JOB]


# --- outputs of compute jobs ----------------------------------------------------------------------------------


def test_a_file_that_shrinks_while_it_is_archived_ends_in_zeros(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_dir / "outputs" / "folder" / "file"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"0123456789")
    add = tarfile.TarFile.addfile

    def cut_and_add(archive: tarfile.TarFile, entry: tarfile.TarInfo, content: object = None) -> None:
        if content is not None:
            os.truncate(file, 4)
        add(archive, entry, content)  # type: ignore[arg-type]

    monkeypatch.setattr(tarfile.TarFile, "addfile", cut_and_add)
    store = ResultStore(own_dir)
    with opened_folder(own_dir / "outputs") as outputs:
        store.collect(JOB_ID, outputs=outputs, limit=LIMIT)
    with tarfile.open(own_dir / "compute" / "job.new" / "0") as archive:
        content = archive.extractfile("folder/file")
        assert content is not None
        assert content.read() == b"0123\0\0\0\0\0\0"


def test_a_folder_with_too_many_names_is_not_even_listed(
    own_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        name = "x"

    @contextmanager
    def endless(_: int) -> Iterator[Iterator[Entry]]:
        yield (Entry() for _ in count())

    store = ResultStore(own_dir)
    with opened_folder(own_dir) as outputs:
        monkeypatch.setattr(os, "scandir", endless)
        with pytest.raises(OutputTooLarge, match=rf"{MAX_ENTRIES:,} files"):
            store.collect(JOB_ID, outputs=outputs, limit=LIMIT)
