"""Container tokens that are asked for beside the pull, so that nobody waits for them afterwards.

Owns the threads that ask, and their answers until somebody takes them: in memory only, so that after a restart, as after
any failure, the token is asked for by whoever needs it. Must not know what a token is good for.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.errors import NodeAgentError

Ask = Callable[[], Secret]


class EarlyTokens:
    """The tokens of runs that are not taken yet. As long as it is not started, none is early."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Future[Secret], Ask]] = SimpleQueue()
        self._of_runs: dict[RunId, Future[Secret]] = {}

    def start(self, *, threads: int) -> None:
        """Start the threads; they end with the process."""
        for number in range(threads):
            # Daemons: a server that does not answer must not hold up the end of the process.
            threading.Thread(target=self._ask_forever, name=f"token-{number}", daemon=True).start()

    def ask(self, run_id: RunId, ask: Ask) -> None:
        """Have the token of a run asked for as soon as a thread is free; once is enough."""
        if run_id not in self._of_runs:
            self._of_runs[run_id] = Future()
            self._wanted.put((self._of_runs[run_id], ask))

    def take(self, run_id: RunId, ask: Ask) -> Secret:
        """Give the token that was asked for, or ask now when nobody has, or none was free to. Raises what *ask* does."""
        early = self._of_runs.pop(run_id, None)
        if early is None or early.cancel():
            return ask()
        try:
            return early.result()
        except NodeAgentError:
            # That was then: the server may have been away, or not yet heard of the claim.
            return ask()

    def forget(self, run_id: RunId) -> None:
        """Drop a token that nobody will take."""
        early = self._of_runs.pop(run_id, None)
        if early is not None:
            early.cancel()

    def _ask_forever(self) -> None:
        while True:
            early, ask = self._wanted.get()
            if early.set_running_or_notify_cancel():
                _answer(early, ask)


def _answer(early: Future[Secret], ask: Ask) -> None:
    try:
        early.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - it is raised in the thread that takes the token
        early.set_exception(error)
