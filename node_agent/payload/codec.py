"""How the bytes of inputs and results are written for the server, in collaborations with and without encryption.

Owns the two codecs. Must not know calls, JSON around the payload, or where keys come from.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from node_agent.domain.task import OrganizationId
from node_agent.errors import BlobUnreadable, InputUnreadable, KeyMissing
from node_agent.payload.chunks import (
    Base64Of,
    Chunks,
    Literal,
    NotBase64,
    PlainFile,
    decoded_base64,
)
from node_agent.payload.envelope import EnvelopeError, Sealed, SealedBlob, unseal, unseal_blob
from node_agent.payload.jsontext import is_json
from node_agent.payload.keys import PrivateKey, PublicKey

PublicKeyOf = Callable[[OrganizationId], PublicKey]
"""Finds the public key of an organization. Raises KeyMissing."""


class PayloadCodec(Protocol):
    """Decodes inputs and encodes results."""

    def decode_input(self, text: Chunks) -> Iterator[bytes]:
        """Give the bytes of an input, piece by piece. Raises InputUnreadable, also in the middle."""

    def encode_result(self, content: Path | None, *, reader: OrganizationId | None) -> Chunks:
        """Encode a result for organization *reader*; what comes out needs no escaping in JSON. Raises KeyMissing."""

    def decode_blob(self, content: Iterable[bytes]) -> Iterator[bytes]:
        """Give the bytes of an input that lies in the blob store.

        Raises InputUnreadable, and BlobUnreadable when it may only have been cut off; both also in the middle.
        """

    def encode_blob(self, content: Path, *, reader: OrganizationId | None) -> Chunks:
        """Encode a result for the blob store, where organization *reader* gets it from. Raises KeyMissing."""


class PlainCodec:
    """Payloads of an unencrypted collaboration: base64."""

    def decode_input(self, text: Chunks) -> Iterator[bytes]:
        """Give the bytes of an input, piece by piece. Raises InputUnreadable, also in the middle."""
        try:
            yield from decoded_base64(text)
        except NotBase64 as error:
            raise InputUnreadable(f"The input is not valid base64 ({error}).") from error

    def encode_result(self, content: Path | None, *, reader: OrganizationId | None) -> Chunks:  # noqa: ARG002
        """Encode a result; everybody can read it."""
        return Literal(b"") if content is None else Base64Of(PlainFile(content))

    def decode_blob(self, content: Iterable[bytes]) -> Iterator[bytes]:
        """Give the bytes of an input that lies in the blob store. Raises BlobUnreadable, also in the middle."""
        try:
            yield from decoded_base64(content)
        except NotBase64 as error:
            raise BlobUnreadable(f"What the blob store gave is not valid base64 ({error}).") from error

    def encode_blob(self, content: Path, *, reader: OrganizationId | None) -> Chunks:  # noqa: ARG002
        """Encode a result for the blob store; everybody can read it."""
        return Base64Of(PlainFile(content))


class SealedCodec:
    """Payloads of an encrypted collaboration: sealed for one organization each."""

    def __init__(self, key: PrivateKey, public_key_of: PublicKeyOf) -> None:
        self._key = key
        self._public_key_of = public_key_of

    def decode_input(self, text: Chunks) -> Iterator[bytes]:
        """Give the bytes of an input, piece by piece. Raises InputUnreadable, also in the middle."""
        with self._translated():
            yield from opened_input(text, self._key)

    def encode_result(self, content: Path | None, *, reader: OrganizationId | None) -> Chunks:
        """Seal a result for the organization that asked. Raises KeyMissing."""
        if content is None:  # nothing is no secret, and a run that failed must not need a key to say so
            return Literal(b"")
        return Sealed(PlainFile(content), key_of_reader(reader, self._public_key_of))

    def decode_blob(self, content: Iterable[bytes]) -> Iterator[bytes]:
        """Give the bytes of an input that lies in the blob store. Raises InputUnreadable, also in the middle."""
        with self._translated():
            yield from unseal_blob(content, self._key)

    def encode_blob(self, content: Path, *, reader: OrganizationId | None) -> Chunks:
        """Seal a result for the blob store. Raises KeyMissing."""
        return SealedBlob(PlainFile(content), key_of_reader(reader, self._public_key_of))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except EnvelopeError as error:
            raise InputUnreadable(
                f"The input cannot be read by this node: it {error}.",
                hint=f"Inputs must be encrypted for this node's key, {self._key.public.fingerprint}: "
                "let the client read the organization's public key from the server again, and send the task anew.",
            ) from error


def key_of_reader(reader: OrganizationId | None, public_key_of: PublicKeyOf) -> PublicKey:
    """Find the key to seal a result with. Raises KeyMissing."""
    if reader is None:
        raise KeyMissing("The server does not say which organization may read the result of this run.")
    return public_key_of(reader)


def opened_input(text: Chunks, key: PrivateKey) -> Iterator[bytes]:
    """Open a sealed input, and take off the base64 that the web interface puts around the message."""
    message = unseal(text, key)
    return decoded_base64(message) if is_wrapped(unseal(text, key)) else message


def is_wrapped(message: Iterable[bytes]) -> bool:
    """Tell whether a message is base64 of JSON; what is JSON as it stands never is.

    JSON that has only characters of base64 is a number, `true` or `null`; base64 of JSON begins with a letter, and
    neither with `t` nor with `n`.
    """
    try:
        return is_json(decoded_base64(message))
    except NotBase64:
        return False
