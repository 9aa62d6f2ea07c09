"""Inputs that lie in the server's blob store: when they are fetched, and how long they are asked for.

Must not know how a blob travels or what an input means.
"""

from node_agent.domain.ports import Clock, RunFolders, Server
from node_agent.domain.run import Run
from node_agent.errors import BlobUnreadable, InputUnreadable
from node_agent.runlog import log_of

PATIENCE_SECONDS = 30.0
"""How long an input is asked for again that the server cannot find; a server that does not answer is asked for ever."""


def ensure_input(run: Run, *, server: Server, folders: RunFolders, clock: Clock) -> None:
    """See to it that the input is on this machine. Raises InputUnreadable, BlobUnreadable."""
    if run.input_blob is None or folders.has_input(run.id):
        return
    try:
        with server.open_input(run.input_blob) as content:
            folders.store_input(run.id, content)
    except BlobUnreadable as error:
        if clock.now() < (run.claimed_at or run.received_at) + PATIENCE_SECONDS:
            raise
        raise InputUnreadable(
            f"The input of this run cannot be had: {error} This node asked for it again for a while.",
            hint="Send the task again; if that does not help, ask whoever runs the server to look at its blob store.",
        ) from error
    log_of(run).info("input_fetched")
