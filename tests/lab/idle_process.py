"""An agent that lives fast: whenever nothing is to be done, its clock jumps to the next thing that is.

    python -m tests.lab.idle_process CONFIG BEATS...

Everything else is the agent as it is: engine, server, journal, threads. Prints a line of JSON about itself after each of
these numbers of beats, and stops after the last. A beat is one wait of the control loop for which nothing came.
"""

import json
import queue
import resource
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from node_agent import lean
from node_agent.clocks import SystemClock
from node_agent.domain.messages import Message, StopAsked, StopKind

if TYPE_CHECKING:
    from node_agent.app import Mailbox

REAL_SECONDS = 0.0003
"""How long a beat waits for a message in real time: an answer of the server takes a few beats."""
BUSY = ("sweep", "start", "probe")
"""Threads that come and go: nothing is measured while one is there."""


class FastClock(SystemClock):
    """The machine's time, and what was skipped of it."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def now(self) -> float:
        return super().now() + self.skipped

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped


class FastQueue(queue.SimpleQueue[Message]):
    """The mailbox of the control loop: a wait in vain takes no time."""

    def __init__(self, clock: FastClock, on_beat: Callable[[], None]) -> None:
        self._clock = clock
        self._on_beat = on_beat

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        try:
            return super().get(block, None if timeout is None else min(timeout, REAL_SECONDS))
        except queue.Empty:
            self._clock.skipped += timeout or 0.0
            self._on_beat()
            raise


class Beats:
    """Counts the beats, measures at some of them, and ends the agent after the last."""

    def __init__(self, clock: FastClock, mailbox: "Mailbox", due: list[int]) -> None:
        self._clock = clock
        self._mailbox = mailbox
        self._due = sorted(due)
        self.beats = 0

    def __call__(self) -> None:
        self.beats += 1
        if not self._due or self.beats < self._due[0] or self._is_busy():
            return
        del self._due[0]
        print(json.dumps({"beats": self.beats, "simulated": self._clock.skipped, **measured()}), flush=True)
        if not self._due:
            self._mailbox.post(StopAsked(StopKind.STOP))

    def _is_busy(self) -> bool:
        return any(thread.name.startswith(BUSY) for thread in threading.enumerate())


def measured() -> dict[str, object]:
    """Give what this process holds now; memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * resource.getpagesize(),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": sorted(thread.name.rstrip("0123456789") for thread in threading.enumerate()),
    }


def main(config: str, *beats: str) -> int:
    """Live so many beats."""
    lean.travel_light()  # as the command does, before anything heavy is loaded
    from node_agent import logs
    from node_agent.app import Application, Mailbox
    from node_agent.config import load

    settings = load(Path(config))
    logs.set_up(level=settings.logging.level, form=settings.logging.format, secrets=settings.secrets)
    clock, mailbox = FastClock(), Mailbox()
    counted = Beats(clock, mailbox, [int(number) for number in beats])
    mailbox.messages = FastQueue(clock, counted)
    with ExitStack() as stack:
        application = Application(settings, mailbox, stack)
        application._clock = clock
        application.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
