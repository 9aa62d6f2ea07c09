"""Which fields are signed for what, in the two dialects clients speak.

The specification's messages end in the nonce's digits, the newer dialect's in a command's letters: no message is one of
both. Fields stand beside each other without a mark between them, so every field has to be checked before the nonce that
ends the message is used up; see docs/compute-api.md.
"""

from enum import StrEnum

from node_agent.compute.fields import Fields


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


_SPECIFIED: dict[Operation, tuple[str, ...]] = {
    Operation.START: ("consumerAddress", "jobId", "dataset.documentId"),
    Operation.STATUS: ("consumerAddress", "jobId", "documentId"),
    Operation.STOP: ("consumerAddress", "jobId", "documentId"),
    Operation.DELETE: ("consumerAddress", "jobId", "documentId"),
    Operation.RESULT: ("consumerAddress", "jobId", "index"),
    Operation.CREATE_TOKEN: ("address",),
    Operation.DELETE_TOKEN: ("address",),
}
_NEWER = frozenset(
    {
        Operation.FREE_START,
        Operation.START,
        Operation.STOP,
        Operation.RESULT,
        Operation.LOG,
        Operation.CREATE_TOKEN,
        Operation.DELETE_TOKEN,
    }
)
_WITHOUT_COMMAND = frozenset({Operation.DELETE_TOKEN})
"""Where a client of the newer dialect signs only its address and the nonce."""


def messages(operation: Operation, fields: Fields, *, nonce: str) -> tuple[str, ...]:
    """Give the texts of which one has to be signed, exactly as their fields were transmitted."""
    asker = fields.text("consumerAddress") or fields.text("address")
    found = []
    if operation in _SPECIFIED:
        found.append("".join(fields.text(name) for name in _SPECIFIED[operation]) + nonce)
    if operation in _NEWER:
        found.append(asker + nonce + operation.value)
    if operation in _WITHOUT_COMMAND:
        found.append(asker + nonce)
    return tuple(dict.fromkeys(found))
