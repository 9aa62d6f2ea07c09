"""Lines from the engine that may be slow to come: read with patience, and left at any moment.

Owns the reading of a streamed answer while its reader wants to look up from it. Must not know what the lines say.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

import requests

LONGEST_LINE = 1024 * 1024

_Item = bytes | Exception | None


class StreamStalled(Exception):
    """Nothing came for longer than the patience allowed."""


def lines_of(
    ask: Callable[[], requests.Response], *, patience: float, tick: float, on_tick: Callable[[], None]
) -> Iterator[bytes]:
    """Yield the lines of the answer to *ask*; call *on_tick* every *tick* seconds, which may end it by raising.

    *ask* is called in a thread of its own, and what it raises is raised here. Raises StreamStalled when no line came
    for *patience* seconds.
    """
    # A blocked read cannot look up, and the engine may be silent even before the first word of its answer: so a thread
    # asks and reads. It lives only as long as this answer.
    reading = _Reading(ask)
    threading.Thread(target=reading.run, name="engine-stream", daemon=True).start()
    try:
        yield from _yielding(reading.items, patience=patience, tick=tick, on_tick=on_tick)
    finally:
        reading.leave()


def _yielding(
    items: "SimpleQueue[_Item]", *, patience: float, tick: float, on_tick: Callable[[], None]
) -> Iterator[bytes]:
    last_line = last_tick = time.monotonic()
    while True:
        item = _next(items, seconds=tick)
        now = time.monotonic()
        if now - last_tick >= tick:
            last_tick = now
            on_tick()
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        if item:
            last_line = now
            yield item
        elif now - last_line > patience:
            raise StreamStalled


def _next(items: "SimpleQueue[_Item]", *, seconds: float) -> _Item:
    try:
        return items.get(timeout=seconds)
    except Empty:
        return b""


class _Reading:
    """Asks, and reads the answer line by line until its end or until nobody wants it any more."""

    def __init__(self, ask: Callable[[], requests.Response]) -> None:
        self.items: SimpleQueue[_Item] = SimpleQueue()
        self._ask = ask
        self._left = threading.Event()
        self._response: requests.Response | None = None

    def run(self) -> None:
        """Put lines, then None; or the error that ended it."""
        try:
            self._response = self._ask()
            with self._response:
                self._read(self._response)
            self.items.put(None)
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread that wanted the lines
            self.items.put(error)

    def _read(self, response: requests.Response) -> None:
        rest = b""
        for chunk in response.iter_content(chunk_size=None):
            if self._left.is_set():
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, map(bytes.strip, lines)):
                self.items.put(line)
            rest = rest[:LONGEST_LINE]
        if rest.strip():
            self.items.put(rest.strip())

    def leave(self) -> None:
        """Wake the reading thread, so that it hangs up and ends."""
        self._left.set()
        if self._response is not None:
            # Before version 2.3 urllib3 lacks it; then the thread ends with the read time limit.
            with suppress(AttributeError, ValueError, RuntimeError, OSError):
                self._response.raw.shutdown()
