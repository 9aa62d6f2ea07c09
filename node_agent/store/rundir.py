"""The private directories of runs and the temporary folders of jobs.

    <state_dir>/runs/000000012/          one run; 0700, the agent's
        input                            until the container's folder takes it over
        mount/                           becomes /mnt/data in the container, or /data
            task-000000012/              input, output, token; owned by the container's user
            outputs/, logs/              those of the Ocean contract; what else lies there then stays the agent's
        run_context.json                 only where the owner wants it; goes the way of the input
        result, log, log.final           what was taken over from the container
        reader.pub                       only in encrypted collaborations: for whom the result is sealed
        result.sealed                    takes the place of `result` there, while the report is owed
        log.live                         how far the log was sent while the run went on
    <state_dir>/jobs/7-2/                becomes /mnt/tmp for every run of job 7 of user 2
    <state_dir>/kept/000000012-<time>/   what is left of a reported run, only where the owner keeps it

Everything below `mount/` and `jobs/` is written by algorithms and therefore untrusted: it is opened without following
links, and only ordinary files are taken. Files of ours are written to a temporary name, synced, and renamed.
"""

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from node_agent.domain.contract import RUN_CONTEXT_NAME
from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.runlogs import LiveMark
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.errors import DiskFull, InputChanged, OutputTooLarge
from node_agent.store.disk import disk_errors, free_bytes, sync_folder

_HANDED_OVER = ("input", "output", "token", RUN_CONTEXT_NAME)
_BLOCK = 512  # the unit of st_blocks, whatever the file system's own is
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES})
_DEEPEST = 100  # each level of a walk costs an open descriptor
_SMALLEST = 4096  # what an entry costs at least, so that a million empty files count


class DiskRunFolders:
    """The folders of one agent, made for containers that run as *user* (uid, gid)."""

    def __init__(self, state_dir: Path, *, user: tuple[int, int], keep_seconds: float = 0.0) -> None:
        self._runs = state_dir / "runs"
        self._jobs = state_dir / "jobs"
        self._kept = state_dir / "kept"
        self._keeps = keep_seconds > 0
        self._user = user
        self._storing = threading.Lock()
        with disk_errors():
            for folder in (self._runs, self._jobs):
                folder.mkdir(mode=0o700, exist_ok=True)

    def store_input(self, run_id: RunId, content: Iterable[bytes]) -> str:
        """Keep the input, unless one is kept, and return its SHA-256. Raises InputChanged when the kept one differs.

        What *content* raises passes through, and nothing is kept then.
        """
        digest = hashlib.sha256()
        is_first = not self.has_input(run_id)
        if is_first:
            with disk_errors():
                self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
                is_first = self._write_first_input(run_id, _hashed(content, digest))
        else:
            for piece in content:
                digest.update(piece)
        if not is_first and self.input_digest(run_id) not in {None, digest.hexdigest()}:
            raise InputChanged(
                "The server sent another input for this run than before; the first one counts."
            )
        return digest.hexdigest()

    def _write_first_input(self, run_id: RunId, pieces: Iterable[bytes]) -> bool:
        """Write the input, and return False when another one was kept meanwhile: that one stays."""
        # a name of its own: the thread that lists runs and that of a step may write the same input at once
        draft = self._folder(run_id) / f".input.{token_hex(8)}.new"
        with _drafted(draft) as file:
            _fill(file, pieces)
        with self._storing:
            if self.has_input(run_id):
                draft.unlink()
                return False
            draft.replace(self._folder(run_id) / "input")
        sync_folder(self._folder(run_id))
        return True

    def input_digest(self, run_id: RunId) -> str | None:
        """Return the SHA-256 of the kept input; None when the container's folder has taken it over, or there is none."""
        try:
            with (self._folder(run_id) / "input").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def has_input(self, run_id: RunId) -> bool:
        """Tell whether the input is kept."""
        return (self._folder(run_id) / "input").exists() or (self._task_folder(run_id) / "input").exists()

    def read_input(self, run_id: RunId, *, limit: int) -> bytes | None:
        """Give the input as the algorithm will read it; None when it is larger than *limit* bytes, or is not there."""
        # only the agent's own folder is looked into: what lies in the container's may be a link by now
        try:
            with (self._folder(run_id) / "input").open("rb") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        return content if len(content) <= limit else None

    def store_context(self, run_id: RunId, content: bytes) -> None:
        """Keep the run's description, for the container's folder to take over."""
        with disk_errors():
            _write(self._folder(run_id) / RUN_CONTEXT_NAME, content)

    def has_context(self, run_id: RunId) -> bool:
        """Tell whether the run's description is kept."""
        places = (self._folder(run_id), self._task_folder(run_id))
        return any((place / RUN_CONTEXT_NAME).exists() for place in places)

    def prepare(self, run_id: RunId, job: JobKey, *, token: Secret, open_to_all: bool) -> Folders:
        """Make everything ready that the container mounts; an output that exists already is left alone."""
        task = self._task_folder(run_id)
        temporary = self._jobs / job
        mode = 0o777 if open_to_all else 0o700
        with disk_errors():
            for folder in (task.parent, task, temporary):
                folder.mkdir(parents=True, exist_ok=True)
                self._hand_over(folder, mode)
            # the input last: as long as it is not there, whatever is made from it can be made again
            for name in (RUN_CONTEXT_NAME, "input"):
                if (self._folder(run_id) / name).exists():
                    (self._folder(run_id) / name).replace(task / name)
            _write(task / "token", token.reveal().encode())
            (task / "output").touch()
            for name in _HANDED_OVER:
                if (task / name).exists():
                    self._hand_over(task / name, mode & 0o666)
            os.utime(temporary)
        return Folders(private=task.parent, temporary=temporary)

    def furnish(
        self,
        run_id: RunId,
        *,
        files: Mapping[str, bytes],
        executable: Collection[str],
        writable: Collection[str],
        open_to_all: bool,
    ) -> Path:
        """Make the run's private folder with these files and writable folders in it, by their names; give its path."""
        private = self._folder(run_id) / "mount"
        mode = 0o777 if open_to_all else 0o700
        with disk_errors():
            for folder in (private, *(private / name for name in writable)):
                folder.mkdir(parents=True, exist_ok=True)
                self._hand_over(folder, mode)
            for name, content in files.items():
                _make_readable_folders(private, (private / name).parent)
                _write(private / name, content)
                (private / name).chmod(0o755 if name in executable else 0o644)
        return private

    def outputs_path(self, run_id: RunId, name: str) -> Path | None:
        """Give the folder *name* of the private folder as the algorithm left it; None when it is none any more."""
        path = self._folder(run_id) / "mount" / name
        return path if path.is_dir() and not path.is_symlink() else None

    def capture_output(self, run_id: RunId, *, limit: int) -> int:
        """Take the algorithm's output over as the result and give its size in bytes."""
        result = self._folder(run_id) / "result"
        for taken in (result, self._folder(run_id) / "result.sealed"):
            if taken.exists():
                return taken.stat().st_size
        with (
            disk_errors(),
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
            sync_folder(result.parent)
            return size

    def used_bytes(self, run_id: RunId, job: JobKey) -> int:
        """Say how much disk the run and its job use now."""
        return _tree_size(self._folder(run_id)) + _tree_size(self._jobs / job)

    @contextmanager
    def log_file(self, run_id: RunId) -> Iterator[BinaryIO]:
        """Open the run's log for writing, from its beginning; it counts, and is on the disk, when all went well."""
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            with _written(self._folder(run_id) / "log") as file:
                yield file

    def final_log(self, run_id: RunId, note: str) -> Path | None:
        """Give the file with the log as the researcher gets it: the captured log, then *note*."""
        captured = self._folder(run_id) / "log"
        content = captured.read_bytes() if captured.exists() else b""
        if content and note and not content.endswith(b"\n"):
            content += b"\n"
        content += note.encode(errors="replace")
        if not content:
            return None
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            _write(self._folder(run_id) / "log.final", content)
        return self._folder(run_id) / "log.final"

    def final_note(self, run_id: RunId, note: str) -> Path:
        """Give a file with *note* alone, for a researcher who does not get the log."""
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            _write(self._folder(run_id) / "log.final", note.encode(errors="replace"))
        return self._folder(run_id) / "log.final"

    def live_mark(self, run_id: RunId) -> LiveMark:
        """Say how far the run's log was sent while it ran."""
        try:
            sent, since = (self._folder(run_id) / "log.live").read_text().split()
            return LiveMark(since=since, sent=int(sent))
        except (OSError, ValueError):
            # never sent, or half written when the power went: what is repeated is replaced at the end
            return LiveMark()

    def keep_live_mark(self, run_id: RunId, mark: LiveMark) -> None:
        """Note how far the run's log was sent; of a run that is gone, nothing is kept."""
        # not synced: it is written every second, and costs a few repeated lines when it is lost
        with suppress(OSError):
            (self._folder(run_id) / "log.live").write_text(f"{mark.sent} {mark.since}\n")

    def result_path(self, run_id: RunId) -> Path | None:
        """Give the file with the captured result; None when there is none, or only a sealed one."""
        path = self._folder(run_id) / "result"
        return path if path.exists() else None

    def keep_reader_key(self, run_id: RunId, key: str) -> None:
        """Keep the public key of the organization that will read the result."""
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            _write(self._folder(run_id) / "reader.pub", key.encode())

    def reader_key(self, run_id: RunId) -> str | None:
        """Give the public key that was kept; None when there is none."""
        try:
            return (self._folder(run_id) / "reader.pub").read_text()
        except FileNotFoundError:
            return None

    def seal_result(self, run_id: RunId, sealed: Iterable[bytes]) -> None:
        """Put the sealed result in place of the plain one; does nothing but remove the plain one when it is there already.

        What *sealed* raises passes through, and the plain one stays then.
        """
        folder = self._folder(run_id)
        with disk_errors():
            # it has its name only once it is complete and on the disk
            if not (folder / "result.sealed").exists():
                _write_pieces(folder / "result.sealed", sealed)
            (folder / "result").unlink(missing_ok=True)
            sync_folder(folder)

    def sealed_path(self, run_id: RunId) -> Path | None:
        """Give the file with the result in the form in which it travels; None when it was not sealed."""
        path = self._folder(run_id) / "result.sealed"
        return path if path.exists() else None

    def report_size(self, run_id: RunId) -> int:
        """Say how many bytes of result and log wait here to be reported."""
        # each of the second ones is made from the first, and then holds all of it
        pairs = (("result", "result.sealed"), ("log", "log.final"))
        return sum(max(_size_of(self._folder(run_id) / name) for name in pair) for pair in pairs)

    def free_bytes(self) -> int:
        """Say how much may still be written."""
        return free_bytes(self._runs)

    def retire(self, run_id: RunId) -> None:
        """Take the folder of a reported run out of the way: put aside if the owner keeps them, else deleted."""
        if self._keeps:
            # a full disk is not filled further by what is only kept
            with suppress(DiskFull):
                self._put_aside(run_id)
        self.remove(run_id)

    def _put_aside(self, run_id: RunId) -> None:
        folder = self._folder(run_id)
        # what the algorithm could write to, the token among it, is not kept
        _remove_tree(folder / "mount")
        with suppress(FileNotFoundError), disk_errors():
            self._kept.mkdir(mode=0o700, exist_ok=True)
            os.utime(folder)
            # a later run may have the same number
            folder.rename(self._kept / f"{folder.name}-{time.time_ns()}")

    def kept_runs(self, *, before: float) -> Iterable[str]:
        """List the folders that were put aside before that time."""
        return _old_folders(self._kept, before) if self._kept.exists() else []

    def remove_kept(self, name: str) -> None:
        """Delete a folder that was put aside; already gone is fine."""
        _remove_tree(self._kept / name)

    def remove(self, run_id: RunId) -> None:
        """Delete everything of the run; already gone is fine."""
        _remove_tree(self._folder(run_id))

    def stored_runs(self, *, before: float) -> Iterable[RunId]:
        """List the runs whose directory was last changed before that time."""
        return [RunId(int(name)) for name in _old_folders(self._runs, before)]

    def idle_jobs(self, *, before: float) -> Iterable[JobKey]:
        """List the jobs whose temporary folder was last given to a run before that time."""
        return [JobKey(name) for name in _old_folders(self._jobs, before)]

    def remove_job(self, job: JobKey) -> None:
        """Delete the temporary folder of a job; already gone is fine."""
        _remove_tree(self._jobs / job)

    def _folder(self, run_id: RunId) -> Path:
        return self._runs / f"{run_id:09d}"

    def _task_folder(self, run_id: RunId) -> Path:
        return self._folder(run_id) / "mount" / _task_name(run_id)

    def _hand_over(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, *self._user)


def _make_readable_folders(root: Path, folder: Path) -> None:
    """Make folders that stay the agent's, and that everybody may read."""
    if folder != root and not folder.exists():
        _make_readable_folders(root, folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _old_folders(root: Path, before: float) -> list[str]:
    old = []
    for path in root.iterdir():
        with suppress(FileNotFoundError):  # a step may be removing it now
            if path.name.replace("-", "").isdecimal() and path.stat().st_mtime < before:
                old.append(path.name)
    return old


_BEHIND = 8 << 20
"""So many bytes of a large file may wait before the disk begins with them."""


def _task_name(run_id: RunId) -> str:
    return f"task-{run_id:09d}"


def _write(path: Path, content: bytes) -> None:
    _write_pieces(path, (content,))


def _write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    with _written(path) as file:
        _fill(file, pieces)


def _fill(file: BinaryIO, pieces: Iterable[bytes]) -> None:
    begun = written = 0
    for piece in pieces:
        written += file.write(piece)
        if written - begun >= _BEHIND:
            # The disk begins with this while the next is made: to wait for all of it at the end takes longer.
            os.posix_fadvise(file.fileno(), begun, written - begun, os.POSIX_FADV_DONTNEED)
            begun = written


def _hashed(pieces: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; once it is complete and on the disk it gets its own."""
    temporary = path.with_name(f".{path.name}.new")
    with _drafted(temporary) as file:
        yield file
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def _drafted(temporary: Path) -> Iterator[BinaryIO]:
    """Write a file that is complete and on the disk afterwards, or not there at all."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # half of a large file must not keep the disk full
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _opened_output(mount: Path, task: str) -> Iterator[tuple[int, int | None]]:
    """Open the task folder and the output in it, step by step and without following a link."""
    with ExitStack() as opened:
        outer = _open_unfollowed(str(mount), os.O_DIRECTORY, None, opened)
        folder = None if outer is None else _open_unfollowed(task, os.O_DIRECTORY, outer, opened)
        # O_NONBLOCK: a pipe in place of the output must not hold us up.
        output = None if folder is None else _open_unfollowed("output", os.O_NONBLOCK, folder, opened)
        if folder is None or output is None or not stat.S_ISREG(os.fstat(output).st_mode):
            yield -1, None
        else:
            yield folder, output


def _open_unfollowed(name: str, flags: int, folder: int | None, opened: ExitStack) -> int | None:
    """Open for reading; a link, something of another kind, or nothing at all gives None."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    opened.callback(os.close, descriptor)
    return descriptor


def _tree_size(root: Path) -> int:
    total = 0
    # The walk starts by opening the root, which may be gone or locked by the algorithm.
    with suppress(FileNotFoundError, PermissionError):
        for place, folders, files, descriptor in os.fwalk(root, follow_symlinks=False):
            _check_depth(root, place)
            total += sum(_entry_size(name, descriptor) for name in (*folders, *files))
    return total


def _check_depth(root: Path, place: str) -> None:
    if place.count(os.sep) - str(root).count(os.sep) > _DEEPEST:
        raise OutputTooLarge(
            f"The algorithm was stopped: it nested folders more than {_DEEPEST} deep, "
            "and this node cannot count what lies in them."
        )


def _entry_size(name: str, folder: int) -> int:
    with suppress(FileNotFoundError):
        entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return max(entry.st_blocks * _BLOCK, _SMALLEST)
    return 0


def _remove_tree(root: Path) -> None:
    """Remove a tree however deep: what lies in an inner folder is first lifted up to *root*."""
    with suppress(FileNotFoundError), disk_errors():
        root.chmod(0o700)
        while inner := _folders_left(root):
            for folder in inner:
                for nested in _folders_left(folder):
                    nested.rename(root / f".lifted-{token_hex(16)}")
                folder.rmdir()
        root.rmdir()


def _folders_left(folder: Path) -> list[Path]:
    """Delete everything in *folder* but the folders in it, and give those, unlocked."""
    with os.scandir(folder) as entries:
        everything = list(entries)
    folders = [Path(entry) for entry in everything if entry.is_dir(follow_symlinks=False)]
    for entry in everything:
        if not entry.is_dir(follow_symlinks=False):
            Path(entry).unlink()
    for inner in folders:
        # The algorithm may have taken the rights to its own folders away.
        inner.chmod(0o700)
    return folders
