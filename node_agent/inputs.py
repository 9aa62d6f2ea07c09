"""Inputs that lie in the server's blob store: when they are fetched, and how long they are asked for.

Must not know how a blob travels or what an input means.
"""

from collections.abc import Callable, Iterable, Iterator

from node_agent.domain.mark import seconds_since
from node_agent.domain.ports import Clock, Origin, RunFolders
from node_agent.domain.run import Run
from node_agent.errors import BlobUnreadable, InputChanged, InputUnreadable, RunClosed
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
) -> str:
    """Ensure that the input is on this machine, and return its SHA-256.

    Raises InputUnreadable, BlobUnreadable, InputChanged.

    *wanted* is asked between its pieces; when it says no, what came is thrown away. Raises RunClosed then.
    """
    if run.input_blob is None or folders.has_input(run.id):
        return kept_digest(run, folders)
    try:
        with server.open_input(run.input_blob) as content:
            digest = folders.store_input(run.id, _while(wanted, content))
    except BlobUnreadable as error:
        if seconds_since(run.entered, now=clock.mark()) < PATIENCE_SECONDS:
            raise
        raise InputUnreadable(
            f"The input of this run cannot be had: {error} This node asked for it again for a while.",
            hint="Send the task again; if that does not help, ask whoever runs the server to look at its blob store.",
        ) from error
    log_of(run).info("input_fetched")
    return digest


def kept_digest(run: Run, folders: RunFolders) -> str:
    """Return the SHA-256 of the input that was accepted, or of the one that is kept; empty when neither is known."""
    return run.input_digest or folders.input_digest(run.id) or ""


def require_judged_input(run: Run, folders: RunFolders) -> None:
    """Check whether the input that a container is about to get is the one that was judged. Raises InputChanged."""
    kept = folders.input_digest(run.id)
    if kept is not None and run.input_digest not in {"", kept}:
        log_of(run).error("input_changed", reason="the kept input is not the one that was judged")
        raise InputChanged("The input on this node is not the one that the policy has judged.")


def _while(wanted: Callable[[], bool], content: Iterable[bytes]) -> Iterator[bytes]:
    for piece in content:
        if not wanted():
            raise RunClosed("The input is not wanted any more.")
        yield piece
