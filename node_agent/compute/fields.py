"""What a request of the compute API brings: fields from the query, or from a JSON body when there is no query.

Everything here is untrusted: bounded, typed, and refused with the field's name and never with its value.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from werkzeug.wrappers import Request

MAX_BODY = 1 << 20
MAX_TEXT = 4096
MAX_DEPTH = 20
MAX_NONCE = 2**53 - 1
"""Clients count in doubles: above this, the next number may be the same one."""

_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z")


class BadFields(Exception):
    """Fields are missing or wrong: what is said of each, by its name."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__(", ".join(f"{name}: {text}" for name, text in faults.items()))
        self.faults = dict(faults)


class Fields:
    """The fields of one request; a name with dots reaches into an object."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree

    @classmethod
    def of(cls, request: Request) -> "Fields":
        """Read the fields of a request. Raises BadFields."""
        if request.query_string:
            return cls(_from_query(request))
        return cls(_from_body(request))

    def raw(self, name: str) -> Any:
        """Give what stands under *name*; None when nothing does, or nothing but blanks."""
        found: Any = self._tree
        for part in name.split("."):
            found = _as_object(found)
            found = found.get(part) if found is not None else None
        return None if isinstance(found, str) and not found.strip() else found

    def demand(self, *names: str) -> None:
        """Refuse when one of the fields is not there."""
        missing = {name: required(name) for name in names if self.raw(name) is None}
        if missing:
            raise BadFields(missing)

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str:
        """Give a text; empty when there is none. A whole number counts as its digits."""
        found = self.raw(name)
        if found is None:
            return ""
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if not isinstance(found, str) or len(found) > limit:
            raise BadFields({name: f"The {name} must be a text of at most {limit} characters."})
        return found

    def whole(self, name: str, *, most: int = MAX_NONCE) -> int | None:
        """Give a whole number without sign, fraction or leading zeros; None when there is none."""
        text = self.text(name)
        if not text:
            return None
        if not _NUMBER.match(text) or int(text) > most:
            raise BadFields({name: f"The {name} must be a whole number of at most {most}."})
        return int(text)

    def nested(self, name: str) -> "Fields":
        """Give an object, or a JSON text that is one; empty when there is none."""
        found = self.raw(name)
        if found is None:
            return Fields({})
        tree = _as_object(found)
        if tree is None:
            raise BadFields({name: f"The {name} must be an object."})
        return Fields(tree)

    def entries(self, name: str) -> "list[Fields]":
        """Give a list of objects, or a JSON text that is one. Raises BadFields."""
        found = _parsed(self.raw(name))
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise BadFields({name: f"The {name} must be a list of objects."})
        return [Fields(entry) for entry in found]

    @property
    def tree(self) -> Mapping[str, Any]:
        """Give everything, as it came."""
        return self._tree

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None


def required(name: str) -> str:
    """Word the fault of a field that is not there."""
    return f"The {name} field is required."


def _from_query(request: Request) -> dict[str, Any]:
    repeated = [name for name, values in request.args.lists() if len(values) > 1]
    if repeated:
        raise BadFields({name[:64]: "The field stands there more than once." for name in repeated})
    return dict(request.args.items())


def _from_body(request: Request) -> dict[str, Any]:
    length = request.content_length
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return {}
    if (length or 0) > MAX_BODY:
        raise BadFields({"body": f"The body must have at most {MAX_BODY} bytes."})
    content = request.stream.read(MAX_BODY + 1)
    if len(content) > MAX_BODY:
        raise BadFields({"body": f"The body must have at most {MAX_BODY} bytes."})
    return _object_in(content) if content.strip() else {}


def _object_in(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadFields({"body": "The body must be JSON, each field once."}) from None
    if not isinstance(found, dict) or _is_deep(found):
        raise BadFields({"body": f"The body must be a JSON object, at most {MAX_DEPTH} levels deep."})
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _no_constant(_name: str) -> None:
    raise ValueError


def _as_object(value: Any) -> dict[str, Any] | None:
    found = _parsed(value)
    return dict(found) if isinstance(found, Mapping) else None


def _parsed(value: Any) -> Any:
    """Read what stands in a text as JSON: clients send objects so in a query."""
    if not isinstance(value, str) or value[:1] not in {"{", "["}:
        return value
    try:
        found = json.loads(value, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value
    return value if _is_deep(found) else found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
