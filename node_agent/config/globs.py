"""Kinds of values a policy is made of: patterns of images, stores and words, and who is meant by a number or a name.

Each kind is a function from text to checked text; ValueError carries the end of a sentence that begins with the value.
What could mean more than its author thinks is refused here: regular expressions, and wildcards that run over the end of
a host. Must not know which setting uses a kind, nor how patterns are compared: domain/patterns.py does.
"""

import re
from typing import Any

from node_agent.config.document import FromEnvironment
from node_agent.domain.policy import DIGEST, is_consumer

_IMAGE = re.compile(r"[A-Za-z0-9*?\[\]!][A-Za-z0-9._\-/:*?\[\]!]{0,511}\Z")
_STORE = re.compile(
    r"https?://(?:\*|(?:\*\.)?[A-Za-z0-9]+(?:[.\-]+[A-Za-z0-9]+)*)(?::(?:[0-9]{1,5}|\*))?"
    r"(?:/[A-Za-z0-9._~\-*]+)*/?\Z"
)
_WORD = re.compile(r"[A-Za-z0-9_.\-*?\[\]!]{1,128}\Z")
_REGEX = re.compile(r"[\^$()|+\\{}]|\.\*|\.\+")
_LONGEST = 512
_LARGEST_ID = 2**63 - 1


def image_pattern(text: str) -> str:
    """Check a pattern over image names, or a name with the digest of one content."""
    name, at, digest = text.partition("@")
    if at and not DIGEST.match(digest):
        raise ValueError("has no valid digest: `@sha256:` and 64 hexadecimal digits must follow the name")
    if ":" in name.rpartition("/")[2]:
        raise ValueError(
            "names a tag, and a tag can be moved to other content: name the image without its tag, "
            "or exactly one content as name@sha256:…"
        )
    if not _IMAGE.match(name):
        raise ValueError("is not an image name or pattern; write for example registry.example.org/approved/*")
    _refuse_open_host(name)
    return text


def image_glob(text: str) -> str:
    """Check a pattern over image names."""
    if "@" in text:
        raise ValueError("must name the image without digest")
    return image_pattern(text)


def store_pattern(text: str) -> str:
    """Check a pattern over the addresses of algorithm stores."""
    if text == "*":
        return text
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with https:// (or http://), as the store's address does")
    if not _is_store_pattern(text):
        raise ValueError(
            "is not a store's address or a pattern of one; write for example https://store.example.org/api, and in "
            "the host `*` only for what stands before its first dot"
        )
    return text


def word_pattern(text: str) -> str:
    """Check a pattern over names of methods or labels."""
    if not _WORD.match(text):
        raise ValueError("is not a name or pattern; write for example partial_* (`*` for any characters)")
    return text


def who(value: object) -> object:
    """Read an id (a number, also in quotes) or else a name."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be an id (a whole number) or a name")  # noqa: TRY004 - pydantic wants ValueError
    if isinstance(value, int):
        return _id(value)
    text = str(value)
    if text.isascii() and text.isdigit():
        if text != text.lstrip("0"):
            raise ValueError("is not an id; ids are whole numbers from 1 on, without leading zeros")
        return _id(int(text)) if len(text) < 20 else _id(0)  # noqa: PLR2004 - the largest id has 19 digits
    # an address means the same in any capitals
    return text.lower() if is_consumer(text.lower()) else _name(text)


def _id(number: int) -> int:
    if not 0 < number <= _LARGEST_ID:
        raise ValueError("is not an id; ids are whole numbers from 1 on, without leading zeros")
    return number


def _name(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable() or len(text) > _LONGEST:
        raise ValueError(
            "is not a name: it is empty, too long, or has characters around or in it that nobody sees"
        )
    if "".join(text.split()).isdigit():
        raise ValueError("looks like a number but is not written in the digits 0 to 9")
    if "*" in text:
        raise ValueError("is no pattern: names are compared whole; leave the setting out to allow everybody")
    return text


def no_repeats(values: Any) -> Any:
    """Refuse a list in which an entry stands twice."""
    first: dict[object, int] = {}
    for number, value in enumerate(values or ()):
        if first.setdefault(value, number) != number:
            raise ValueError(f"has the same entry twice, as [{first[value]}] and as [{number}]; keep one")
    return values


def no_regex(value: object) -> object:
    """Refuse what looks like a regular expression, with the pattern that was most likely meant."""
    if not isinstance(value, str) or not _REGEX.search(value):
        return value
    text = (
        "looks like a regular expression; patterns here are compared whole, with `*` for any characters: "
        "write for example registry.example.org/approved/*"
    )
    # what a variable holds is never shown
    guess = "" if isinstance(value, FromEnvironment) else _as_glob(value)
    raise ValueError(f"{text}; here perhaps {guess}" if guess else text)


def _as_glob(text: str) -> str:
    """Write a simple regular expression as a pattern; nothing when it is not that simple."""
    plain = text.removeprefix("^").removesuffix("$")
    for escaped in ("\\.", "\\-", "\\/"):
        plain = plain.replace(escaped, escaped[1])
    guess = re.sub(r"\.[*+]", "*", plain)
    return "" if _REGEX.search(guess) or any(c.isspace() for c in guess) else guess


def _refuse_open_host(name: str) -> None:
    """Refuse a wildcard that lets the part which names the registry grow into a stranger's."""
    first, slash, _ = name.partition("/")
    host = first.partition(":")[0]
    if not slash or host == "*":
        return
    if re.search(r"\*(?!\.)", host):
        raise ValueError(
            "has a `*` before the first slash that no dot follows, so it would also mean the registries of strangers; "
            "write the registry in full"
        )


def _is_store_pattern(text: str) -> bool:
    parts = text.partition("://")[2].split("/")
    return len(text) <= _LONGEST and _STORE.match(text) is not None and not {".", ".."} & set(parts)
