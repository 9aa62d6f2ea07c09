"""One REST call as the routes see it: who calls, what was asked, and what the server has to answer it with.

Owns the reading of queries and bodies, which come from outside and may be anything. Must not know any route.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from werkzeug.datastructures import MultiDict

from node_agent.sandbox.server.database import Condition, Database, one_of, written
from node_agent.sandbox.server.links import Links
from node_agent.sandbox.server.refusal import BAD_BODY, Refusal, bad, bad_field
from node_agent.sandbox.server.tokens import Kind, Mint

LARGEST_NUMBER: Final = 2**53
_TIME_FORMATS: Final = ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S")

Tell = Callable[[str, object, str], None]
"""Send an event, with its content, to a room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What routes answer from."""

    database: Database
    mint: Mint
    links: Links
    tell: Tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: a user, a node, or an algorithm container on a node."""

    kind: Kind
    id: int
    """Of the user or the node; for a container that of its node."""
    organization_id: int
    collaborations: tuple[int, ...]
    """What the caller may see."""
    task_id: int = 0
    image: str = ""

    @property
    def sight(self) -> Condition:
        """Give the condition for rows with a `collaboration_id` that this caller may see."""
        return one_of("collaboration_id", self.collaborations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call whose caller is known."""

    backend: Backend
    caller: Caller
    query: MultiDict[str, str]
    content: bytes
    authorization: str | None
    path: str
    """As it was called, with the API's path."""
    id: int = 0
    """The number in the path."""

    def included(self) -> set[str]:
        """Give the words of `include`, which may be repeated or joined by commas."""
        return {word for text in self.query.getlist("include") for word in text.split(",")}

    def body(self) -> "Body":
        """Read the body, which must be a JSON object."""
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            raise bad(BAD_BODY) from None
        if not isinstance(found, dict):
            raise bad(BAD_BODY)
        return Body(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is more than a body with status 200."""

    body: object
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


class Body:
    """A JSON object from outside, read field by field; whatever is wrong is refused by the field's name."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def has(self, name: str) -> bool:
        """Tell whether the field is there at all, even without a value."""
        return name in self._fields

    def only(self, allowed: Collection[str]) -> None:
        """Refuse fields that nobody knows."""
        unknown = {name: ["Unknown field."] for name in self._fields if name not in allowed}
        if unknown:
            raise Refusal(HTTPStatus.BAD_REQUEST, BAD_BODY, errors=unknown)

    def any(self, name: str) -> Any:
        """Give a field as it came; refuse a body without it."""
        if name not in self._fields:
            raise bad_field(name, "Missing data for required field.")
        return self._fields[name]

    def text(self, name: str) -> str:
        """Give a text; refuse a body without it."""
        found = self.any(name)
        if not isinstance(found, str):
            raise bad_field(name, "Not a valid string.")
        if not _is_unicode(found):
            raise bad_field(name, "Not valid Unicode.")
        return found

    def text_or(self, name: str, default: str) -> str:
        """Give a text, or *default* where there is none."""
        return self.text(name) if name in self else default

    def number(self, name: str) -> int:
        """Give a whole number; refuse a body without it."""
        found = self.any(name)
        if isinstance(found, bool) or not isinstance(found, int) or abs(found) > LARGEST_NUMBER:
            raise bad_field(name, "Not a valid integer.")
        return found

    def list(self, name: str) -> list[Any]:
        """Give a list; refuse a body without it."""
        found = self.any(name)
        if not isinstance(found, list):
            raise bad_field(name, "Not a valid list.")
        return found


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be stored: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- values in queries ------------------------------------------------------------------------------------------


def number(text: str) -> int:
    """Read a whole number out of a query."""
    try:
        found = int(text)
    except ValueError:
        raise bad(f"This is no number: {text[:40]!r}") from None
    if abs(found) > LARGEST_NUMBER:
        raise bad(f"This is no number: {text[:40]!r}")
    return found


def moment(text: str) -> str:
    """Read a time as nodes write it, with or without a fraction, in UTC; give it as the server writes it."""
    plain = text.removesuffix("Z").removesuffix("+00:00")
    for form in _TIME_FORMATS:
        try:
            return written(datetime.strptime(plain, form).replace(tzinfo=UTC))
        except ValueError:
            continue
    raise bad(f"This is no time in UTC, such as 2026-01-31T12:00:00.000000+00:00: {text[:40]!r}")
