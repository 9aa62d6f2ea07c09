"""JSON whose long strings lie in files: read from pieces and written in pieces, however long a string is.

Owns the cut between the skeleton (all that is short, in memory) and the long texts (on disk). Must not know what the
texts mean, where the pieces come from, or who removes the folder.
"""

import codecs
import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from node_agent.payload.chunks import Chunks, Literal

THRESHOLD = 64 * 1024
SKELETON_LIMIT = 16 << 20
ITEMS_LIMIT = 250_000
"""An item of a list costs three bytes on the wire and a hundred in memory."""

_PIECE = 256 * 1024
_QUOTE, _BACKSLASH = b'"', b"\\"
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_LONG = "NaN"  # no JSON has it outside a string, and the parser asks what it means
_HIGH_SURROGATE = re.compile("[\ud800-\udbff]")
_UNICODE_ESCAPE = 6  # characters
_ESCAPED_ALWAYS = bytes(range(32)) + b'"\\'


class BadJson(ValueError):
    """The text is not JSON as this agent takes it."""


class JsonTooLarge(BadJson):
    """The text, or what of it must be kept in memory, is over its bound."""


@dataclass(frozen=True, slots=True)
class LongText:
    """A long string: its characters, without quotes and escapes, lie in a file as UTF-8."""

    path: Path
    length: int
    """In bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes of the text, piece by piece."""
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece


def spool_json(
    pieces: Iterable[bytes],
    folder: Path,
    *,
    threshold: int = THRESHOLD,
    limit: int,
    skeleton: int = SKELETON_LIMIT,
) -> object:
    """Parse JSON, each string longer than *threshold* left in a file of its own in *folder*. Raises BadJson.

    *limit* bounds all bytes, *skeleton* those that stay in memory. The folder is the caller's to remove, in any case:
    what was written before a failure stays.
    """
    return _scanned(pieces, partial(_Spool, folder), threshold=threshold, limit=limit, skeleton=skeleton)


def outlined_json(pieces: Iterable[bytes], *, threshold: int, limit: int, skeleton: int) -> object:
    """Parse JSON for the sake of what is short: each string longer than *threshold* is empty. Raises BadJson."""
    return _scanned(pieces, _Nowhere, threshold=threshold, limit=limit, skeleton=skeleton)


def _scanned(
    pieces: Iterable[bytes], place: "Callable[[], _Place]", *, threshold: int, limit: int, skeleton: int
) -> object:
    with closing(_Scanner(place, threshold=threshold, skeleton=skeleton)) as scanner:
        total = 0
        for piece in pieces:
            total += len(piece)
            if total > limit:
                raise JsonTooLarge(f"longer than {limit} bytes")
            scanner.feed(piece)
        return _parsed(scanner.skeleton(), scanner.long_texts)


def written_json(tree: object) -> Chunks:
    """Write a tree as JSON; its strings may be LongText, or Chunks that need no escaping. Raises BadJson."""
    # nobody outside can know the mark, so no string that came from outside is taken for one
    mark = f"long-text-{secrets.token_hex(16)}-"
    found: list[Chunks] = []

    def keep(value: object) -> str:
        found.append(_inside_of_string(value))
        return f"{mark}{len(found) - 1}-"

    try:
        text = json.dumps(tree, default=keep, allow_nan=False, separators=(",", ":"))
    except RecursionError as error:
        # what can be read may nest deeper than what can be written
        raise BadJson("nested too deeply") from error
    parts = re.split(f"{mark}([0-9]+)-", text)
    return _Joined(
        tuple(found[int(part)] if number % 2 else Literal(part.encode()) for number, part in enumerate(parts))
    )


# --- reading --------------------------------------------------------------------------------------------------


class _Scanner:
    """Tells strings from structure, and long strings from short ones."""

    def __init__(self, place: "Callable[[], _Place]", *, threshold: int, skeleton: int) -> None:
        self.long_texts: list[LongText | str] = []
        self._new_place = place
        self._threshold = threshold
        self._limit = skeleton
        self._kept = bytearray()
        self._items = 0
        self._string_at: int | None = None
        """Where in the skeleton the string begins whose end has not come yet."""
        self._spool: _Place | None = None
        self._carry = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece in."""
        if self._carry:
            piece, self._carry = self._carry + piece, b""
        at = 0
        while at < len(piece):
            at = self._structure(piece, at) if self._string_at is None else self._string(piece, at)
        if len(self._kept) > self._limit:
            raise JsonTooLarge(f"more than {self._limit} bytes without its long texts")

    def skeleton(self) -> str:
        """Give the text with a mark in place of each long string, once all pieces are in."""
        if self._string_at is not None:
            raise BadJson("cut off within a string")
        try:
            return self._kept.decode()
        except UnicodeDecodeError as error:
            raise BadJson("not UTF-8") from error

    def close(self) -> None:
        """Close the file of a text whose end never came."""
        if self._spool is not None:
            self._spool.close()

    def _structure(self, piece: bytes, at: int) -> int:
        quote = piece.find(_QUOTE, at)
        end = len(piece) if quote < 0 else quote
        self._items += sum(piece.count(sign, at, end) for sign in (b",", b"[", b"{"))
        if self._items > ITEMS_LIMIT:
            raise JsonTooLarge(f"more than {ITEMS_LIMIT} items")
        self._kept += piece[at:end]
        if quote < 0:
            return end
        self._string_at = len(self._kept)
        self._kept += _QUOTE
        return end + 1

    def _string(self, piece: bytes, at: int) -> int:
        end = _end_of_string(piece, at)
        self._take(piece[at:end])
        if end == len(piece):
            return end
        if piece[end : end + 1] == _BACKSLASH:  # what it escapes is not here yet
            self._carry = _BACKSLASH
            return end + 1
        self._finish_string()
        return end + 1

    def _take(self, raw: bytes) -> None:
        if self._spool is not None:
            self._spool.write(raw)
            return
        self._kept += raw
        start = self._string_at or 0
        if len(self._kept) - start - 1 > self._threshold:
            self._spool = self._new_place()
            self._spool.write(bytes(self._kept[start + 1 :]))
            del self._kept[start:]

    def _finish_string(self) -> None:
        if self._spool is None:
            self._kept += _QUOTE
        else:
            self.long_texts.append(self._spool.finish())
            self._kept += _LONG.encode()
            self._spool = None
        self._string_at = None


def _end_of_string(piece: bytes, at: int) -> int:
    """Find the closing quote, a backslash that ends the piece, or the end of the piece."""
    quote = piece.find(_QUOTE, at)
    end = len(piece) if quote < 0 else quote
    if piece.find(_BACKSLASH, at, end) < 0:
        return end
    found = _STRING.match(piece, at)
    return found.end() if found else end  # it always matches, if only nothing


class _Place(Protocol):
    """Where the characters of one long string go."""

    def write(self, raw: bytes) -> None:
        """Take the next raw characters."""

    def finish(self) -> LongText | str:
        """Return what stands for the string."""

    def close(self) -> None:
        """Let go of what is held."""


class _Nowhere:
    """Forgets a long string."""

    def write(self, raw: bytes) -> None:
        """Forget the next characters."""

    def finish(self) -> str:
        """Return an empty text."""
        return ""

    def close(self) -> None:
        """Nothing is held."""


class _Spool:
    """Writes the characters of one string to a file; an escape or a character may be split over two calls."""

    def __init__(self, folder: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix="text-", dir=folder)
        self._path = Path(name)
        self._file: BinaryIO = open(descriptor, "wb", buffering=0)  # noqa: PTH123, SIM115 - closed by finish or close
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._length = 0
        self._raw = b""
        self._surrogate = ""

    def write(self, raw: bytes) -> None:
        """Take the next raw characters; they begin at an escape's border."""
        raw = self._raw + raw
        cut = _begun_escape(raw)
        self._raw = raw[cut:]
        self._put(_unescaped(self._decoded(raw[:cut])))

    def finish(self) -> LongText:
        """Close the file and give the text."""
        if self._raw or self._surrogate:
            raise BadJson("an escape is cut off")
        self._decoded(b"", final=True)
        self.close()
        return LongText(self._path, self._length)

    def close(self) -> None:
        """Close the file, and leave it."""
        self._file.close()

    def _decoded(self, raw: bytes, *, final: bool = False) -> str:
        try:
            return self._decoder.decode(raw, final)
        except UnicodeDecodeError as error:
            raise BadJson("not UTF-8") from error

    def _put(self, text: str) -> None:
        text = self._surrogate + text
        self._surrogate = text[-1] if text and _HIGH_SURROGATE.match(text[-1]) else ""
        written = _encoded(text[:-1] if self._surrogate else text)
        view = memoryview(written)
        while view:
            view = view[self._file.write(view) :]
        self._length += len(written)


def _begun_escape(raw: bytes) -> int:
    """Say where a Unicode escape begins that the end of *raw* cuts off; the length of *raw* if none does."""
    at = raw.rfind(_BACKSLASH, max(0, len(raw) - _UNICODE_ESCAPE + 1))
    if at < 0 or raw[at + 1 : at + 2] != b"u":
        return len(raw)
    before = at - len(raw[:at].rstrip(_BACKSLASH))
    return at if before % 2 == 0 else len(raw)


def _unescaped(text: str) -> str:
    try:
        found = json.loads(f'"{text}"')
    except ValueError as error:
        raise BadJson("a long string is not one") from error
    return str(found)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    try:  # halves that came in two pieces become one character
        return text.encode("utf-16", "surrogatepass").decode("utf-16").encode()
    except UnicodeDecodeError as error:
        raise BadJson("half a character in a long string") from error


def _parsed(skeleton: str, long_texts: Sequence[LongText | str]) -> object:
    waiting = iter(long_texts)

    def long_text(constant: str) -> LongText | str:
        found = next(waiting, None) if constant == _LONG else None
        if found is None:
            raise BadJson(f"{constant} is no JSON")
        return found

    try:
        tree = json.loads(skeleton, parse_constant=long_text)
    except BadJson:
        raise
    except (ValueError, RecursionError) as error:
        raise BadJson(f"not JSON: {error}") from error
    if next(waiting, None) is not None:
        raise BadJson("a long text has no place")
    return tree


# --- writing --------------------------------------------------------------------------------------------------


class _Escaped:
    """A long text as the inside of a JSON string."""

    def __init__(self, text: LongText) -> None:
        self._text = text
        # escaping changes the length, and the length must be told before the first byte
        self.length = sum(len(_escaped(piece)) for piece in text)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._text) if self.length == self._text.length else map(_escaped, self._text)


class _Joined:
    """Several pieces one after the other."""

    def __init__(self, parts: tuple[Chunks, ...]) -> None:
        self._parts = parts

    @property
    def length(self) -> int:
        return sum(part.length for part in self._parts)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            yield from part


def _inside_of_string(value: object) -> Chunks:
    if isinstance(value, LongText):
        return _Escaped(value)
    if isinstance(value, Chunks):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _escaped(piece: bytes) -> bytes:
    if len(piece.translate(None, _ESCAPED_ALWAYS)) == len(piece):
        return piece
    # one character a byte: what is not ASCII needs no escape, so it may be cut anywhere
    return json.dumps(piece.decode("latin-1"), ensure_ascii=False)[1:-1].encode("latin-1")
