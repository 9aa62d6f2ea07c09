"""Every run has a uid, and every job a group, that nobody else has as long as anything of it is left."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.store.rundir import DiskRunFolders
from node_agent.store.users import RunUsers

SHARED = (64198, 64198)
IDS = range(70_000, 70_010)
JOB = JobKey("7-1")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders to others")


def folders_in(place: Path, ids: range | None = IDS) -> DiskRunFolders:
    return DiskRunFolders(place, user=SHARED, ids=ids)


def prepare(folders: DiskRunFolders, run: int, job: JobKey = JOB, *, open_to_all: bool = False) -> Folders:
    folders.store_input(RunId(run), [b"input"])
    return folders.prepare(RunId(run), job, token=Secret("t"), open_to_all=open_to_all)


@contextmanager
def being(user: tuple[int, int]) -> Iterator[None]:
    """Be a container's user, without any further group."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user[1])
    os.seteuid(user[0])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


# --- which ids ------------------------------------------------------------------------------------------------


def test_without_a_range_all_runs_have_one_user(quick_dir: Path) -> None:
    users = RunUsers(quick_dir, quick_dir, shared=SHARED, ids=None)
    assert {users.of(RunId(run), JOB) for run in range(100)} == {SHARED}
    users.release_run(RunId(1))
    users.release_job(JOB)
    assert not users.are_apart


@needs_root
def test_runs_have_uids_of_their_own_and_the_runs_of_a_job_one_group(quick_dir: Path) -> None:
    folders = folders_in(quick_dir)
    first, second, other = prepare(folders, 1), prepare(folders, 2), prepare(folders, 3, JobKey("8-1"))
    assert len({made.user[0] for made in (first, second, other)}) == 3
    assert first.user[1] == second.user[1] != other.user[1]
    assert all(made.user[0] in IDS and made.user[1] in IDS for made in (first, second, other))


@needs_root
def test_a_uid_is_not_given_again_while_the_folder_of_its_run_is_there(quick_dir: Path) -> None:
    folders = folders_in(quick_dir)
    first = prepare(folders, 1)
    assert prepare(folders, 1 + len(IDS)).user[0] != first.user[0]
    folders.remove(RunId(1))
    assert prepare(folders, 1 + 2 * len(IDS)).user[0] == first.user[0]


@needs_root
def test_a_group_is_not_given_again_while_the_folder_of_its_job_is_there(quick_dir: Path) -> None:
    folders = folders_in(quick_dir)
    groups = [prepare(folders, run, JobKey(f"{run}-1")).user[1] for run in range(1, len(IDS) + 1)]
    assert sorted(groups) == list(IDS)
    folders.remove_job(JobKey("3-1"))
    assert prepare(folders, 99, JobKey("99-1")).user[1] == groups[2]


@needs_root
def test_runs_and_jobs_keep_their_ids_when_the_agent_starts_again(quick_dir: Path) -> None:
    before = folders_in(quick_dir)
    made = {run: prepare(before, run).user for run in (1, 1 + len(IDS), 1 + 2 * len(IDS))}
    after = folders_in(quick_dir)
    assert {run: prepare(after, run).user for run in reversed(made)} == made
    assert prepare(after, 1 + 3 * len(IDS)).user[0] not in {uid for uid, _ in made.values()}


@needs_root
def test_a_run_whose_container_an_earlier_agent_made_keeps_the_user_of_all(quick_dir: Path) -> None:
    prepare(folders_in(quick_dir, ids=None), 1)
    made = prepare(folders_in(quick_dir), 1)
    assert made.user[0] == SHARED[0]
    # which may be at work: it stays the owner of the job's folder
    assert made.temporary.stat().st_uid == SHARED[0]


@needs_root
def test_more_runs_than_uids_share_them_rather_than_fail(quick_dir: Path) -> None:
    folders = folders_in(quick_dir)
    uids = [prepare(folders, run).user[0] for run in range(1, len(IDS) + 2)]
    assert sorted(set(uids)) == list(IDS)


@needs_root
def test_a_job_of_the_compute_interface_has_a_uid_of_its_own(quick_dir: Path) -> None:
    folders = folders_in(quick_dir)
    made = folders.furnish(
        RunId(1), files={"inputs/x": b"x"}, executable=(), writable=("outputs",), open_to_all=False
    )
    for path in (made.path, made.path / "outputs"):
        assert (path.stat().st_uid, path.stat().st_gid) == made.user
    assert made.user != prepare(folders, 2).user
    assert (made.path / "inputs" / "x").stat().st_uid == 0


# --- what they are good for -----------------------------------------------------------------------------------


@needs_root
def test_a_run_cannot_use_the_leaked_folder_of_another(quick_dir: Path) -> None:
    quick_dir.chmod(0o711)
    folders = folders_in(quick_dir)
    first, second = prepare(folders, 1), prepare(folders, 2)
    leaked = os.open(first.private / "task-000000001", os.O_RDONLY | os.O_DIRECTORY)
    with being(second.user):
        with pytest.raises(PermissionError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=leaked)
        with pytest.raises(PermissionError):
            os.rename("output", "other", src_dir_fd=leaked, dst_dir_fd=leaked)
        with pytest.raises(PermissionError):
            os.symlink("/etc/passwd", "link", dir_fd=leaked)
        with pytest.raises(PermissionError):
            os.open("input", os.O_RDONLY, dir_fd=leaked)
    with being(first.user):
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=leaked))
    os.close(leaked)


@needs_root
def test_runs_of_one_job_exchange_files_and_others_do_not(quick_dir: Path) -> None:
    folders = folders_in(quick_dir)
    first, second, other = prepare(folders, 1), prepare(folders, 2), prepare(folders, 3, JobKey("8-1"))
    shared = os.open(first.temporary, os.O_RDONLY | os.O_DIRECTORY)
    before = os.umask(0o022)
    with being(first.user):
        os.mkdir("folder", dir_fd=shared)
        with os.fdopen(os.open("folder/file", os.O_CREAT | os.O_WRONLY, 0o666, dir_fd=shared), "w") as file:
            file.write("for you")
    os.umask(before)
    with being(second.user):
        with os.fdopen(os.open("folder/file", os.O_RDONLY, dir_fd=shared)) as file:
            assert file.read() == "for you"
        os.unlink("folder/file", dir_fd=shared)
        os.rmdir("folder", dir_fd=shared)
        os.close(os.open("mine", os.O_CREAT | os.O_WRONLY, dir_fd=shared))
    with being(other.user), pytest.raises(PermissionError):
        os.open("mine", os.O_RDONLY, dir_fd=shared)
    os.close(shared)
    assert stat.S_IMODE(first.temporary.stat().st_mode) == 0o2770


@needs_root
def test_without_access_lists_runs_of_one_job_still_read_each_others_files(
    quick_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    folders = folders_in(quick_dir)
    first, second = prepare(folders, 1), prepare(folders, 2)
    shared = os.open(first.temporary, os.O_RDONLY | os.O_DIRECTORY)
    with being(first.user):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=shared))
    with being(second.user):
        os.close(os.open("file", os.O_RDONLY, dir_fd=shared))
    os.close(shared)


@needs_root
def test_the_folder_of_a_job_with_an_image_that_has_its_own_user_is_open_to_it(quick_dir: Path) -> None:
    made = prepare(folders_in(quick_dir), 1, open_to_all=True)
    shared = os.open(made.temporary, os.O_RDONLY | os.O_DIRECTORY)
    with being((1234, 1234)):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=shared))
    os.close(shared)
