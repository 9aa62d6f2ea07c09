"""The threads that do steps: as many as the settings ask for, so that threads do not grow with runs.

Reports have threads of their own: a server that takes its time over results keeps no run from starting or ending.
"""

import queue
import threading
from collections.abc import Callable

from node_agent.domain.messages import Message, StepDone
from node_agent.domain.run import Run
from node_agent.outbox import AT_ONCE
from node_agent.stepports import PortsOf
from node_agent.steps import STEP_FUNCTIONS

Lane = queue.SimpleQueue[tuple[str, Run, PortsOf]]


class StepPool:
    """Does one step of one run at a time in each of its threads and posts what came of it."""

    def __init__(self, *, ports_of: PortsOf, post: Callable[[Message], None], threads: int) -> None:
        self._ports_of = ports_of
        self._post = post
        self._steps, self._reports = Lane(), Lane()
        self._threads = threads
        self._started: dict[str, int] = {}

    def start(self) -> None:
        """Start the threads; they end with the process."""
        self._start("step", self._steps, self._threads)
        self._start("report", self._reports, AT_ONCE)

    def _start(self, name: str, lane: Lane, threads: int) -> None:
        started = self._started.get(name, 0)
        for number in range(started, threads):
            # Daemons: a pull in flight must not hold up the end of the process.
            threading.Thread(
                target=self._serve_forever, args=(lane,), name=f"{name}-{number}", daemon=True
            ).start()
        self._started[name] = max(started, threads)

    def renew(self, *, ports_of: PortsOf, threads: int) -> None:
        """Do the steps submitted from now on with what *ports_of* gives; the threads may become more, never fewer."""
        self._ports_of = ports_of
        self._threads = threads
        self.start()

    def submit(self, step: str, run: Run) -> None:
        """Have a step done as soon as a thread is free."""
        lane = self._reports if step == "report" else self._steps
        lane.put((step, run, self._ports_of))

    def _serve_forever(self, lane: Lane) -> None:
        while True:
            step, run, ports_of = lane.get()
            self._post(do_step(step, run, ports_of))


def do_step(step: str, run: Run, ports_of: PortsOf) -> StepDone:
    """Do one step and put what came of it, error or not, into a message."""
    try:
        result = STEP_FUNCTIONS[step](run, ports_of(run))
    except Exception as error:  # noqa: BLE001 - the control loop decides what an error means
        return StepDone(run.id, step, None, error)
    return StepDone(run.id, step, result, None)
