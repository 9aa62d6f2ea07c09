"""Trouble on demand, for tests of clients: which call goes wrong, how, and how often. Knows no routes."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

HTML = "<html><head><title>Bad</title></head><body>Something is wrong here.</body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to go wrong; what is not set stays as it would be."""

    status: int = 0
    """Answer with this status and *body* instead of doing anything."""
    body: str = HTML
    content_type: str = "text/html; charset=utf-8"
    delay: float = 0.0
    """Seconds to wait before anything is done."""
    drop: bool = False
    """Close the connection instead of doing anything."""
    lose_answer: bool = False
    """Do everything, then close the connection instead of answering."""
    truncate: bool = False
    """Send half of the answer's body, then close the connection."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the answer with *status*."""
    byte_seconds: float = 0.0
    """Send the answer's body byte by byte, with so many seconds between them."""


NO_FAULT = Fault()


@dataclass(slots=True)
class _Waiting:
    method: str
    path: str
    fault: Fault
    times: int


class Faults:
    """The faults that wait for their call; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []

    def add(self, method: str, path: str, fault: Fault, *, times: int = 1) -> None:
        """Let the next *times* calls go wrong whose path, without the API's, begins with *path*."""
        with self._lock:
            self._waiting.append(_Waiting(method, path, fault, times))

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._waiting.clear()

    def take(self, method: str, path: str) -> Fault:
        """Give the fault for this call; one without effect when there is none."""
        with self._lock:
            for waiting in self._waiting:
                if waiting.method == method and path.startswith(waiting.path):
                    waiting.times -= 1
                    self._waiting = [left for left in self._waiting if left.times > 0]
                    return waiting.fault
        return NO_FAULT
