"""Sealed messages, as all parties of an encrypted collaboration write and read them.

    base64(E) "$" base64(IV) "$" base64(C)          in texts: inputs, results
    base64(E) "$" base64(IV) "$" C                  in the blob store

K are 32 random bytes, E is K under RSA with PKCS#1 v1.5 padding for the reader's public key, IV are 16 random bytes, and C
is the message under AES-256 in counter mode. Nothing in this form tells whether a message was changed on its way, or who
wrote it: docs/encryption.md says what follows. Owns this form. Must not know where messages come from.
"""

import base64
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from node_agent.payload.chunks import (
    Chunks,
    NotBase64,
    base64_length,
    decoded_base64,
    encoded_base64,
)
from node_agent.payload.keys import PrivateKey, PublicKey

if TYPE_CHECKING:
    from node_agent.payload.ciphers import Cipher, CipherContext, modes

_KEY_BYTES = 32
_IV_BYTES = 16
_SEPARATOR = b"$"
_MAX_HEADER = 8192


class EnvelopeError(ValueError):
    """A message cannot be opened; the text ends a sentence that begins with `The message`."""


class Sealed:
    """A message sealed for one reader; each time it is read it has another key, and the same length."""

    def __init__(self, message: Chunks, key: PublicKey) -> None:
        self._message = message
        self._key = key

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return sealed_length(self._message.length, self._key)

    def __iter__(self) -> Iterator[bytes]:
        """Seal piece by piece."""
        return seal(self._message, self._key)


class SealedBlob:
    """The same for the blob store."""

    def __init__(self, message: Chunks, key: PublicKey) -> None:
        self._message = message
        self._key = key

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return sealed_blob_length(self._message.length, self._key)

    def __iter__(self) -> Iterator[bytes]:
        """Seal piece by piece."""
        return seal_blob(self._message, self._key)


def seal(pieces: Iterable[bytes], key: PublicKey) -> Iterator[bytes]:
    """Seal a message as text."""
    header, cipher = _begin(key)
    yield header
    yield from encoded_base64(_passed(pieces, cipher))


def seal_blob(pieces: Iterable[bytes], key: PublicKey) -> Iterator[bytes]:
    """Seal a message for the blob store."""
    header, cipher = _begin(key)
    yield header
    yield from _passed(pieces, cipher)


def sealed_length(size: int, key: PublicKey) -> int:
    """Say how long a message of *size* bytes is as sealed text."""
    return _header_length(key) + base64_length(size)


def sealed_blob_length(size: int, key: PublicKey) -> int:
    """Say how long a message of *size* bytes is in the blob store."""
    return _header_length(key) + size


def unseal(pieces: Iterable[bytes], key: PrivateKey) -> Iterator[bytes]:
    """Open sealed text. Raises EnvelopeError, also after pieces were given."""
    cipher, rest = _opened(pieces, key)
    try:
        yield from _passed(decoded_base64(rest), cipher)
    except NotBase64 as error:
        raise EnvelopeError("is damaged or cut off: its third part is not base64") from error


def unseal_blob(pieces: Iterable[bytes], key: PrivateKey) -> Iterator[bytes]:
    """Open what the blob store keeps. Raises EnvelopeError before anything is given."""
    cipher, rest = _opened(pieces, key)
    return _passed(rest, cipher)


def _begin(key: PublicKey) -> tuple[bytes, "CipherContext"]:
    """Choose a key and write the two parts that stand before the message."""
    secret, start = os.urandom(_KEY_BYTES), os.urandom(_IV_BYTES)
    header = (base64.b64encode(part) + _SEPARATOR for part in (key.seal_block(secret), start))
    return b"".join(header), _cipher(secret, start).encryptor()


def _header_length(key: PublicKey) -> int:
    return base64_length(key.block_length) + base64_length(_IV_BYTES) + 2 * len(_SEPARATOR)


def _cipher(secret: bytes, start: bytes) -> "Cipher[modes.CTR]":
    from node_agent.payload import ciphers

    return ciphers.Cipher(ciphers.algorithms.AES(secret), ciphers.modes.CTR(start))


def _passed(pieces: Iterable[bytes], cipher: "CipherContext") -> Iterator[bytes]:
    return (cipher.update(piece) for piece in pieces)


def _opened(pieces: Iterable[bytes], key: PrivateKey) -> tuple["CipherContext", Iterator[bytes]]:
    """Read the two parts that stand before the message; give how it is opened, and the message as it came."""
    source = iter(pieces)
    block, start, begun = _first_parts(source)
    iv = _part(start, "second")
    if len(iv) != _IV_BYTES:
        raise EnvelopeError(f"is damaged: its second part has {len(iv)} bytes instead of {_IV_BYTES}")
    return _cipher(_secret(_part(block, "first"), key), iv).decryptor(), chain([begun], source)


def _first_parts(source: Iterator[bytes]) -> tuple[bytes, bytes, bytes]:
    head = b""
    while head[:_MAX_HEADER].count(_SEPARATOR) < 2:  # noqa: PLR2004 - as the form has it
        piece = next(source, None)
        if piece is None or len(head) > _MAX_HEADER:
            raise EnvelopeError("is not sealed: it has not the three parts that `$` sets apart")
        head += piece
    block, start, begun = head.split(_SEPARATOR, 2)
    return block, start, begun


def _part(text: bytes, which: str) -> bytes:
    try:
        return b"".join(decoded_base64([text]))
    except NotBase64 as error:
        raise EnvelopeError(f"is damaged: its {which} part is not base64") from error


def _secret(block: bytes, key: PrivateKey) -> bytes:
    if len(block) != key.public.block_length:
        raise EnvelopeError("is sealed for another key: that one has another size")
    try:
        secret = key.open_block(block)
    except ValueError as error:
        raise _not_ours() from error
    # messages from the web interface hold the key as base64 text
    if len(secret) == base64_length(_KEY_BYTES):
        secret = _from_text(secret)
    # the library may give noise of any length instead of an error
    if len(secret) != _KEY_BYTES:
        raise _not_ours()
    return secret


def _from_text(secret: bytes) -> bytes:
    try:
        return b"".join(decoded_base64([secret]))
    except NotBase64:
        return secret


def _not_ours() -> EnvelopeError:
    return EnvelopeError("is sealed for another key, or damaged")
