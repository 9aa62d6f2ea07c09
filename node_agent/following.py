"""The logs of running algorithms while they are written: one reading thread for each run, and little held at a time.

The control loop says once a second which runs are meant and takes what was read of them. What it has not taken yet holds
the reading thread up, never the algorithm: nothing queues, and a flood costs no more than the owner's limit.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from functools import partial

import structlog

from node_agent.config import Settings
from node_agent.domain.contract import shown_uri
from node_agent.domain.masking import mask_for
from node_agent.domain.ports import Clock, RunFolders, Runtime
from node_agent.domain.run import ContainerId, Run, RunId
from node_agent.domain.runlogs import LiveMark, LogEntry, LogMask, LogPiece
from node_agent.domain.service import seen_by_algorithms
from node_agent.errors import NodeAgentError

log = structlog.get_logger()

MOST_AT_ONCE = 64 * 1024
"""Bytes of one piece, and of what waits to be taken."""
AGAIN_SECONDS = 5.0
"""Pause before a log is followed again that ended although its run goes on."""


def log_mask_of(settings: Settings) -> LogMask:
    """Mask what the owner keeps secret, also in the form in which containers see it."""
    shown = [seen_by_algorithms(database, settings.entrances) for database in settings.databases]
    values = [shown_uri(database) for database in shown]
    values += [value for database in shown for value in database.env.values()]
    values += settings.extras.environment.values()
    return mask_for(settings.credentials, values)


class FollowedLogs:
    """What running runs write, for the control loop to pass on; *limit* bytes of each in all."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        folders: RunFolders,
        mask: LogMask,
        limit: int,
        clock: Clock,
        begin: Callable[[Callable[[], None], str], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._folders = folders
        self._mask = mask
        self._limit = limit
        self._clock = clock
        self._begin = begin or _in_a_thread
        self._followed: dict[RunId, _Followed] = {}

    def keep_up(self, runs: Collection[Run]) -> list[LogPiece]:
        """Follow exactly these runs, and give what was read of them since the last time; does not wait."""
        for run_id in self._followed.keys() - {run.id for run in runs}:
            self._followed.pop(run_id).leave()
        for run in runs:
            self._follow(run)
        return [LogPiece(run.id, text) for run in runs if (text := self._taken(run.id))]

    def _taken(self, run_id: RunId) -> str:
        followed = self._followed.get(run_id)
        content, mark = followed.take() if followed else (b"", None)
        if content and mark:
            self._folders.keep_live_mark(run_id, mark)
        return _as_text(content)

    def _follow(self, run: Run) -> None:
        known = self._followed.get(run.id)
        if run.container is None or (known is not None and not known.is_due(self._clock.monotonic())):
            return
        followed = self._followed[run.id] = _Followed()
        self._begin(partial(self._read, run.id, run.container, followed), f"log-{run.id}")

    def _read(self, run_id: RunId, container: ContainerId, followed: "_Followed") -> None:
        again_at: float | None = None
        try:
            complete = self._pass_on(run_id, container, followed)
            again_at = None if complete else self._clock.monotonic() + AGAIN_SECONDS
        except NodeAgentError as error:
            log.info("live_log_interrupted", run_id=run_id, reason=str(error))
            again_at = self._clock.monotonic() + AGAIN_SECONDS
        except Exception as error:  # noqa: BLE001 - a courtesy must not end in a traceback
            log.info("live_log_interrupted", run_id=run_id, reason=type(error).__name__)
            again_at = self._clock.monotonic() + AGAIN_SECONDS
        finally:
            followed.end(again_at)

    def _pass_on(self, run_id: RunId, container: ContainerId, followed: "_Followed") -> bool:
        """Read until the log ends, the limit is reached, or nobody wants it; True when no more will ever be sent."""
        mark = self._folders.live_mark(run_id)
        if mark.sent >= self._limit:
            return True
        with closing(self._runtime.follow_log(container, since=mark.since)) as written:
            return self._offer_all(_Stamped(written, at=mark.since), mark, followed)

    def _offer_all(self, entries: "_Stamped", mark: LiveMark, followed: "_Followed") -> bool:
        for content in _bounded(self._mask(entries)):
            if mark.sent + len(content) > self._limit:
                followed.offer(_ending(self._limit), LiveMark(since=entries.at, sent=self._limit))
                return True
            mark = LiveMark(since=entries.at, sent=mark.sent + len(content))
            if not followed.offer(content, mark):
                return False
        return False


class _Stamped:
    """The contents of entries, and the moment of the last one that was read."""

    def __init__(self, entries: Iterator[LogEntry], *, at: str) -> None:
        self._entries = entries
        self.at = at

    def __iter__(self) -> Iterator[bytes]:
        for entry in self._entries:
            self.at = max(self.at, entry.at)
            yield entry.content


class _Followed:
    """What was read of one log and not yet taken; the reader waits when it is too much."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = b""
        self._mark: LiveMark | None = None
        self._left = False
        self._ended = False
        self._again_at: float | None = None

    # --- the control thread's side ----------------------------------------------------------------------------

    def take(self) -> tuple[bytes, LiveMark | None]:
        """Give what waits and how far it goes, and let the reader go on."""
        with self._changed:
            content, self._waiting = self._waiting, b""
            self._changed.notify()
            return content, self._mark

    def leave(self) -> None:
        """Tell the reader that nobody wants more."""
        with self._changed:
            self._left = True
            self._changed.notify()

    def is_due(self, now: float) -> bool:
        """Tell whether the reading ended too early and is to begin again."""
        with self._changed:
            again = self._ended and self._again_at is not None and now >= self._again_at
            return again and not self._waiting

    # --- the reader's side ------------------------------------------------------------------------------------

    def offer(self, content: bytes, mark: LiveMark) -> bool:
        """Wait until there is room for *content*, which goes as far as *mark*; False when nobody wants it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._left or not self._waiting or len(self._waiting) + len(content) <= MOST_AT_ONCE
            )
            self._waiting += content
            self._mark = mark
            return not self._left

    def end(self, again_at: float | None) -> None:
        """Note that the reader is done, and when to begin again if it must."""
        with self._changed:
            self._ended, self._again_at = True, again_at


def _in_a_thread(action: Callable[[], None], name: str) -> None:
    threading.Thread(target=action, name=name, daemon=True).start()


def _bounded(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), MOST_AT_ONCE):
            yield piece[start : start + MOST_AT_ONCE]


def _as_text(content: bytes) -> str:
    # a database behind the server may refuse the null character
    return content.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _ending(limit: int) -> bytes:
    return (
        f"[node] This node sends at most {limit:,} bytes of a log while the run goes on (limits.log_size). "
        "The log's beginning and end come with the result.\n"
    ).encode()
