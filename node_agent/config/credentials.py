"""Which texts of a configuration are credentials that an algorithm may see, so that logs can mask them.

Owns the tell-tale names and the places in an address where a credential stands. Must not know what is done with them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote, unquote_plus

from node_agent.domain.database import Database
from node_agent.domain.secret import Secret

_SECRET_NAME = re.compile(r"pass|pwd|secret|token|key|cred", re.IGNORECASE)
_AUTHORITY = re.compile(r"//([^/?#;]*)")
_SECRET_PART = re.compile(
    r"(?:\A|[?&;,\s])(?P<name>[\w.\-]*(?:pass|pwd|secret|token|key|cred)[\w.\-]*)=(?P<value>[^&;\s]+)",
    re.IGNORECASE,
)


def sounds_secret(name: str) -> bool:
    """Tell whether a variable of this name most likely holds a credential."""
    return bool(_SECRET_NAME.search(name))


def credentials_of(databases: Iterable[Database], variables: Mapping[str, str]) -> tuple[Secret, ...]:
    """List the credentials in the databases' addresses and parameters and in the owner's *variables*."""
    found: list[str] = []
    for database in databases:
        if database.path is None:
            found += _in_address(database.uri)
        found += _in_variables(database.env)
    found += _in_variables(variables)
    return tuple(Secret(text) for text in dict.fromkeys(found) if text.strip())


def _in_variables(variables: Mapping[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        if sounds_secret(name):
            yield value
        elif "://" in value:
            yield from _in_address(value)


def _in_address(address: str) -> Iterator[str]:
    """Find the password and the secret parameters of an address, as written and as meant."""
    authority = _AUTHORITY.search(address)
    account, at, _ = (authority[1] if authority else "").rpartition("@")
    name, colon, password = account.partition(":")
    # Without a password the name itself may be a token, but where databases live it is a plain account.
    alone = name if at and not colon and address.startswith(("http:", "https:")) else ""
    for text in (password, alone, *_secret_parts(address), *_secret_parts(unquote_plus(address))):
        yield from (text, unquote(text))


def _secret_parts(address: str) -> list[str]:
    return [match["value"] for match in _SECRET_PART.finditer(address.partition("://")[2])]
