"""How the owner's patterns are compared with names: always the whole name, always in the written case.

A pattern is a glob: `*` stands for any characters, `?` for one, `[ab]` for one of several. The part that says *where*
something is from (the first part of an image name, the host of a store) is compared by itself: no wildcard of a path
ever reaches into it, and none of its own reaches out. Knows names only; what follows from a match is decided elsewhere.
"""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

EVERYTHING = "*"
LONGEST_SHOWN = 120
_STORE_URL = re.compile(
    # no user, no query, no escapes, no empty part: an address has one way to be written
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9]+(?:[.\-]+[A-Za-z0-9]+)*(?::[0-9]{1,5})?)"
    r"(?P<path>(?:/[A-Za-z0-9_~\-.]*[A-Za-z0-9_~\-][A-Za-z0-9_~\-.]*)*)/?\Z"
)
_LONGEST_URL = 512
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_USUAL_PORTS = (":443", ":80")


def image_matches(pattern: str, name: str) -> bool:
    """Tell whether *pattern* allows the image *name* (with registry, without tag and digest)."""
    return pattern == EVERYTHING or _matches_in_two(pattern, name)


def image_is_meant(pattern: str, name: str) -> bool:
    """Tell whether *pattern* means the image *name* in any spelling: for rules that take something away."""
    return image_matches(pattern, name) or any(
        image_matches(pattern.lower(), spelling) for spelling in _spellings(name)
    )


def word_matches(patterns: Iterable[str], word: str) -> bool:
    """Tell whether one of *patterns* matches a whole method name or label."""
    return any(fnmatchcase(word, pattern) for pattern in patterns)


def is_store_url(url: str) -> bool:
    """Tell whether *url* is the plain address of a store: nothing in it that could be read in two ways."""
    return len(url) <= _LONGEST_URL and _STORE_URL.match(url) is not None


def store_matches(pattern: str, url: str) -> bool:
    """Tell whether *pattern* allows the store at *url*; a slash at the end makes no difference."""
    if not is_store_url(url):
        return False
    if pattern == EVERYTHING:
        return True
    wanted, _, wanted_rest = pattern.partition("://")
    scheme, _, rest = url.partition("://")
    return wanted == scheme and _matches_in_two(wanted_rest.removesuffix("/"), rest.removesuffix("/"))


def is_open(pattern: str) -> bool:
    """Tell whether a pattern says nothing about where an image or a store is from."""
    host = pattern.partition("://")[2] or pattern
    return host.partition("/")[0].partition(":")[0] == "*"


def shown(text: str) -> str:
    """Write a name from outside so that nobody mistakes it: plain ASCII, one line, bounded."""
    plain = text[:LONGEST_SHOWN].encode("ascii", "backslashreplace").decode()
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in plain)
    return plain if len(text) <= LONGEST_SHOWN else f"{plain}..."


def _matches_in_two(pattern: str, name: str) -> bool:
    """Compare what stands before the first slash by itself, then the rest."""
    wanted, wanted_slash, wanted_path = pattern.partition("/")
    first, slash, path = name.partition("/")
    return slash == wanted_slash and fnmatchcase(first, wanted) and fnmatchcase(path, wanted_path)


def is_same_image(one: str, other: str) -> bool:
    """Tell whether two names are spellings of one image name."""
    return not _spellings(one).isdisjoint(_spellings(other))


def _spellings(name: str) -> frozenset[str]:
    """Give the names by which an engine would fetch the same image."""
    first, slash, path = name.lower().partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return frozenset(_hub_spellings(name.lower()))
    hosts = _ports_of(first)
    if hosts[0] in _HUB:
        return frozenset(_hub_spellings(path))
    return frozenset(f"{host}/{path}" for host in hosts)


def _ports_of(host: str) -> tuple[str, ...]:
    for port in _USUAL_PORTS:
        host = host.removesuffix(port)
    return (host, *(host + port for port in _USUAL_PORTS))


def _hub_spellings(path: str) -> Iterator[str]:
    short = path.removeprefix("library/")
    paths = {path, short} if "/" in short else {short, f"library/{short}"}
    for spelling in paths:
        yield spelling
        yield from (f"{place}/{spelling}" for host in _HUB for place in _ports_of(host))
