"""Results of encrypted collaborations: whose key is learned when, and when the plain result gives way to the sealed one.

The key is learned before a run is taken, so that nobody computes what nobody could read, and so that sealing needs no
server later. Must not know how anything is sealed, or where it lies.
"""

from node_agent.domain.ports import RunFolders, Seal
from node_agent.domain.run import Run
from node_agent.errors import AccessDenied, DiskFull, KeyChanged, ServerUnreachable
from node_agent.runlog import log_of


def learn_reader(run: Run, *, seal: Seal, folders: RunFolders) -> None:
    """Keep the key of the organization that will read the result. Raises KeyMissing, ServerUnreachable, AccessDenied."""
    folders.keep_reader_key(run.id, seal.reader_key(run.task.init_org_id))


def seal_result(run: Run, *, seal: Seal, folders: RunFolders) -> None:
    """Put the sealed result in place of the plain one, if any. Raises KeyMissing, ServerUnreachable, AccessDenied."""
    result = folders.result_path(run.id)
    # nothing is no secret, and must be known as nothing later
    if result is None or result.stat().st_size == 0:
        return
    try:
        key = _reader_key(run, seal, folders)
    except KeyChanged as error:
        # the report is held until a person has accepted the key, and the result is sealed while it is sent
        log_of(run).warning("result_left_plain", reason=error.message)
        return
    sealed = seal.sealed(result, key) if run.input_blob is None else seal.sealed_blob(result, key)
    try:
        folders.seal_result(run.id, sealed)
    except DiskFull as error:
        # sending it is what makes room
        log_of(run).warning("result_left_plain", reason=error.message)


def _reader_key(run: Run, seal: Seal, folders: RunFolders) -> str:
    """Ask once more, for the key may have changed while the algorithm computed; without an answer the kept one is good."""
    try:
        return seal.reader_key(run.task.init_org_id)
    except (ServerUnreachable, AccessDenied):
        kept = folders.reader_key(run.id)
        if kept is None:
            raise
        return kept
