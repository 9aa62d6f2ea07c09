"""Results made ready to travel while they wait: sealed for one reader, whose key was learned before.

Owns the two forms a result may travel in. Must not know where it lies, nor when it is sent.
"""

from collections.abc import Iterable
from pathlib import Path

from node_agent.domain.task import OrganizationId
from node_agent.errors import KeyMissing
from node_agent.payload.chunks import PlainFile
from node_agent.payload.codec import PublicKeyOf, key_of_reader
from node_agent.payload.envelope import Sealed, SealedBlob
from node_agent.payload.keys import KeyUnreadable, PublicKey


class EnvelopeSeal:
    """The seal of an encrypted collaboration."""

    def __init__(self, public_key_of: PublicKeyOf) -> None:
        self._public_key_of = public_key_of

    def reader_key(self, reader: OrganizationId | None) -> str:
        """Ask for the public key of an organization. Raises KeyMissing, and what asking raises."""
        return key_of_reader(reader, self._public_key_of).wire

    def sealed(self, result: Path, key: str) -> Iterable[bytes]:
        """Give a result as it travels within a report. Raises KeyMissing."""
        return Sealed(PlainFile(result), _read(key))

    def sealed_blob(self, result: Path, key: str) -> Iterable[bytes]:
        """Give a result as it travels to the blob store. Raises KeyMissing."""
        return SealedBlob(PlainFile(result), _read(key))


def _read(key: str) -> PublicKey:
    try:
        return PublicKey.from_wire(key)
    except KeyUnreadable as error:
        raise KeyMissing(
            f"The public key that this node kept for the reader of the result is damaged: {error}."
        ) from error
