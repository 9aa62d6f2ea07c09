"""Head and tail of a stream of unknown length, with the cut marked.

Owns the arithmetic of the cut. Must not know where the bytes come from.
"""

from collections import deque
from collections.abc import Iterable
from typing import BinaryIO

from node_agent.errors import DiskFull

HEAD_SHARE = 4
"""One part in so many of the limit is the beginning; the end, where errors stand, gets the rest."""
MARK = "\n[… {left_out} bytes of the log are left out here …]\n"
_ROOM_FOR_MARK = len(MARK.format(left_out=2**63).encode())


def copy_cut(chunks: Iterable[bytes], into: BinaryIO, *, limit: int) -> None:
    """Copy *chunks* into a file: all of them, or head and tail with a mark between, never more than *limit* bytes."""
    head = limit // HEAD_SHARE
    tail = _Tail(limit - head)
    for chunk in chunks:
        now, chunk = chunk[:head], chunk[head:]  # noqa: PLW2901 - what is written is gone from it
        _write(into, now)
        head -= len(now)
        tail.add(chunk)
    _write(into, tail.ending())


def _write(into: BinaryIO, content: bytes) -> None:
    # Here, and not with the engine's errors: the engine is not to blame for this disk.
    try:
        into.write(content)
    except OSError as error:
        raise DiskFull(f"The log could not be stored: {error.strerror}.") from error


class _Tail:
    """Keeps the last bytes of what it is given."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._chunks: deque[bytes] = deque()
        self._kept = 0
        self._seen = 0

    def add(self, chunk: bytes) -> None:
        """Take *chunk* in and let go of what no longer fits."""
        self._seen += len(chunk)
        self._chunks.append(chunk[-self._room :] if self._room else b"")
        self._kept += len(self._chunks[-1])
        self._shrink_to(self._room)

    def ending(self) -> bytes:
        """Give what was kept, behind a mark if something was left out."""
        if self._seen <= self._room:
            return b"".join(self._chunks)
        room = max(0, self._room - _ROOM_FOR_MARK)
        self._shrink_to(room)
        mark = MARK.format(left_out=self._seen - self._kept).encode()
        return (mark + b"".join(self._chunks))[: self._room]

    def _shrink_to(self, room: int) -> None:
        while self._kept > room:
            oldest = self._chunks.popleft()
            over = self._kept - room
            self._kept -= min(len(oldest), over)
            if len(oldest) > over:
                self._chunks.appendleft(oldest[over:])
