"""The private directories of runs and the temporary folders of jobs.

    <state_dir>/runs/000000012/          one run; 0700, the agent's
        input                            until the container's folder takes it over
        mount/                           becomes /mnt/data in the container, or /data
            task-000000012/              input, output, token; owned by the container's user (store.users)
            outputs/, logs/              those of the Ocean contract; what else lies there then stays the agent's
        run_context.json                 only where the owner wants it; goes the way of the input
        result, log, log.final           what was taken over from the container
        reader.pub                       only in encrypted collaborations: for whom the result is sealed
        result.sealed                    takes the place of `result` there, while the report is owed
        log.live                         how far the log was sent while the run went on
    <state_dir>/jobs/7-2/                becomes /mnt/tmp for every run of job 7 of user 2
    <state_dir>/kept/000000012-<time>/   what is left of a reported run, only where the owner keeps it

Everything below `mount/` and `jobs/` is written by algorithms, which may be at work: it is untrusted, and every access
goes through `store.untrusted`, by descriptor. All else is the agent's alone. Files of ours are written to a temporary name,
synced, and renamed.
"""

import hashlib
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from node_agent.domain.contract import RUN_CONTEXT_NAME
from node_agent.domain.ports import Folders, PrivateFolder
from node_agent.domain.run import RunId
from node_agent.domain.runlogs import LiveMark
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.errors import DiskFull, InputChanged, OutputTooLarge
from node_agent.store.disk import disk_errors, free_bytes, sync_folder
from node_agent.store.ownfiles import draft_file, fill, new_file, read_if_there, write, write_pieces
from node_agent.store.untrusted.copying import clone_or_copy
from node_agent.store.untrusted.giving import hand_over, made_folder, make_file, move_in, share, write_below
from node_agent.store.untrusted.opening import (
    is_file,
    opened_file,
    opened_folder,
    own_file,
)
from node_agent.store.untrusted.trees import remove_tree, tree_size
from node_agent.store.users import RunUsers, User

_HANDED_OVER = ("input", "output", "token", RUN_CONTEXT_NAME)


class DiskRunFolders:
    """The folders of one agent.

    They are made for containers that run as *user* (uid, gid), or, where there are *ids*, as a uid for each run and a group
    for each job out of these.
    """

    def __init__(
        self, state_dir: Path, *, user: User, ids: range | None = None, keep_seconds: float = 0.0
    ) -> None:
        self._runs = state_dir / "runs"
        self._jobs = state_dir / "jobs"
        self._kept = state_dir / "kept"
        self._keeps = keep_seconds > 0
        self._users = RunUsers(self._runs, self._jobs, shared=user, ids=ids)
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
        with draft_file(draft) as file:
            fill(file, pieces)
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
            with own_file(self._folder(run_id) / "input") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def has_input(self, run_id: RunId) -> bool:
        """Check whether the input is kept."""
        return is_file(self._folder(run_id) / "input") or self._was_handed_over(run_id, "input")

    def read_input(self, run_id: RunId, *, limit: int) -> bytes | None:
        """Give the input as the algorithm will read it; None when it is larger than *limit* bytes, or is not there."""
        # only the agent's own folder is looked into: what lies in the container's may be a link by now
        try:
            with own_file(self._folder(run_id) / "input") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        return content if len(content) <= limit else None

    def store_context(self, run_id: RunId, content: bytes) -> None:
        """Keep the run's description, for the container's folder to take over."""
        with disk_errors():
            write(self._folder(run_id) / RUN_CONTEXT_NAME, content)

    def has_context(self, run_id: RunId) -> bool:
        """Check whether the run's description is kept."""
        kept = self._folder(run_id) / RUN_CONTEXT_NAME
        return is_file(kept) or self._was_handed_over(run_id, RUN_CONTEXT_NAME)

    def _was_handed_over(self, run_id: RunId, name: str) -> bool:
        with self._opened_task(run_id) as task:
            return task is not None and is_file(name, task)

    @contextmanager
    def _opened_task(self, run_id: RunId) -> Iterator[int | None]:
        with opened_folder(self._mount(run_id), _task_name(run_id)) as task:
            yield task

    def prepare(self, run_id: RunId, job: JobKey, *, token: Secret, open_to_all: bool) -> Folders:
        """Make everything ready that the container mounts; an output that exists already is left alone."""
        private, temporary = self._mount(run_id), self._jobs / job
        user = self._users.of(run_id, job)
        mode = 0o777 if open_to_all else 0o700
        with (
            disk_errors(),
            self._made_mount(run_id) as mount,
            made_folder(_task_name(run_id), mount) as task,
        ):
            for folder in (mount, task):
                hand_over(folder, mode, user)
            with made_folder(temporary) as shared:
                self._share(shared, user, mode)
            self._fill_task(run_id, task, token, mode & 0o666, user)
        return Folders(private=private, temporary=temporary, user=user)

    @contextmanager
    def _made_mount(self, run_id: RunId) -> Iterator[int]:
        self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
        with made_folder(self._mount(run_id)) as mount:
            yield mount

    def _share(self, folder: int, user: User, mode: int) -> None:
        if self._users.are_apart:
            share(folder, user[1], mode | 0o070)
        else:
            hand_over(folder, mode, user)
        os.utime(folder)

    def _fill_task(self, run_id: RunId, task: int, token: Secret, mode: int, user: User) -> None:
        ours = self._folder(run_id)
        # the input last: as long as it is not there, whatever is made from it can be made again
        for name in (RUN_CONTEXT_NAME, "input"):
            if is_file(ours / name):
                move_in(ours / name, task, name)
        draft = ours / ".token.new"
        with draft_file(draft) as file:
            file.write(token.reveal().encode())
        move_in(draft, task, "token")
        os.fsync(task)
        make_file("output", task)
        for name in _HANDED_OVER:
            with opened_file(name, task) as given:
                if given is not None:
                    hand_over(given, mode, user)

    def furnish(
        self,
        run_id: RunId,
        *,
        files: Mapping[str, bytes],
        executable: Collection[str],
        writable: Collection[str],
        open_to_all: bool,
    ) -> PrivateFolder:
        """Make the run's private folder with these files and writable folders in it, by their names."""
        user = self._users.of(run_id, None)
        mode = 0o777 if open_to_all else 0o700
        with disk_errors(), self._made_mount(run_id) as private:
            hand_over(private, mode, user)
            for name in writable:
                with made_folder(name, private) as folder:
                    hand_over(folder, mode, user)
            for name, content in files.items():
                write_below(private, name, content, mode=0o755 if name in executable else 0o644)
        return PrivateFolder(path=self._mount(run_id), user=user)

    @contextmanager
    def opened_outputs(self, run_id: RunId, name: str) -> Iterator[int | None]:
        """Open the folder *name* of the private folder as the algorithm left it; yields None when it is none any more."""
        with opened_folder(self._mount(run_id), name) as folder:
            yield folder

    def capture_output(self, run_id: RunId, *, limit: int) -> int:
        """Copy the algorithm's output as the result and return its size in bytes. Raises OutputTooLarge."""
        for taken in (self._folder(run_id) / "result", self._folder(run_id) / "result.sealed"):
            if is_file(taken):
                return taken.stat().st_size
        with disk_errors(), self._opened_task(run_id) as task:
            if task is None:
                return self._keep_result(run_id, None, limit=limit)
            with opened_file("output", task) as output:
                size = self._keep_result(run_id, output, limit=limit)
            # it would take the disk a second time; whatever has the name now, nobody needs it
            with suppress(OSError):
                os.unlink("output", dir_fd=task)
        return size

    def _keep_result(self, run_id: RunId, output: int | None, *, limit: int) -> int:
        size = 0
        with new_file(self._folder(run_id) / "result") as result:
            if output is not None:
                _check_size(os.fstat(output).st_size, limit)
                # whoever has the file open may still write: only what is copied counts
                size = clone_or_copy(output, result.fileno(), limit=limit)
                _check_size(size, limit)
        return size

    def used_bytes(self, run_id: RunId, job: JobKey) -> int:
        """Return how much disk the run and its job use now. Raises OutputTooLarge where nobody could count it."""
        return tree_size(self._folder(run_id)) + tree_size(self._jobs / job)

    def discard_work(self, run_id: RunId) -> None:
        """Delete what the algorithm could write to; what was taken over from it stays. Already gone is fine."""
        _remove(self._mount(run_id))

    def discard_job(self, job: JobKey) -> None:
        """Delete the temporary folder of a job that no run uses, at once for whoever makes it anew."""
        # a name that the sweep knows as that of a job's folder, in case this ends in the middle
        aside = self._jobs / f"{job}-{time.time_ns()}"
        with suppress(FileNotFoundError), disk_errors():
            (self._jobs / job).rename(aside)
        _remove(aside)
        self._users.release_job(job)

    @contextmanager
    def log_file(self, run_id: RunId) -> Iterator[BinaryIO]:
        """Open the run's log for writing, from its beginning; it counts, and is on the disk, when all went well."""
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            with new_file(self._folder(run_id) / "log") as file:
                yield file

    def final_log(self, run_id: RunId, note: str) -> Path | None:
        """Give the file with the log as the researcher gets it: the captured log, then *note*."""
        captured = self._folder(run_id) / "log"
        content = read_if_there(captured)
        if content and note and not content.endswith(b"\n"):
            content += b"\n"
        content += note.encode(errors="replace")
        if not content:
            return None
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            write(self._folder(run_id) / "log.final", content)
        return self._folder(run_id) / "log.final"

    def final_note(self, run_id: RunId, note: str) -> Path:
        """Give a file with *note* alone, for a researcher who does not get the log."""
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            write(self._folder(run_id) / "log.final", note.encode(errors="replace"))
        return self._folder(run_id) / "log.final"

    def live_mark(self, run_id: RunId) -> LiveMark:
        """Say how far the run's log was sent while it ran."""
        try:
            sent, since = read_if_there(self._folder(run_id) / "log.live").decode().split()
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
        return path if is_file(path) else None

    def keep_reader_key(self, run_id: RunId, key: str) -> None:
        """Keep the public key of the organization that will read the result."""
        with disk_errors():
            self._folder(run_id).mkdir(mode=0o700, exist_ok=True)
            write(self._folder(run_id) / "reader.pub", key.encode())

    def reader_key(self, run_id: RunId) -> str | None:
        """Give the public key that was kept; None when there is none."""
        return read_if_there(self._folder(run_id) / "reader.pub").decode() or None

    def seal_result(self, run_id: RunId, sealed: Iterable[bytes]) -> None:
        """Put the sealed result in place of the plain one; does nothing but remove the plain one when it is there already.

        What *sealed* raises passes through, and the plain one stays then.
        """
        folder = self._folder(run_id)
        with disk_errors():
            # it has its name only once it is complete and on the disk
            if not is_file(folder / "result.sealed"):
                write_pieces(folder / "result.sealed", sealed)
            (folder / "result").unlink(missing_ok=True)
            sync_folder(folder)

    def sealed_path(self, run_id: RunId) -> Path | None:
        """Give the file with the result in the form in which it travels; None when it was not sealed."""
        path = self._folder(run_id) / "result.sealed"
        return path if is_file(path) else None

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
        _remove(self._mount(run_id))
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
        _remove(self._kept / name)

    def remove(self, run_id: RunId) -> None:
        """Delete everything of the run; already gone is fine."""
        _remove(self._folder(run_id))
        self._users.release_run(run_id)

    def stored_runs(self, *, before: float) -> Iterable[RunId]:
        """List the runs whose directory was last changed before that time."""
        return [RunId(int(name)) for name in _old_folders(self._runs, before)]

    def idle_jobs(self, *, before: float) -> Iterable[JobKey]:
        """List the jobs whose temporary folder was last given to a run before that time."""
        return [JobKey(name) for name in _old_folders(self._jobs, before)]

    def remove_job(self, job: JobKey) -> None:
        """Delete the temporary folder of a job; already gone is fine."""
        _remove(self._jobs / job)
        self._users.release_job(job)

    def _folder(self, run_id: RunId) -> Path:
        return self._runs / f"{run_id:09d}"

    def _mount(self, run_id: RunId) -> Path:
        return self._folder(run_id) / "mount"


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise OutputTooLarge(
            f"The algorithm wrote a result of {size:,} bytes; this node takes at most {limit:,} (limits.output_size)."
        )


def _remove(folder: Path) -> None:
    with disk_errors():
        remove_tree(folder)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _old_folders(root: Path, before: float) -> list[str]:
    old = []
    for path in root.iterdir():
        with suppress(FileNotFoundError):  # a step may be removing it now
            found = path.lstat()
            # an algorithm sets the one as it likes, and the other only by changing something
            if path.name.replace("-", "").isdecimal() and min(found.st_mtime, found.st_ctime) < before:
                old.append(path.name)
    return old


def _task_name(run_id: RunId) -> str:
    return f"task-{run_id:09d}"


def _hashed(pieces: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece
