"""Bytes that are made while they are sent: files as they are, as base64, or as the inside of a JSON string.

Owns how content becomes pieces of known total length, so that memory does not grow with a message. Must not know calls,
keys or who sends what.
"""

import base64
import binascii
import codecs
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

PIECE = 3 * 16 * 1024
"""A multiple of three, so that base64 of the pieces is base64 of the whole."""


@runtime_checkable
class Chunks(Protocol):
    """Bytes made while they are read, whose number is known before."""

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes, piece by piece; may be asked for again."""


class NotBase64(ValueError):
    """What should be base64 is not."""


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


class PlainFile:
    """A file as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.lstat().st_size

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        """Read the file piece by piece."""
        return read_exactly(self._path, self._size)


class Base64Of:
    """Other bytes as base64 text."""

    def __init__(self, content: Chunks) -> None:
        self._content = content

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return base64_length(self._content.length)

    def __iter__(self) -> Iterator[bytes]:
        """Encode piece by piece."""
        return encoded_base64(self._content)


class EscapedText:
    """A text file as the inside of a JSON string; what is not UTF-8 is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.lstat().st_size
        # escaping changes the length, and the length must be told before the first byte
        self._length = sum(map(len, self))

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        """Escape the file piece by piece."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in read_exactly(self._path, self._size):
            yield _escape(decoder.decode(piece))
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


def base64_length(size: int) -> int:
    """Say how long *size* bytes are in base64."""
    return 4 * ((size + 2) // 3)


def encoded_base64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Write pieces of any size as base64."""
    for piece in _in_multiples_of(3, pieces):
        yield base64.b64encode(piece)


def decoded_base64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Read base64, strictly: only its alphabet, padded, in one line. Raises NotBase64."""
    padded = False
    for piece in _in_multiples_of(4, pieces):
        if padded:
            raise NotBase64("something follows the padding")
        padded = piece.endswith(b"=")
        yield _decoded(piece)


def _decoded(piece: bytes) -> bytes:
    try:
        return base64.b64decode(piece, validate=True)
    except binascii.Error as error:
        raise NotBase64(str(error)) from error


def _in_multiples_of(size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut pieces anew, so that each but the last is whole groups of *size*."""
    rest = b""
    for piece in pieces:
        joined = rest + piece if rest else piece
        cut = len(joined) - len(joined) % size
        if cut:
            yield joined[:cut]
        rest = joined[cut:]
    if rest:
        yield rest


def ordinary_file(path: Path) -> BinaryIO:
    """Open a file that is to be sent. Raises OSError when it is a link, or no ordinary file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is no ordinary file", str(path))


def read_exactly(path: Path, size: int) -> Iterator[bytes]:
    """Read exactly *size* bytes: a file that grew meanwhile must not make the body longer than announced."""
    with ordinary_file(path) as file:
        while size > 0:
            piece = file.read(min(PIECE, size))
            if not piece:
                raise OSError(f"{path} became shorter while it was sent.")
            size -= len(piece)
            yield piece


def _escape(text: str) -> bytes:
    # a database behind the server may refuse the null character each time the report is tried
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return json.dumps(clean, ensure_ascii=False)[1:-1].encode()
