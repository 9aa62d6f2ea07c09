"""How the bytes of an input and of a result are written for the server: the seam encryption slots into.

Owns the encodings. Must not know calls, JSON or who sends what.
"""

import base64
import binascii
import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from node_agent.domain.task import OrganizationId
from node_agent.errors import InputUnreadable

# a multiple of three, so that base64 of the pieces is base64 of the whole
_CHUNK = 3 * 16 * 1024


class Chunks(Protocol):
    """Bytes made while they are read, whose number is known before."""

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes, piece by piece; may be asked for again."""


class PayloadCodec(Protocol):
    """Decodes inputs and encodes results."""

    def decode_input(self, text: str) -> bytes:
        """Give the bytes of an input. Raises InputUnreadable."""

    def encode_result(self, content: Path | None, *, reader: OrganizationId | None) -> Chunks:
        """Encode a result for organization *reader*; what comes out needs no escaping in JSON."""


class PlainCodec:
    """Payloads of an unencrypted collaboration: base64."""

    def decode_input(self, text: str) -> bytes:
        """Give the bytes of an input. Raises InputUnreadable."""
        try:
            return base64.b64decode(text.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise InputUnreadable(f"The input is not valid base64 ({error}).") from error

    def encode_result(self, content: Path | None, *, reader: OrganizationId | None) -> Chunks:  # noqa: ARG002
        """Encode a result; everybody can read it."""
        return Literal(b"") if content is None else Base64File(content)


class Literal:
    """Bytes at hand."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return len(self._content)

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes at once."""
        yield self._content


class Base64File:
    """A file as base64 text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return 4 * ((self._size + 2) // 3)

    def __iter__(self) -> Iterator[bytes]:
        """Encode the file piece by piece."""
        return (base64.b64encode(chunk) for chunk in _read(self._path, self._size))


class EscapedText:
    """A text file as the inside of a JSON string; what is not UTF-8 is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        # escaping changes the length, and the length must be told before the first byte
        self._length = sum(map(len, self))

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        """Escape the file piece by piece."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for chunk in _read(self._path, self._size):
            yield _escape(decoder.decode(chunk))
        yield _escape(decoder.decode(b"", final=True))


class Sequence:
    """Several pieces one after the other, in the shape the HTTP library takes for a body of known length."""

    def __init__(self, *parts: Chunks) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(part.length for part in self._parts)

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes of all pieces."""
        for part in self._parts:
            yield from part


def _escape(text: str) -> bytes:
    # a database behind the server may refuse the null character each time the report is tried
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return json.dumps(clean, ensure_ascii=False)[1:-1].encode()


def _read(path: Path, size: int) -> Iterator[bytes]:
    """Read exactly *size* bytes: a file that grew meanwhile must not make the body longer than announced."""
    with path.open("rb") as file:
        while size > 0:
            chunk = file.read(min(_CHUNK, size))
            if not chunk:
                raise OSError(f"{path} became shorter while it was sent.")
            size -= len(chunk)
            yield chunk
