"""Whose call is served next: the threads of the proxy are shared out among researchers.

Owns the order of calls that wait for a thread. Each researcher's calls keep their order, researchers take turns, and
none of them has more than a share of the threads, however many of their runs call at once. Knows nothing of calls.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from waitress.task import ThreadedTaskDispatcher

SHARE = 16
"""Threads that work for one researcher at a time."""
NOBODY = ""
"""Calls that show no run's token."""
LOOKS = "looks"
"""Looks at tasks that somebody waits for."""
_SHARES = {NOBODY: 4, LOOKS: 8}
"""Together with one researcher these leave threads for the next one."""


class Served(Protocol):
    """Something that a thread does, on behalf of somebody."""

    @property
    def researcher(self) -> str:
        """Return who it is done for."""

    def service(self) -> None:
        """Do it."""

    def cancel(self) -> None:
        """Leave it undone."""


class FairQueue:
    """What waits for a thread; stands in for the deque of the dispatcher, and is used under its lock only."""

    def __init__(self, done: Callable[[str], None]) -> None:
        self._done = done
        self._waiting: OrderedDict[str, deque[Served]] = OrderedDict()
        """By researcher; who had the last turn is last."""
        self._working: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many wait, those without a right to a thread included."""
        return sum(map(len, self._waiting.values()))

    def __bool__(self) -> bool:
        """Check whether there is something that may have a thread now."""
        return self._next() is not None

    def append(self, task: Served) -> None:
        """Take something in."""
        self._waiting.setdefault(task.researcher, deque()).append(task)

    def popleft(self) -> "_Turn":
        """Return what is to be done next. Raises IndexError when there is nothing that may have a thread."""
        name = self._next()
        if name is None:
            raise IndexError
        waiting = self._waiting.pop(name)
        task = waiting.popleft()
        if waiting:
            self._waiting[name] = waiting
        self._working[name] += 1
        return _Turn(task, partial(self._done, name), partial(self.is_over, name))

    def is_over(self, name: str) -> None:
        """Note that a thread of a researcher is free again."""
        self._working[name] -= 1
        if self._working[name] <= 0:
            del self._working[name]

    def _next(self) -> str | None:
        return next((name for name in self._waiting if self._working[name] < _SHARES.get(name, SHARE)), None)


class _Turn:
    """Something that has a thread."""

    def __init__(self, task: Served, done: Callable[[], None], over: Callable[[], None]) -> None:
        self._task = task
        self._done = done
        self._over = over

    def service(self) -> None:
        """Do it, and give the thread back."""
        try:
            self._task.service()
        finally:
            self._done()

    def cancel(self) -> None:
        """Leave it undone; whoever does this holds the dispatcher's lock."""
        self._over()
        self._task.cancel()


class FairDispatcher(ThreadedTaskDispatcher):
    """The threads of the proxy."""

    queue: Any
    queue_cv: Any
    lock: Any

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.queue = FairQueue(self._is_over)
        self.set_thread_count(threads)

    def _is_over(self, name: str) -> None:
        with self.lock:
            self.queue.is_over(name)
            if self.queue:
                self.queue_cv.notify()
