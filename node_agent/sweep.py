"""The sweep: what carries our name but belongs to no open run is removed, and images that nobody used for long.

Strays come from crashes between two steps, from listings that were overtaken, and from journals that were lost. A
container is made only for a run that is known, so an unknown one is a stray at once; a folder may be younger than the
message that will make its run known, and gets some grace. What is found and what is removed is the same list, so that it
can also be shown.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from node_agent.domain.keeping import ImageKeeping, Leaving, PulledImage, Why, leaving_images
from node_agent.domain.ports import Clock, ImageRemoval, Remains, RunFolders, Runtime
from node_agent.domain.run import ContainerId, RunId
from node_agent.domain.task import JobKey
from node_agent.errors import Transient

log = structlog.get_logger()

FOLDER_GRACE_SECONDS = 600.0
JOB_KEEP_SECONDS = 86400.0
"""A job may send its next subtask much later: its temporary folder stays this long after the last run began."""
FAILURES_IN_A_ROW = 3
"""So many, and whoever refuses is asked no more this time."""

Found = Iterable["Stray"]


@dataclass(frozen=True, slots=True)
class Stray:
    """One thing that may go, and how."""

    kind: str
    name: str
    why: Why
    remove: Callable[[], bool] = field(repr=False, compare=False)
    """Removes it, and says whether it is gone: something may need it after all."""
    images: tuple[str, ...] = ()
    """Ids of the images that are ours no more once it is gone."""


@dataclass(frozen=True, slots=True)
class Images:
    """The images this agent pulled, and what is needed to judge them."""

    remains: Remains
    pulled: Callable[[], Sequence[PulledImage]]
    is_needed: Callable[[Sequence[PulledImage]], bool]
    """Whether an open run needs an image of these names; asked again right before it goes."""
    keeping: ImageKeeping


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep removed, and the first thing that was in its way."""

    removed: tuple[Stray, ...]
    error: Transient | None = None

    @property
    def left_images(self) -> tuple[str, ...]:
        """Give the ids of the images that are ours no more."""
        return tuple(image for stray in self.removed for image in stray.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One search for what may go."""

    runtime: Runtime
    folders: RunFolders
    clock: Clock
    run_is_open: Callable[[RunId], bool]
    job_is_open: Callable[[JobKey], bool]
    keep_folders: float = 0.0
    images: Images | None = None

    def find(self) -> Iterator[Stray]:
        """Give everything that may go now, and remove nothing."""
        for search in self._searches():
            yield from search()

    def do(self) -> Swept:
        """Remove everything that may go; one thing that cannot be removed does not keep the others."""
        removed: list[Stray] = []
        first: Transient | None = None
        for search in self._searches():
            error = _removed(search, into=removed)
            first = first or error
            if error is not None and search == self._containers:
                # a container that may still run must not lose the folders it has mounted
                break
        return Swept(removed=tuple(removed), error=first)

    def _searches(self) -> tuple[Callable[[], Found], ...]:
        return (self._containers, self._run_folders, self._job_folders, self._leftovers, self._unused_images)

    def _containers(self) -> Iterator[Stray]:
        for container in self.runtime.list_containers():
            if container.run_id is not None and not self.run_is_open(container.run_id):
                name = f"{container.id[:12]} of run {container.run_id}"
                yield Stray("container", name, Why.ORPHAN, partial(self._remove_container, container.id))

    def _remove_container(self, container: str) -> bool:
        self.runtime.remove(ContainerId(container))
        return True

    def _run_folders(self) -> Iterator[Stray]:
        now = self.clock.now()
        for run_id in self.folders.stored_runs(before=now - FOLDER_GRACE_SECONDS):
            if not self.run_is_open(run_id):
                yield Stray("run folder", str(run_id), Why.ORPHAN, _done(self.folders.remove, run_id))
        for name in self.folders.kept_runs(before=now - self.keep_folders):
            yield Stray("kept folder", name, Why.EXPIRED, _done(self.folders.remove_kept, name))

    def _job_folders(self) -> Iterator[Stray]:
        for job in self.folders.idle_jobs(before=self.clock.now() - JOB_KEEP_SECONDS):
            if not self.job_is_open(job):
                yield Stray("job folder", job, Why.ORPHAN, _done(self.folders.remove_job, job))

    def _leftovers(self) -> Iterator[Stray]:
        if self.images is None:
            return
        remains = self.images.remains
        for leftover in remains.leftovers():
            remove = partial(remains.remove_leftover, leftover)
            yield Stray(leftover.kind, leftover.name, Why.ORPHAN, remove)

    def _unused_images(self) -> Iterator[Stray]:
        images = self.images
        pulled = images.pulled() if images is not None else ()
        if images is None or not pulled:
            return
        sizes, used = images.remains.image_sizes(), images.remains.used_images()
        free = [name for name in pulled if name.image_id not in used and not images.is_needed((name,))]
        for leaving in leaving_images(
            free, sizes=sizes, disk=images.remains.disk(), keeping=images.keeping, now=self.clock.now()
        ):
            yield _leaving_image(leaving, images)


def _leaving_image(leaving: Leaving, images: Images) -> Stray:
    def remove() -> bool:
        removal = images.remains.remove_image(leaving.names, needed=lambda: images.is_needed(leaving.names))
        return removal is not ImageRemoval.IN_USE

    return Stray("image", leaving.names[0].reference, leaving.why, remove, images=(leaving.image_id,))


def _removed(search: Callable[[], Found], *, into: list[Stray]) -> Transient | None:
    """Remove what one search finds, and give the first thing that was in the way."""
    first, in_a_row = None, 0
    try:
        for stray in search():
            error = _remove(stray, into=into)
            first, in_a_row = first or error, in_a_row + 1 if error else 0
            if in_a_row >= FAILURES_IN_A_ROW:
                break
    except Transient as error:
        return first or error
    return first


def _remove(stray: Stray, *, into: list[Stray]) -> Transient | None:
    try:
        gone = stray.remove()
    except Transient as error:
        log.debug("stray_stays", kind=stray.kind, name=stray.name, reason=str(error))
        return error
    if gone:
        log.info("stray_removed", kind=stray.kind, name=stray.name, why=str(stray.why))
        into.append(stray)
    return None


def _done(remove: Callable[..., None], what: object) -> Callable[[], bool]:
    def removed() -> bool:
        remove(what)
        return True

    return removed
