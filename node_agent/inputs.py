"""Inputs that lie in the server's blob store: when they are fetched, and how long they are asked for.

Must not know how a blob travels or what an input means.
"""

from collections.abc import Callable, Iterable, Iterator

from node_agent.domain.mark import seconds_since
from node_agent.domain.ports import Clock, Origin, RunFolders
from node_agent.domain.run import Run
from node_agent.errors import BlobUnreadable, InputUnreadable, RunClosed
from node_agent.runlog import log_of

PATIENCE_SECONDS = 30.0
"""How long an input is asked for again that the server cannot find; a server that does not answer is asked for ever."""


def ensure_input(
    run: Run,
    *,
    server: Origin,
    folders: RunFolders,
    clock: Clock,
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """See to it that the input is on this machine. Raises InputUnreadable, BlobUnreadable.

    *wanted* is asked between its pieces; when it says no, what came is thrown away. Raises RunClosed then.
    """
    if run.input_blob is None or folders.has_input(run.id):
        return
    try:
        with server.open_input(run.input_blob) as content:
            folders.store_input(run.id, _while(wanted, content))
    except BlobUnreadable as error:
        if seconds_since(run.entered, now=clock.mark()) < PATIENCE_SECONDS:
            raise
        raise InputUnreadable(
            f"The input of this run cannot be had: {error} This node asked for it again for a while.",
            hint="Send the task again; if that does not help, ask whoever runs the server to look at its blob store.",
        ) from error
    log_of(run).info("input_fetched")


def _while(wanted: Callable[[], bool], content: Iterable[bytes]) -> Iterator[bytes]:
    for piece in content:
        if not wanted():
            raise RunClosed("The input is not wanted any more.")
        yield piece
