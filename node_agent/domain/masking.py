"""The masking of secrets in what an algorithm wrote.

Owns what is looked for, and the cutting of an endless stream at places where no secret is cut in two. Must not know where
a log comes from or who gets it. Masking is for accidents: an algorithm that wants to show a secret can always dress it up.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from node_agent.domain.contract import encode
from node_agent.domain.runlogs import LogMask
from node_agent.domain.secret import Secret

MASK: Final = b"***"
LONGEST_LINE: Final = 64 * 1024
"""Bytes of one line that are held back until its end comes."""
SHORTEST_SECRET: Final = 4
"""A shorter one stands in half of all words: it is masked only between `:` and `@`."""

# Servers give containers a token of this form; it is masked wherever it comes from.
_TOKEN = rb"\beyJ[A-Za-z0-9_\-]{5,}\.[A-Za-z0-9_\-]{2,}\.[A-Za-z0-9_\-]*"
_TOKEN_SIGN = b"eyJ"
_LONGEST_TOKEN = 8 * 1024


def mask_for(secrets: Iterable[Secret], values: Iterable[str]) -> LogMask:
    """Make a mask for *secrets*, also as they stand encoded among the *values* of containers' variables."""
    known = tuple(secret.reveal() for secret in secrets)
    carriers = [value for value in values if any(secret in value for secret in known)]
    texts = [*_lines(known), *(form for text in (*known, *carriers) for form in _encoded(text))]
    needles = {text.encode(errors="replace") for text in texts}
    return _Mask(needle for needle in needles if len(needle) >= SHORTEST_SECRET)


def _lines(secrets: Iterable[str]) -> Iterator[str]:
    # The log is masked line by line, and a key file has many.
    for secret in secrets:
        if len(secret.encode(errors="replace")) < SHORTEST_SECRET:
            yield f":{secret}@"
        else:
            yield from (line.strip() for line in secret.splitlines())


def _encoded(text: str) -> tuple[str, str, str]:
    """Give the forms in which a container meets a variable: ours, plain base32, and without padding."""
    ours = encode(text)
    return ours, ours.replace("!", "="), ours.rstrip("!")


class _Mask:
    """Masks a stream line by line; of an endless line, as soon as nothing hidden can begin there any more."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        # The longest first: one may be the beginning of another.
        self._needles = sorted(needles, key=len, reverse=True)
        self._signs = (_TOKEN_SIGN, *self._needles)
        self._pattern = re.compile(b"|".join([*map(re.escape, self._needles), _TOKEN]))
        self._longest = max([_LONGEST_TOKEN, *map(len, self._needles)])

    def __call__(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        rest = b""
        for chunk in chunks:
            rest += chunk
            ended, newline, rest = rest.rpartition(b"\n")
            if newline:
                yield self._masked(ended) + newline
            if len(rest) > max(LONGEST_LINE, 2 * self._longest):
                done, rest = self._cut(rest)
                yield done
        if rest:
            yield self._masked(rest)

    def _masked(self, text: bytes) -> bytes:
        # Most text holds nothing, and to search for plain words is many times faster.
        return self._pattern.sub(MASK, text) if any(sign in text for sign in self._signs) else text

    def _cut(self, line: bytes) -> tuple[bytes, bytes]:
        """Cut a line that has no end yet where no secret can be cut in two."""
        at = len(line) - self._longest
        for match in self._pattern.finditer(line):
            if match.start() >= at:
                break
            at = max(at, match.end())
        return self._masked(line[:at]), line[at:]
