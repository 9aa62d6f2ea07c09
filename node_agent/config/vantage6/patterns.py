"""Regular expressions of the old node as globs, where both allow the same; everything else is kept out.

The old node compared a regular expression with the whole image reference, tag included, from its beginning but not to
its end. A glob here is compared with the whole name without tag, and its wildcards never reach from the registry into the
path. So a glob is given only where it allows nothing that was not allowed before. Knows nothing of files or settings.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from node_agent.config.globs import image_pattern, store_pattern
from node_agent.domain.policy import DIGEST, parse_image

_MOST = 64
_LONGEST = 512
_SIGNS = frozenset("*\\?$^[](){}|+")
"""What makes the old node take a text for a regular expression; a dot alone does not."""
_CLASS = re.compile(r"\[\^?[A-Za-z0-9_.\-]+\]")
_REPEATED = re.compile(r"(?:\[[^\]]*\]|\\[wd]|\.)(?:[*+?]|\{[0-9,]*\})")
_GLOB = re.compile(r"[A-Za-z0-9._\-/:*]+\Z")
_IN_NAMES = re.compile(r"[A-Za-z0-9._\-/:@~]\Z")
_PORT = re.compile(r":[0-9]{1,5}/")


class KeptOut(Exception):
    """A pattern is not carried over; *offers* are lines the owner may write instead."""

    def __init__(self, reason: str, *offers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offers = offers


class Kind(Enum):
    """What a piece of a pattern matches."""

    LETTER = auto()
    """Exactly this character."""
    ONE = auto()
    """One character of several."""
    ANY = auto()
    """Any characters, or none."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece, as a glob writes it."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Glob:
    """One way through a regular expression; *open* means that anything may follow."""

    pieces: tuple[Piece, ...] = ()
    open: bool = field(default=True)

    @property
    def text(self) -> str:
        """Write it as a glob."""
        text = "".join(piece.text for piece in self.pieces) + ("*" if self.open else "")
        return re.sub(r"\*{2,}", "*", text)

    @property
    def fixed(self) -> str:
        """Give the characters before the first wildcard."""
        text = ""
        for piece in self.pieces:
            if piece.kind is not Kind.LETTER:
                break
            text += piece.text
        return text

    @property
    def plain(self) -> bool:
        """Tell whether nothing in it is a wildcard, apart from what may follow."""
        return all(piece.kind is Kind.LETTER for piece in self.pieces)


def is_expression(pattern: str) -> bool:
    """Tell whether the old node took a pattern for a regular expression."""
    return not _SIGNS.isdisjoint(pattern)


def image_rules(pattern: str) -> list[str]:
    """Give the rules for the images a pattern of `allowed_algorithms` allowed."""
    if is_expression(pattern):
        return expression_rules(pattern)
    image = parse_image(pattern)
    if image is None:
        raise KeptOut("is not an image name")
    if image.digest:
        return [f"{image.name}@{image.digest}"]
    if image.tag:
        raise _names_a_tag(image.name)
    return [image.name]


def expression_rules(pattern: str) -> list[str]:
    """Give the rules for the images a regular expression allowed."""
    return _accepted([_image_rule(glob) for glob in globs_of(pattern)], image_pattern)


def store_rules(pattern: str) -> list[str]:
    """Give the rules for the stores a pattern of `allowed_algorithm_stores` allowed."""
    if not is_expression(pattern):
        return _accepted([pattern], store_pattern)
    return _accepted([_store_rule(glob) for glob in globs_of(pattern)], store_pattern)


def _accepted(rules: list[str], check: Callable[[str], str]) -> list[str]:
    """Let our own check of a pattern have the last word."""
    # a dot before a star would be taken for a regular expression
    rules = [rule.replace(".*", "[.]*") for rule in dict.fromkeys(rules)]
    for rule in rules:
        try:
            check(rule)
        except ValueError as error:
            raise KeptOut(f"would be {rule}, which {error}") from None
    return rules


def _names_a_tag(name: str) -> KeptOut:
    return KeptOut(
        "names a tag, and a tag can be moved to other content; choose one of these",
        (name, "every version: more than before"),
        (f"{name}@sha256:…", "one content"),
    )


def _image_rule(glob: Glob) -> str:
    # without ports, the first colon or @ ends the name
    text = glob.text
    name, at, digest = text.partition("@")
    if at:
        return _exact_content(glob, name, digest.removesuffix("*"))
    tag = _tag_begins(text)
    if tag is not None:
        raise _names_a_tag(text[:tag])
    if not text.endswith("*"):
        raise KeptOut(
            "ends behind the name, so it allowed this image without tag only; choose one of these",
            (text, "every version: more than before"),
            (f"{text}@sha256:…", "one content"),
        )
    if "/" not in glob.fixed:
        raise KeptOut(
            "leaves the registry open; name it",
            ("registry.example.org/project/*", "every image of one project"),
        )
    return text


def _exact_content(glob: Glob, name: str, digest: str) -> str:
    if not glob.plain or not DIGEST.match(digest) or parse_image(name) is None:
        raise KeptOut("names a part of a digest; name the whole", (f"{name}@sha256:…", "one content"))
    image = parse_image(name)
    return f"{image.name if image else name}@{digest}"


def _tag_begins(text: str) -> int | None:
    rest = _PORT.sub(lambda match: "-" * len(match[0]), text, count=1)
    return rest.index(":") if ":" in rest else None


def _store_rule(glob: Glob) -> str:
    scheme, mark, place = glob.fixed.partition("://")
    if not mark or scheme not in {"http", "https"}:
        raise KeptOut("does not begin with the address of a store; write it out")
    if not glob.text.endswith("*"):
        return glob.text
    if "/" not in place:
        address = f"{scheme}://{place}"
        raise KeptOut(
            "leaves the end of the host open, so it allowed the hosts of others; choose one of these",
            (address, "this address"),
            (f"{address}/*", "what lies below it"),
        )
    return glob.text


def globs_of(pattern: str) -> list[Glob]:
    """Take a regular expression apart; KeptOut when a glob cannot say the same."""
    if len(pattern) > _LONGEST:
        raise KeptOut("is longer than any real one")
    try:
        return _Parser(pattern).whole()
    except KeptOut as kept:
        raise KeptOut(kept.reason, *_wider(pattern)) from None


def _wider(pattern: str) -> list[tuple[str, str]]:
    """Offer a glob that allows what the expression did, and more."""
    glob = _REPEATED.sub("*", pattern.removeprefix("^")).replace("\\.", ".")
    glob = glob.removesuffix("$") if glob.endswith("$") else f"{glob}*"
    glob = re.sub(r"\*{2,}", "*", glob)
    return [(glob, "more than before")] if _GLOB.match(glob) and "/" in glob.partition("*")[0] else []


class _Parser:
    """Reads the few forms of regular expressions that globs know."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._place = 0

    def whole(self) -> list[Glob]:
        found = self._branch()
        while self._take("|"):
            found += self._branch()
        if self._rest:
            raise KeptOut("is not a regular expression: a `)` stands alone")
        return _bounded(found)

    def _branch(self) -> list[Glob]:
        self._take("^")
        ways = self._sequence()
        return [replace(way, open=False) for way in ways] if self._take("$") else ways

    def _sequence(self) -> list[Glob]:
        ways = [Glob()]
        while self._rest and self._rest[0] not in "|)$":
            steps = self._atom()
            ways = _bounded([replace(way, pieces=(*way.pieces, *step)) for way in ways for step in steps])
        return ways

    def _atom(self) -> list[tuple[Piece, ...]]:
        sign = self._next()
        if sign == ".":
            return [self._dot()]
        if sign == "(":
            return self._group()
        piece = self._class() if sign == "[" else Piece(Kind.LETTER, self._letter(sign))
        self._refuse_repeats()
        return [(piece,)]

    def _dot(self) -> tuple[Piece, ...]:
        if self._take("*"):
            self._take("?")
            return (Piece(Kind.ANY, "*"),)
        if self._take("+"):
            self._take("?")
            return (Piece(Kind.ONE, "?"), Piece(Kind.ANY, "*"))
        self._refuse_repeats()
        # any character is allowed by it; a dot is what was meant, and less than before
        return (Piece(Kind.LETTER, "."),)

    def _letter(self, sign: str) -> str:
        if sign == "\\":
            sign = self._next()
            if sign.isalnum():
                raise KeptOut(f"uses \\{sign}, which a glob cannot say")
        elif sign in "*+?{}]^":
            raise KeptOut(f"uses {sign} in a way a glob cannot say")
        if not _IN_NAMES.match(sign):
            raise KeptOut("has a character that no name has")
        return sign

    def _class(self) -> Piece:
        match = _CLASS.match(self._pattern, self._place - 1)
        if match is None:
            raise KeptOut("has a set of characters that a glob cannot say")
        self._place = match.end()
        return Piece(Kind.ONE, match[0].replace("[^", "[!", 1))

    def _group(self) -> list[tuple[Piece, ...]]:
        if self._take("?") and not self._take(":"):
            raise KeptOut("uses a kind of group that a glob cannot say")
        ways = self._sequence()
        while self._take("|"):
            ways += self._sequence()
        if not self._take(")"):
            raise KeptOut("has a group that does not end, or `$` inside of one")
        self._refuse_repeats()
        return [way.pieces for way in _bounded(ways)]

    def _refuse_repeats(self) -> None:
        if self._rest and self._rest[0] in "*+?{":
            raise KeptOut(f"repeats something with {self._rest[0]}, which a glob cannot say")

    @property
    def _rest(self) -> str:
        return self._pattern[self._place :]

    def _take(self, sign: str) -> bool:
        found = self._rest.startswith(sign)
        self._place += found
        return found

    def _next(self) -> str:
        if not self._rest:
            raise KeptOut("is not a regular expression: it ends in the middle")
        self._place += 1
        return self._pattern[self._place - 1]


def _bounded(ways: Sequence[Glob]) -> list[Glob]:
    if len(ways) > _MOST:
        raise KeptOut(f"stands for more than {_MOST} names")
    return list(ways)
