"""Which fields are signed for what, in the two dialects clients speak.

The specification's messages end in the nonce's digits, the newer dialect's in a command's letters: no message is one of
both. Fields stand beside each other without a mark between them, so that a message of the specification can be cut into
fields in several ways when what stands before the nonce may end in a digit. `may_be_cut_elsewhere` says where: such a
message is good for one request, however it is read.
"""

from collections.abc import Mapping
from enum import StrEnum

from node_agent.compute.fields import Fields
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
    """Give the text that the specification's dialect signs; None when it has no such operation."""
    names = _SPECIFIED.get(operation)
    return None if names is None else "".join(fields.text(name) for name in names) + nonce


def newer_message(operation: Operation, fields: Fields, *, nonce: str) -> str | None:
    """Give the text that the newer dialect signs; None when it has no such operation."""
    if operation not in _NEWER:
        return None
    return fields.text(address_field(operation)) + nonce + operation.value


def may_be_cut_elsewhere(operation: Operation, fields: Fields) -> bool:
    """Tell whether the specification's message of these fields could be another request's, with another nonce."""
    if operation in _OF_TOKENS:
        return False  # only the nonce stands behind the address
    if operation is Operation.RESULT:
        return fields.text("index") != "0"  # no whole number begins with it
    name = fields.text("dataset.documentId" if operation is Operation.START else "documentId")
    if not name:
        return "jobId" in fields
    return not is_did(name) and name[-1].isdigit()
