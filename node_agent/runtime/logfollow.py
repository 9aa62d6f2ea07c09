"""The engine's stream of a container's log, taken apart: entry by entry with time stamps, none twice, or as a whole.

Owns the form of frames and stamps. Must not know where the bytes come from or where they go.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from node_agent.domain.runlogs import LogEntry
from node_agent.runtime.reading import seconds_of

_HEAD: Final = struct.Struct(">4xL")
_LENGTH: Final = _HEAD.unpack_from
_BLOCK: Final = 256 * 1024
_LARGEST_FRAME: Final = 16 * 2**20
"""More than any engine sends in one go: whatever says so is no frame."""
_STAMP_ROOM: Final = 64
"""Bytes within which a stamp and the blank behind it must end."""


class Readable(Protocol):
    """Bytes that are read as they come."""

    def read(self, amt: int) -> bytes:
        """Give so many bytes, or what is left before the end."""


def follow_parameters(since: str) -> dict[str, str]:
    """Ask for everything from the second of *since* on, with stamps; an empty one asks for everything."""
    seconds = seconds_of(since)
    # what is too much is left out by its stamp
    parameters = {} if seconds is None else {"since": str(int(seconds))}
    return {"follow": "1", "stdout": "1", "stderr": "1", "timestamps": "1"} | parameters


def frames_of(stream: Readable) -> Iterator[bytes]:
    """Take the engine's stream apart into what was written in one go; it ends where the stream is cut off."""
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        (length,) = _HEAD.unpack(head)
        yield stream.read(min(length, _LARGEST_FRAME))


def blocks_of(stream: Readable) -> Iterator[bytes]:
    """Return what was written, in order, many frames at once: a log of short lines has millions of them.

    Each block is waited for until it is full, so that this is for a log that is complete.
    """
    rest = b""
    while block := stream.read(_BLOCK):
        contents, rest = _contents(rest + block)
        if contents:
            yield contents
    # the stream was cut off within a frame
    if rest[_HEAD.size :]:
        yield rest[_HEAD.size :]


def _contents(block: bytes) -> tuple[bytes, bytes]:
    """Part a block into the contents of its complete frames, and what is left."""
    found: list[bytes] = []
    at, end = 0, len(block) - _HEAD.size
    while at <= end:
        begin = at + _HEAD.size
        behind = begin + min(_LENGTH(block, at)[0], _LARGEST_FRAME)
        if behind > len(block):
            break
        found.append(block[begin:behind])
        at = behind
    return b"".join(found), block[at:]


def entries_after(since: str, frames: Iterable[bytes]) -> Iterator[LogEntry]:
    """Take the stamp from each frame, and leave out what was written up to *since*."""
    for frame in frames:
        at, content = _stamped(frame)
        if not at or at > since:
            yield LogEntry(at, content)


def _stamped(frame: bytes) -> tuple[str, bytes]:
    """Part a frame from its stamp; a frame without one, which no engine should send, is all content."""
    stamp, blank, content = frame.partition(b" ")
    if not blank or len(stamp) > _STAMP_ROOM or not stamp.isascii() or seconds_of(stamp.decode()) is None:
        return "", frame
    return stamp.decode(), content
