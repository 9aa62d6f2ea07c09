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
    response: requests.Response, *, patience: float, tick: float, on_tick: Callable[[], None]
) -> Iterator[bytes]:
    """Yield the lines of *response*; call *on_tick* every *tick* seconds, which may end the reading by raising.

    Raises StreamStalled when no line came for *patience* seconds.
    """
    # A blocked read cannot look up, so a thread reads. It lives only as long as this answer: closing wakes it.
    items: SimpleQueue[_Item] = SimpleQueue()
    threading.Thread(target=_read, args=(response, items), name="engine-stream", daemon=True).start()
    try:
        yield from _yielding(items, patience=patience, tick=tick, on_tick=on_tick)
    finally:
        _hang_up(response)


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


def _read(response: requests.Response, items: "SimpleQueue[_Item]") -> None:
    rest = b""
    try:
        for chunk in response.raw.stream(64 * 1024, decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, map(bytes.strip, lines)):
                items.put(line)
            rest = rest[:LONGEST_LINE]
        items.put(rest.strip() or None)
        items.put(None)
    except Exception as error:  # noqa: BLE001 - it is raised again in the thread that wanted the lines
        items.put(error)


def _hang_up(response: requests.Response) -> None:
    with suppress(AttributeError, ValueError, RuntimeError, OSError):
        response.raw.shutdown()  # urllib3 before 2.3 lacks it; then the read time limit ends the thread
    response.close()
