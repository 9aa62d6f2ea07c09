"""Puts a sweep together from settings and engine: for the agent, and for `node-agent prune`, which may ask an agent.

Owns what `prune` shows and does. Must not know how anything is found or removed.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from node_agent import __version__
from node_agent.config import Settings
from node_agent.domain.keeping import ImageKeeping, PulledImage
from node_agent.domain.ports import Clock, RunFolders
from node_agent.domain.run import RunId
from node_agent.domain.task import JobKey
from node_agent.errors import ConfigError, Transient
from node_agent.runtable import RunTable
from node_agent.service import RunningAgent
from node_agent.site import Site
from node_agent.store import presence
from node_agent.store.disk import refuse_another_user
from node_agent.store.journal import (
    SIGN_OF_USE,
    SqliteJournal,
    count_old_runs,
    read_images,
    read_open_runs,
)
from node_agent.store.lock import AgentLock
from node_agent.store.rundir import DiskRunFolders
from node_agent.sweep import Images, Stray, Sweep

PATIENCE_SECONDS = 300.0
"""How long a running agent may take to remove everything."""
LOOK_SECONDS = 0.2


class OpenRuns(Protocol):
    """What a sweep asks about the runs that are not over."""

    def is_open(self, run_id: RunId) -> bool:
        """Tell whether the run is here and not yet removed."""

    def job_is_open(self, job: JobKey) -> bool:
        """Tell whether any open run belongs to the job."""

    def needs_image(self, names: Sequence[PulledImage]) -> bool:
        """Tell whether any open run is made from the image, or may turn out to be."""


def sweep_of(settings: Settings, site: Site, *, folders: RunFolders, clock: Clock, runs: OpenRuns) -> Sweep:
    """Put the sweep of one agent together."""
    return Sweep(
        runtime=site.engine,
        folders=folders,
        clock=clock,
        run_is_open=runs.is_open,
        job_is_open=runs.job_is_open,
        keep_folders=settings.keep.folders,
        images=Images(
            remains=site.remains,
            pulled=partial(read_images, settings.state_dir),
            is_needed=runs.needs_image,
            keeping=ImageKeeping(seconds=settings.images.keep, disk_pressure=settings.images.disk_pressure),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What may go, or is gone."""

    strays: tuple[Stray, ...]
    runs: int
    """Runs the journal forgets."""
    left: str = ""
    """What is not done, and why; empty when everything is."""


def would_go(settings: Settings, clock: Clock) -> Pruned:
    """Say what would go now; nothing is touched."""
    runs = count_old_runs(settings.state_dir, before=clock.now() - settings.keep.runs)
    strays = tuple(_sweep(settings, clock).find()) if _was_used(settings) else ()
    return Pruned(strays=strays, runs=runs)


def prune(settings: Settings, clock: Clock) -> Pruned:
    """Remove what may go: a running agent does it itself, else it is done here, while no agent can start."""
    pid = presence.read(settings.state_dir).pid
    return _by_hand(settings, clock) if pid is None else _by_the_agent(settings, clock, pid)


def _by_hand(settings: Settings, clock: Clock) -> Pruned:
    if not _was_used(settings):
        return Pruned(strays=(), runs=0)
    refuse_another_user(settings.state_dir, command="prune", besides=", and no agent is running")
    lock = AgentLock(settings.name, settings.state_dir)
    try:
        swept = _sweep(settings, clock).do()
        if swept.left_images:
            _forget(settings, swept.left_images)
    finally:
        lock.release()
    old = count_old_runs(settings.state_dir, before=clock.now() - settings.keep.runs)
    # only who has the server's list knows which of them would come back as new
    waiting = f"{old} old runs stay in the journal until the agent runs" if old else ""
    return Pruned(strays=swept.removed, runs=0, left="; ".join(filter(None, (waiting, _text(swept.error)))))


def _was_used(settings: Settings) -> bool:
    return (settings.state_dir / SIGN_OF_USE).is_dir()


def _forget(settings: Settings, images: Iterable[str]) -> None:
    journal = SqliteJournal(settings.state_dir)
    try:
        journal.forget_images(images)
    finally:
        journal.close()


def _text(error: Transient | None) -> str:
    return "" if error is None else str(error)


def _by_the_agent(settings: Settings, clock: Clock, pid: int) -> Pruned:
    seen = presence.read(settings.state_dir).presence
    if seen is None or seen.pid != pid or seen.version != __version__:
        # a process that does not know the signal would end by it
        raise ConfigError(
            f"The running agent (process {pid}) is starting, or of another version.",
            hint="Try again in a moment; after an upgrade restart the agent first.",
        )
    before = would_go(settings, clock)
    with RunningAgent(pid) as agent:
        # asked again now that the process is held: its number may have gone to another one
        if presence.read(settings.state_dir).pid == pid:
            agent.prune()
            _wait_until(
                lambda: _has_swept(settings, since=seen.sweeps),
                ended=lambda: agent.ended_within(LOOK_SECONDS),
            )
    return _difference(before, would_go(settings, clock))


def _difference(before: Pruned, after: Pruned) -> Pruned:
    left = f"{len(after.strays)} things stay for now; the agent's log says why" if after.strays else ""
    gone = tuple(stray for stray in before.strays if stray not in after.strays)
    return Pruned(strays=gone, runs=max(0, before.runs - after.runs), left=left)


def _has_swept(settings: Settings, *, since: int) -> bool:
    said = presence.read(settings.state_dir).presence
    return said is not None and said.sweeps > since and not said.sweeping


def _wait_until(is_done: Callable[[], bool], *, ended: Callable[[], bool]) -> None:
    """Wait until it is done, at most so long as anybody may take; *ended* waits a moment itself."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_done() and not ended() and time.monotonic() < deadline:
        continue


def _sweep(settings: Settings, clock: Clock) -> Sweep:
    folders = DiskRunFolders(
        settings.state_dir, user=settings.container_user, keep_seconds=settings.keep.folders
    )
    return sweep_of(
        settings, Site.of(settings), folders=folders, clock=clock, runs=JournalRuns(settings.state_dir)
    )


@dataclass(frozen=True, slots=True)
class JournalRuns:
    """The open runs as the journal has them at the moment of each question: an agent may be writing."""

    state_dir: Path

    def is_open(self, run_id: RunId) -> bool:
        """Tell whether the run is here and not yet removed."""
        return self._now().is_open(run_id)

    def job_is_open(self, job: JobKey) -> bool:
        """Tell whether any open run belongs to the job."""
        return self._now().job_is_open(job)

    def needs_image(self, names: Sequence[PulledImage]) -> bool:
        """Tell whether any open run is made from the image, or may turn out to be."""
        return self._now().needs_image(names)

    def _now(self) -> RunTable:
        table = RunTable()
        for run in read_open_runs(self.state_dir):
            table.keep(run)
        return table
