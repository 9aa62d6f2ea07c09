"""Which fields are signed for what, in the two dialects clients speak.

The specification's messages end in the nonce's digits, the newer dialect's in a command's letters: no message is one of
both. Fields stand beside each other without a mark between them. A message can be cut into fields in one way only as long
as what stands before the nonce does not end in a digit or has a fixed length: where it is not so, a message of the
specification's dialect proves nothing, and the one case clients cannot do without (a result's index) is looked at by
itself.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

from node_agent.compute.fields import Fields, is_whole
from node_agent.domain.assets import is_did


class Operation(StrEnum):
    """What can be asked under a signature; the value is what the newer dialect signs."""

    START = "startCompute"
    FREE_START = "freeStartCompute"
    STATUS = "getComputeStatus"
    STOP = "stopCompute"
    DELETE = "deleteCompute"
    RESULT = "getComputeResult"
    LOG = "getComputeStreamableLogs"
    CREATE_TOKEN = "createAuthToken"  # noqa: S105 - a command
    DELETE_TOKEN = "invalidateAuthToken"  # noqa: S105 - a command


_SPECIFIED: Mapping[Operation, tuple[str, ...]] = {
    Operation.START: ("consumerAddress", "jobId", "dataset.documentId"),
    Operation.STATUS: ("consumerAddress", "jobId", "documentId"),
    Operation.STOP: ("consumerAddress", "jobId", "documentId"),
    Operation.DELETE: ("consumerAddress", "jobId", "documentId"),
    Operation.RESULT: ("consumerAddress", "jobId", "index"),
    Operation.CREATE_TOKEN: ("address",),
    # clients of both dialects sign it so
    Operation.DELETE_TOKEN: ("address",),
}
_NEWER = frozenset(
    {
        Operation.FREE_START,
        Operation.STOP,
        Operation.RESULT,
        Operation.LOG,
        Operation.CREATE_TOKEN,
        Operation.DELETE_TOKEN,
    }
)
_OF_TOKENS = frozenset({Operation.CREATE_TOKEN, Operation.DELETE_TOKEN})


def address_field(operation: Operation) -> str:
    """Name the field that says who asks."""
    return "address" if operation in _OF_TOKENS else "consumerAddress"


def specified_message(operation: Operation, fields: Fields, *, nonce: str) -> str | None:
    """Give the text that the specification's dialect signs; None when these fields could be read in another way."""
    names = _SPECIFIED.get(operation)
    if names is None or not _CLEAR.get(operation, _always)(fields):
        return None
    return "".join(fields.text(name) for name in names) + nonce


def newer_message(operation: Operation, fields: Fields, *, nonce: str) -> str | None:
    """Give the text that the newer dialect signs; None when it has no such operation."""
    if operation not in _NEWER:
        return None
    return fields.text(address_field(operation)) + nonce + operation.value


def has_other_readings(index: str, nonce: str, *, files: int) -> bool:
    """Tell whether a signed result request could be read as one for another of the job's files."""
    digits = index + nonce
    cuts = (cut for cut in range(1, len(digits)) if cut != len(index))
    return any(
        is_whole(digits[:cut]) and int(digits[:cut]) < files and is_whole(digits[cut:]) for cut in cuts
    )


def _always(_fields: Fields) -> bool:
    return True


def _names_a_document(fields: Fields) -> bool:
    """Ask for a document: without one, a result's request would be a stop of the same job with a higher nonce."""
    return is_clear(fields.text("documentId"))


def _names_no_job_or_a_document(fields: Fields) -> bool:
    name = fields.text("documentId")
    return is_clear(name) if "jobId" in fields or name else True


def is_clear(name: str) -> bool:
    """Tell whether it is plain where a name ends and the digits behind it begin."""
    return is_did(name) or (bool(name) and not name[-1].isdigit())


_CLEAR: Mapping[Operation, Callable[[Fields], bool]] = {
    Operation.START: lambda fields: is_clear(fields.text("dataset.documentId")),
    Operation.STATUS: _names_no_job_or_a_document,
    Operation.STOP: _names_a_document,
    Operation.DELETE: _names_a_document,
}
