"""Calls that ask again whether a task is over, kept back until there is something to say.

An algorithm that waits for its subtasks asks, sleeps, asks, and sleeps longer each time. Whoever asks again what it was
just told is not there to do anything else, so its answer may come when it is worth having: as soon as the task is over,
and no later than a client is known to wait. Owns who is kept for how long, and when the server is asked meanwhile. Must
not know how a call is passed on or answered: a call that is let go takes the way of any other, and gets the server's
own answer.

The server's events only say when to look; looking is the truth. A call that is kept holds a connection and no thread.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret

BRIEFLY = 4.0
"""Seconds; no HTTP library gives up sooner unless it is told to."""
AT_FIRST, AT_MOST = 20.0, 240.0
"""Seconds for those who can be told that the answer is on its way."""
PATIENCE = 3.0
"""So many times longer than it slept itself such a client is kept."""
REASSURE_SECONDS = 4.0
FIRST_LOOK, LAST_LOOK, GROWTH = 0.1, 2.0, 1.3
"""Seconds between two looks at a task: at the beginning, at the end, and how they grow."""
PER_RUN = 4
IN_ALL = 256
"""Calls kept at a time; others are answered at once."""
_REMEMBERED = 1024


class Line(Protocol):
    """The connection of a call that is kept."""

    def let_go(self) -> None:
        """Have the call passed on and answered."""

    def reassure(self) -> None:
        """Tell the client that the answer is on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A call that has come in, before anything is done for it."""

    method: str
    path: str
    authorization: str
    client: str
    """What the client calls itself."""
    address: str
    """Where it calls from."""
    is_current: bool
    """Whether it speaks HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Question:
    """One asking whether the task behind *path* is over."""

    path: str
    run: RunId
    token: Secret
    understands: bool
    """Whether the client can be told that the answer is on its way."""


@dataclass(slots=True, eq=False)
class _Kept:
    question: Question
    line: Line
    until: float
    reassure_at: float
    """Never for clients that do not understand it."""


@dataclass(slots=True)
class _Awaited:
    """A task somebody waits for: who does, and when it is looked at."""

    look_at: float | None
    """None while it is looked at."""
    pause: float = FIRST_LOOK
    again: bool = False
    kept: list[_Kept] = field(default_factory=list)

    def hasten(self, now: float) -> None:
        """Look now, and often for a while: events may come before what they tell of can be seen."""
        self.pause = FIRST_LOOK
        self.again = self.look_at is None
        if self.look_at is not None:
            self.look_at = now

    def is_due(self, now: float) -> bool:
        """Tell whether the task is to be looked at."""
        return self.look_at is not None and self.look_at <= now

    def looked(self, now: float) -> None:
        """Choose the time of the next look."""
        self.look_at = now if self.again else now + self.pause
        self.again = False
        self.pause = min(LAST_LOOK, self.pause * GROWTH)


class Waits:
    """Who is kept waiting for which task."""

    def __init__(
        self,
        *,
        look: Callable[[Question], bool],
        is_alive: Callable[[Question], bool],
        monotonic: Callable[[], float] = time.monotonic,
        reassure_seconds: float = REASSURE_SECONDS,
    ) -> None:
        self._reassure_seconds = reassure_seconds
        self._look = look
        self._is_alive = is_alive
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._tasks: dict[str, _Awaited] = {}
        self._told: dict[RunId, tuple[str, float]] = {}
        self._wake = threading.Event()
        self._stopped = False
        self._begin: Callable[[Callable[[], None]], None] | None = None

    def look_with(self, begin: Callable[[Callable[[], None]], None]) -> None:
        """Begin to keep calls, now that there is somebody to look; begins anew after a stop."""
        with self._lock:
            self._begin, self._stopped = begin, False
            self._tasks.clear()

    def told(self, run: RunId, path: str) -> None:
        """Note that a run was just told that a task is not over."""
        with self._lock:
            self._told.pop(run, None)
            self._told[run] = (path, self._monotonic())
            if len(self._told) > _REMEMBERED:
                del self._told[next(iter(self._told))]

    def keep(self, question: Question, line: Line) -> bool:
        """Keep the call of a run that asks again what it asked last; False when it is to be answered at once."""
        with self._lock:
            path, at = self._told.get(question.run, ("", 0.0))
            if path != question.path or self._begin is None or self._is_full(question.run):
                return False
            now = self._monotonic()
            awaited = self._tasks.setdefault(path, _Awaited(look_at=now))
            until = now + _longest(question, slept=now - at)
            reassure_at = now + self._reassure_seconds if question.understands else float("inf")
            awaited.kept.append(_Kept(question, line, until, reassure_at))
        self._wake.set()
        return True

    def _is_full(self, run: RunId) -> bool:
        runs = [kept.question.run for awaited in self._tasks.values() for kept in awaited.kept]
        return self._stopped or len(runs) >= IN_ALL or runs.count(run) >= PER_RUN

    def task_changed(self, task_id: int) -> None:
        """Look at a task soon: something happened to it."""
        with self._lock:
            awaited = self._tasks.get(f"task/{task_id}/status")
            if awaited is not None:
                awaited.hasten(self._monotonic())
                self._wake.set()

    def turn(self) -> float | None:
        """Let time do its part; says in how many seconds to do it again, None when nobody is kept."""
        now = self._monotonic()
        with self._lock:
            over = self._taken_out(now)
            for kept in self._all():
                self._reassure(kept, now)
            due = [awaited for awaited in self._tasks.values() if awaited.is_due(now)]
            for awaited in due:
                awaited.look_at = None
            looks = [awaited.kept[0].question for awaited in due]
            next_at = min((at for awaited in self._tasks.values() for at in _times(awaited)), default=None)
        for kept in over:
            kept.line.let_go()
        for question in looks:
            self._begin_look(question)
        return None if next_at is None else max(0.0, next_at - now)

    def _reassure(self, kept: _Kept, now: float) -> None:
        if kept.reassure_at <= now:
            kept.reassure_at = now + self._reassure_seconds
            kept.line.reassure()

    def _all(self) -> list[_Kept]:
        return [kept for awaited in self._tasks.values() for kept in awaited.kept]

    def _taken_out(self, now: float) -> list[_Kept]:
        over = [kept for kept in self._all() if kept.until <= now or not self._is_alive(kept.question)]
        for awaited in self._tasks.values():
            awaited.kept = [kept for kept in awaited.kept if kept not in over]
        self._tasks = {path: awaited for path, awaited in self._tasks.items() if awaited.kept}
        return over

    def _begin_look(self, question: Question) -> None:
        if self._begin is not None:
            self._begin(partial(self._look_once, question))

    def _look_once(self, question: Question) -> None:
        """Ask the server about a task; whatever it says but "not over" lets everybody go who waits for it."""
        goes_on = self._look(question)
        over: list[_Kept] = []
        with self._lock:
            awaited = self._tasks.get(question.path)
            if awaited is not None and goes_on:
                awaited.looked(self._monotonic())
            elif awaited is not None:
                over = self._tasks.pop(question.path).kept
        for kept in over:
            kept.line.let_go()
        self._wake.set()

    def keep_time(self) -> None:
        """Take one turn after the other until stopped; sleeps while nobody is kept."""
        while not self._stopped:
            self._wake.wait(self.turn())
            self._wake.clear()

    def stop(self) -> None:
        """Keep nobody any more; whoever is kept is not let go: the connections end with the server."""
        with self._lock:
            self._stopped = True
        self._wake.set()


def _longest(question: Question, *, slept: float) -> float:
    """Say how long a call may be kept; who sleeps long between two askings wants to know the less urgently."""
    if not question.understands:
        return BRIEFLY
    return min(AT_MOST, max(AT_FIRST, PATIENCE * slept))


def _times(awaited: _Awaited) -> list[float]:
    ends = [min(kept.until, kept.reassure_at) for kept in awaited.kept]
    return ends if awaited.look_at is None else [awaited.look_at, *ends]
