"""The private directories of runs and the temporary folders of jobs.

    <state_dir>/runs/000000012/          one run; 0700, the agent's
        input                            until the container's folder takes it over
        mount/                           becomes /mnt/data in the container
            task-000000012/              input, output, token; owned by the container's user
        result, log, log.final           what was taken over from the container
    <state_dir>/jobs/7/                  becomes /mnt/tmp for every run of job 7

Everything below `mount/` and `jobs/` is written by algorithms and therefore untrusted: it is opened without following
links, and only ordinary files are taken. Files of ours are written to a temporary name, synced, and renamed.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobId
from node_agent.errors import DiskFull, OutputTooLarge

_BLOCK = 512  # the unit of st_blocks, whatever the file system's own is
_SMALLEST = 4096  # what an entry costs at least, so that a million empty files count


class DiskRunFolders:
    """The folders of one agent, made for containers that run as *user* (uid, gid)."""

    def __init__(self, state_dir: Path, *, user: tuple[int, int]) -> None:
        self._runs = state_dir / "runs"
        self._jobs = state_dir / "jobs"
        self._user = user
        with _disk_errors():
            for folder in (self._runs, self._jobs):
                folder.mkdir(mode=0o700, exist_ok=True)

    def store_input(self, run_id: RunId, content: bytes) -> None:
        """Keep the input; does nothing when it is kept already."""
        if self.has_input(run_id):
            return
        with _disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            _write(self._folder(run_id) / "input", content)

    def has_input(self, run_id: RunId) -> bool:
        """Tell whether the input is kept."""
        return (self._folder(run_id) / "input").exists() or (self._task_folder(run_id) / "input").exists()

    def prepare(self, run_id: RunId, job_id: JobId, *, token: Secret, open_to_all: bool) -> Folders:
        """Make everything ready that the container mounts; an output that exists already is left alone."""
        task = self._task_folder(run_id)
        temporary = self._jobs / str(job_id)
        mode = 0o777 if open_to_all else 0o700
        with _disk_errors():
            for folder in (task.parent, task, temporary):
                folder.mkdir(parents=True, exist_ok=True)
                self._hand_over(folder, mode)
            if (self._folder(run_id) / "input").exists():
                (self._folder(run_id) / "input").replace(task / "input")
            _write(task / "token", token.reveal().encode())
            (task / "output").touch()
            for name in ("input", "output", "token"):
                self._hand_over(task / name, mode & 0o666)
            os.utime(temporary)
        return Folders(private=task.parent, temporary=temporary)

    def capture_output(self, run_id: RunId, *, limit: int) -> int:
        """Take the algorithm's output over as the result and give its size in bytes."""
        result = self._folder(run_id) / "result"
        if result.exists():
            return result.stat().st_size
        with (
            _disk_errors(),
            _opened_output(self._folder(run_id) / "mount", _task_name(run_id)) as (folder, output),
        ):
            if output is None:
                _write(result, b"")
                return 0
            size = os.fstat(output).st_size
            if size > limit:
                raise OutputTooLarge(
                    f"The algorithm wrote a result of {size:,} bytes; this node takes at most {limit:,} "
                    "(limits.output_size)."
                )
            os.fsync(output)
            # The container is dead: nobody can exchange the file between the check and this rename.
            os.rename("output", result, src_dir_fd=folder)
            result.chmod(0o600)
            _sync_folder(result.parent)
            return size

    def used_bytes(self, run_id: RunId, job_id: JobId) -> int:
        """Say how much disk the run and its job use now."""
        return _tree_size(self._folder(run_id)) + _tree_size(self._jobs / str(job_id))

    def log_file(self, run_id: RunId) -> BinaryIO:
        """Open the run's log for writing, from its beginning."""
        with _disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            return (self._folder(run_id) / "log").open("wb")

    def final_log(self, run_id: RunId, note: str) -> Path | None:
        """Give the file with the log as the researcher gets it: the captured log, then *note*."""
        captured = self._folder(run_id) / "log"
        content = captured.read_bytes() if captured.exists() else b""
        if content and note and not content.endswith(b"\n"):
            content += b"\n"
        content += note.encode()
        if not content:
            return None
        with _disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            _write(self._folder(run_id) / "log.final", content)
        return self._folder(run_id) / "log.final"

    def result_path(self, run_id: RunId) -> Path | None:
        """Give the file with the captured result; None when there is none."""
        path = self._folder(run_id) / "result"
        return path if path.exists() else None

    def remove(self, run_id: RunId) -> None:
        """Delete everything of the run; already gone is fine."""
        _remove_tree(self._folder(run_id))

    def stored_runs(self, *, before: float) -> Iterable[RunId]:
        """List the runs whose directory was last changed before that time."""
        return [RunId(number) for number in _numbered(self._runs, before)]

    def idle_jobs(self, *, before: float) -> Iterable[JobId]:
        """List the jobs whose temporary folder was last given to a run before that time."""
        return [JobId(number) for number in _numbered(self._jobs, before)]

    def remove_job(self, job_id: JobId) -> None:
        """Delete the temporary folder of a job; already gone is fine."""
        _remove_tree(self._jobs / str(job_id))

    def _folder(self, run_id: RunId) -> Path:
        return self._runs / f"{run_id:09d}"

    def _task_folder(self, run_id: RunId) -> Path:
        return self._folder(run_id) / "mount" / _task_name(run_id)

    def _hand_over(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, *self._user)


def _numbered(root: Path, before: float) -> list[int]:
    folders = [path for path in root.iterdir() if path.name.isdigit()]
    return [int(path.name) for path in folders if path.stat().st_mtime < before]


def _task_name(run_id: RunId) -> str:
    return f"task-{run_id:09d}"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened_output(mount: Path, task: str) -> Iterator[tuple[int, int | None]]:
    """Open the task folder and the output in it, step by step and without following a link."""
    opened: list[int] = []
    try:
        for name, at in ((str(mount), None), (task, 0)):
            opened.append(
                os.open(
                    name,
                    os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW,
                    dir_fd=None if at is None else opened[at],
                )
            )
        yield opened[-1], _open_plain_file("output", opened[-1], opened)
    except (FileNotFoundError, NotADirectoryError):
        yield -1, None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _open_plain_file(name: str, folder: int, opened: list[int]) -> int | None:
    """Open an ordinary file; a link, a pipe, a device or nothing at all gives None."""
    try:
        # O_NONBLOCK: a pipe in place of the output must not hold us up.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES}:
            return None
        raise
    opened.append(descriptor)
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _tree_size(root: Path) -> int:
    total = 0
    for _, folders, files, descriptor in os.fwalk(root, follow_symlinks=False):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                entry = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                total += max(entry.st_blocks * _BLOCK, _SMALLEST)
    return total


def _remove_tree(root: Path) -> None:
    with suppress(FileNotFoundError), _disk_errors():
        shutil.rmtree(root, onerror=_unlock_and_retry)


def _unlock_and_retry(function: Callable[..., Any], path: str, error: Any) -> None:
    """Give back the rights an algorithm took from its own folders, then try again."""
    if isinstance(error[1], FileNotFoundError):
        return
    if not isinstance(error[1], PermissionError) or Path(path).is_symlink():
        raise error[1]
    Path(path).parent.chmod(0o700)
    if Path(path).is_dir():
        Path(path).chmod(0o700)
    if function in {os.unlink, os.rmdir}:
        function(path)
    else:
        shutil.rmtree(path)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                f"The disk under the state directory is full ({error.filename or error.strerror}).",
                hint="Free some space; the work goes on by itself.",
            ) from error
        raise
