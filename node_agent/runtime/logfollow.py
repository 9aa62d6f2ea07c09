"""A container's log while it is written: entries with the engine's own time stamps, none of them twice.

Owns the form of these stamps. Must not know where the bytes come from or where they go.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from node_agent.domain.runlogs import LogEntry
from node_agent.runtime.reading import seconds_of

_STAMP_ROOM = 64
"""Bytes within which a stamp and the blank behind it must end."""


def since_parameter(since: str) -> dict[str, Any]:
    """Ask for what came at or after the moment *since*, give or take a second; an empty one asks for everything."""
    seconds = seconds_of(since)
    # what is too much is left out by its stamp
    return {} if seconds is None else {"since": int(seconds)}


def entries_after(since: str, frames: Iterable[bytes]) -> Iterator[LogEntry]:
    """Take the stamp from each frame, and leave out what was written up to *since*."""
    for frame in frames:
        at, content = _stamped(frame)
        if not at or at > since:
            yield LogEntry(at, content)


def _stamped(frame: bytes) -> tuple[str, bytes]:
    """Part a frame from its stamp; a frame without one, which no engine should send, is all content."""
    stamp, blank, content = frame.partition(b" ")
    if not blank or len(stamp) > _STAMP_ROOM or seconds_of(stamp.decode(errors="replace")) is None:
        return "", frame
    return stamp.decode(), content
