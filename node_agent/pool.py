"""The threads that do steps: a fixed number of them, so that threads do not grow with runs."""

import queue
import threading
from collections.abc import Callable

from node_agent.domain.messages import Message, StepDone
from node_agent.domain.run import Run
from node_agent.steps import STEP_FUNCTIONS, Ports


class StepPool:
    """Does one step of one run at a time in each of its threads and posts what came of it."""

    def __init__(self, *, ports: Ports, post: Callable[[Message], None], threads: int) -> None:
        self._ports = ports
        self._post = post
        self._waiting: queue.SimpleQueue[tuple[str, Run]] = queue.SimpleQueue()
        self._threads = [
            # Daemons: a pull in flight must not hold up the end of the process.
            threading.Thread(target=self._serve_forever, name=f"step-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads; they end with the process."""
        for thread in self._threads:
            thread.start()

    def submit(self, step: str, run: Run) -> None:
        """Have a step done as soon as a thread is free."""
        self._waiting.put((step, run))

    def _serve_forever(self) -> None:
        while True:
            step, run = self._waiting.get()
            self._post(do_step(step, run, self._ports))


def do_step(step: str, run: Run, ports: Ports) -> StepDone:
    """Do one step and put what came of it, error or not, into a message."""
    try:
        result = STEP_FUNCTIONS[step](run, ports)
    except Exception as error:  # noqa: BLE001 - the control loop decides what an error means
        return StepDone(run.id, step, None, error)
    return StepDone(run.id, step, result, None)
