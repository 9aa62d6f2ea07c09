"""Who the container of each run runs as: one user for all, or a uid for every run and a group for every job.

Which id a run or a job has is read from the owner of its folder, which no algorithm can change; so it survives a restart,
and an id is free again only once the folder of whoever had it is gone. Must not know what lies in the folders.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from node_agent.domain.run import RunId
from node_agent.domain.task import JobKey

User = tuple[int, int]


class RunUsers:
    """The users of all runs of one agent."""

    def __init__(self, runs: Path, jobs: Path, *, shared: User, ids: range | None) -> None:
        self._shared = shared
        self._uids = None if ids is None else _Ids(ids, lambda: _owners(runs, ids, shared[0]))
        self._gids = None if ids is None else _Ids(ids, lambda: _groups(jobs, ids))

    @property
    def are_apart(self) -> bool:
        """Whether every run has a uid of its own."""
        return self._uids is not None

    def of(self, run_id: RunId, job: JobKey | None) -> User:
        """Return the uid and gid of the run's container; without *job* it has a group of its own."""
        if self._uids is None or self._gids is None:
            return self._shared
        uid = self._uids.of(f"{run_id:09d}", near=run_id)
        return uid, uid if job is None else self._gids.of(job, near=crc32(job.encode()))

    def release_run(self, run_id: RunId) -> None:
        """Let another run have the uid: nothing of this one is left."""
        if self._uids is not None:
            self._uids.release(f"{run_id:09d}")

    def release_job(self, job: JobKey) -> None:
        """Let another job have the group: nothing of this one is left."""
        if self._gids is not None:
            self._gids.release(job)


class _Ids:
    """Ids of a range, each given to one folder at a time; may be used by many threads."""

    def __init__(self, ids: range, held: Callable[[], dict[str, int]]) -> None:
        self._ids = ids
        self._held = held
        self._given: dict[str, int] | None = None
        self._lock = threading.Lock()

    def of(self, name: str, *, near: int) -> int:
        """Return the id that the folder *name* has, or give it the first free one from the place *near* of the range."""
        with self._lock:
            given = self._known()
            if name not in given:
                given[name] = self._free(set(given.values()), near)
            return given[name]

    def release(self, name: str) -> None:
        """Take the id of a folder back."""
        with self._lock:
            self._known().pop(name, None)

    def _known(self) -> dict[str, int]:
        if self._given is None:
            self._given = self._held()
        return self._given

    def _free(self, taken: set[int], near: int) -> int:
        count = len(self._ids)
        # with more folders than ids, sharing one is the lesser evil
        places = (self._ids[(near + step) % count] for step in range(count))
        return next((place for place in places if place not in taken), self._ids[near % count])


def _owners(runs: Path, ids: range, shared: int) -> dict[str, int]:
    found = {path.parent.name: status.st_uid for path, status in _seen(runs.glob("*/mount"))}
    # a container that an agent made before it gave ids keeps the user it has
    return {name: uid for name, uid in found.items() if uid in ids or uid == shared}


def _groups(jobs: Path, ids: range) -> dict[str, int]:
    found = {path.name: status.st_gid for path, status in _seen(jobs.iterdir())}
    return {name: gid for name, gid in found.items() if gid in ids}


def _seen(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        with suppress(FileNotFoundError):  # a step may be removing it now
            yield path, path.lstat()
