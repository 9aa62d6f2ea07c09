"""The threads that do steps: as many as the settings ask for, so that threads do not grow with runs.

Reports have threads of their own: a server that takes its time over results keeps no run from starting or ending. So has
ending a container: a run that is to end must not wait for a step that hangs. A thread whose step hangs is replaced.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from node_agent.domain.messages import Message, StepDone
from node_agent.domain.run import Run
from node_agent.errors import NodeAgentError
from node_agent.outbox import AT_ONCE
from node_agent.runlog import log_of
from node_agent.stepports import PortsOf
from node_agent.steps import STEP_FUNCTIONS, end_container
from node_agent.stuck import StuckStep, bound_of

KILL_THREADS = 2
MOST_REPLACED = 32
"""Threads that hang and are replaced at a time; beyond that the steps of other runs may have to wait."""

Lane = queue.SimpleQueue[tuple[str, Run, PortsOf]]


@dataclass(slots=True, eq=False)
class _Doing:
    """One step that a thread is doing."""

    run: Run
    step: str
    began: float
    is_replaced: bool = False


class StepPool:
    """Does one step of one run at a time in each of its threads and posts what came of it."""

    def __init__(
        self,
        *,
        ports_of: PortsOf,
        post: Callable[[Message], None],
        threads: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ports_of = ports_of
        self._post = post
        self._now = now
        self._steps, self._reports, self._kills = Lane(), Lane(), Lane()
        self._threads = threads
        self._started: dict[str, int] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._doing: set[_Doing] = set()

    def start(self) -> None:
        """Start the threads; they end with the process."""
        self._start("step", self._steps, self._threads)
        self._start("report", self._reports, AT_ONCE)
        self._start("kill", self._kills, KILL_THREADS)

    def _start(self, name: str, lane: Lane, threads: int) -> None:
        started = self._started.get(name, 0)
        for number in range(started, threads):
            self._start_thread(f"{name}-{number}", lane)
        self._started[name] = max(started, threads)

    def _start_thread(self, name: str, lane: Lane) -> None:
        # Daemons: a pull in flight must not hold up the end of the process.
        threading.Thread(target=self._serve, args=(lane,), name=name, daemon=True).start()

    def renew(self, *, ports_of: PortsOf, threads: int) -> None:
        """Do the steps submitted from now on with what *ports_of* gives; the threads may become more, never fewer."""
        self._ports_of = ports_of
        self._threads = threads
        self.start()

    def submit(self, step: str, run: Run) -> None:
        """Have a step done as soon as a thread is free."""
        lane = self._reports if step == "report" else self._steps
        lane.put((step, run, self._ports_of))

    def kill(self, run: Run) -> None:
        """End the container of a run beside whatever step of it is in flight; nothing comes back."""
        self._kills.put(("kill", run, self._ports_of))

    def stuck(self) -> tuple[StuckStep, ...]:
        """Return the steps that take longer than their bounds, and replace their threads."""
        now = self._now()
        with self._lock:
            late = [doing for doing in self._doing if now - doing.began > bound_of(doing.step)]
            replaced = sum(doing.is_replaced for doing in late)
            to_replace = [doing for doing in late if not doing.is_replaced][
                : max(0, MOST_REPLACED - replaced)
            ]
            for doing in to_replace:
                doing.is_replaced = True
        for doing in to_replace:
            self._replace(doing)
        return tuple(
            StuckStep(doing.run.id, doing.step, now - doing.began, is_replaced=doing.is_replaced)
            for doing in late
        )

    def _replace(self, doing: _Doing) -> None:
        name, lane = ("kill", self._kills) if doing.step == "kill" else ("step", self._steps)
        self._start_thread(f"{name}-r{next(self._numbers)}", lane)

    def _serve(self, lane: Lane) -> None:
        while True:
            step, run, ports_of = lane.get()
            doing = _Doing(run, step, self._now())
            with self._lock:
                self._doing.add(doing)
            if step == "kill":
                _kill(run, ports_of)
                done = None
            else:
                done = do_step(step, run, ports_of)
            with self._lock:
                self._doing.discard(doing)
            if done is not None:
                self._post(done)
            if doing.is_replaced:
                return


def _kill(run: Run, ports_of: PortsOf) -> None:
    try:
        found = end_container(run, ports_of(run))
    except NodeAgentError as error:
        log_of(run).debug("step_postponed", step="kill", reason=str(error))
    except Exception as error:  # noqa: BLE001 - this thread serves all runs, and the step itself says the same
        log_of(run).error("step_bug", step="kill", exc_info=error)
    else:
        if found:
            log_of(run).warning("container_killed")


def do_step(step: str, run: Run, ports_of: PortsOf) -> StepDone:
    """Do one step and put what came of it, error or not, into a message."""
    try:
        result = STEP_FUNCTIONS[step](run, ports_of(run))
    except Exception as error:  # noqa: BLE001 - the control loop decides what an error means
        return StepDone(run.id, step, None, error)
    return StepDone(run.id, step, result, None)
