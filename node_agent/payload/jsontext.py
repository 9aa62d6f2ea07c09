"""Whether bytes are JSON, told in bounded memory however many there are.

Owns the grammar, and nothing of what the text means. Must not know why anybody asks.
"""

import codecs
import re
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from types import MappingProxyType

_DEEPEST = 1000
_LONGEST_SCALAR = 4096
_LONGEST_ESCAPE = 6
_SPACE = re.compile(r"[ \t\n\r]*")
_INSIDE = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_RIGHT_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LIST_OF_NUMBERS = re.compile(
    r"(?:-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,9})?[ \t\n\r]*+,[ \t\n\r]*+)++"
)


class _Next(Enum):
    """What may come next."""

    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()


_VALUES = frozenset({_Next.VALUE, _Next.VALUE_OR_END})
_KEYS = frozenset({_Next.KEY, _Next.KEY_OR_END})
_ENDS = frozenset({_Next.VALUE_OR_END, _Next.KEY_OR_END, _Next.COMMA_OR_END})
_AFTER_OPENING: Mapping[str, _Next] = MappingProxyType({"[": _Next.VALUE_OR_END, "{": _Next.KEY_OR_END})
_AFTER_COMMA: Mapping[str, _Next] = MappingProxyType({"[": _Next.VALUE, "{": _Next.KEY})
_OPENING: Mapping[str, str] = MappingProxyType({"]": "[", "}": "{"})


class _Wrong(Exception):
    """The text breaks the grammar."""


def is_json(pieces: Iterable[bytes]) -> bool:
    """Tell whether the pieces are one JSON text in UTF-8."""
    reader = _Reader()
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for piece in pieces:
            reader.feed(decoder.decode(piece))
        reader.feed(decoder.decode(b"", final=True))
        return reader.is_complete()
    except (_Wrong, UnicodeDecodeError):
        return False


class _Reader:
    """Walks over the text; keeps what is open, and the few characters that a border cut off."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._next = _Next.VALUE
        self._in_string = False
        self._rest = ""

    def feed(self, text: str) -> None:
        """Take the next characters in."""
        text, self._rest, at = self._rest + text, "", 0
        while at < len(text) and not self._rest:
            at = self._inside_string(text, at) if self._in_string else self._between(text, at)

    def is_complete(self) -> bool:
        """Tell whether a whole text was read; a number may end with it."""
        if self._rest:
            # what follows a scalar ends it, and white space is allowed there
            self.feed(" ")
        return not (self._in_string or self._open or self._rest) and self._next is _Next.COMMA_OR_END

    def _inside_string(self, text: str, at: int) -> int:
        found = _INSIDE.match(text, at)
        at = found.end() if found else at
        if text[at : at + 1] == '"':
            self._in_string = False
            self._next = _Next.COLON if self._next in _KEYS else _Next.COMMA_OR_END
            return at + 1
        if at < len(text):
            self._keep(text, at, longest=_LONGEST_ESCAPE, allowed=text[at] == "\\")
        return at

    def _between(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        at = self._past_numbers(text, space.end() if space else at)
        sign = text[at : at + 1]
        if not sign:
            return at
        if sign in '"[]{},:':
            self._take(sign)
            return at + 1
        return self._scalar(text, at)

    def _past_numbers(self, text: str, at: int) -> int:
        """Skip numbers of a list that stand before others: one at a time would be slow where there are millions."""
        if self._next not in _VALUES or self._open[-1:] != ["["]:
            return at
        found = _LIST_OF_NUMBERS.match(text, at)
        if found is None:
            return at
        self._next = _Next.VALUE
        return found.end()

    def _take(self, sign: str) -> None:
        if sign == '"':
            self._expect(_VALUES | _KEYS)
            self._in_string = True
        elif sign in _AFTER_OPENING:
            self._begin(sign)
        elif sign in _OPENING:
            self._end(sign)
        else:
            self._separate(sign)

    def _begin(self, sign: str) -> None:
        self._expect(_VALUES)
        if len(self._open) >= _DEEPEST:
            raise _Wrong
        self._open.append(sign)
        self._next = _AFTER_OPENING[sign]

    def _end(self, sign: str) -> None:
        self._expect(_ENDS)
        if not self._open or self._open.pop() != _OPENING[sign]:
            raise _Wrong
        self._next = _Next.COMMA_OR_END

    def _separate(self, sign: str) -> None:
        if sign == ":":
            self._expect(frozenset({_Next.COLON}))
            self._next = _Next.VALUE
            return
        self._expect(frozenset({_Next.COMMA_OR_END}))
        if not self._open:
            raise _Wrong
        self._next = _AFTER_COMMA[self._open[-1]]

    def _scalar(self, text: str, at: int) -> int:
        self._expect(_VALUES)
        found = _SCALAR.match(text, at)
        if found is None:
            raise _Wrong
        if found.end() == len(text):
            self._keep(text, at, longest=_LONGEST_SCALAR, allowed=True)
            return at
        if len(found[0]) > _LONGEST_SCALAR or not _RIGHT_SCALAR.fullmatch(found[0]):
            raise _Wrong
        self._next = _Next.COMMA_OR_END
        return found.end()

    def _keep(self, text: str, at: int, *, longest: int, allowed: bool) -> None:
        """Wait for the rest of what the border cut off."""
        if not allowed or len(text) - at >= longest:
            raise _Wrong
        self._rest = text[at:]

    def _expect(self, allowed: frozenset[_Next]) -> None:
        if self._next not in allowed:
            raise _Wrong
