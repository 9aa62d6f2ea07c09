"""What a request of the compute API brings: fields from the query, or from a JSON body when there is no query.

Everything here is untrusted: bounded, typed, and refused with the field's name and never with its value.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from werkzeug.exceptions import LengthRequired, RequestTimeout
from werkzeug.wrappers import Request

MAX_BODY = 1 << 20
MAX_TEXT = 4096
MAX_DEPTH = 20
MAX_NONCE = 2**53 - 1
"""Clients count in doubles: above this, the next number may be the same one."""

_KEPT_BODY = "node_agent.body"
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z")


class BadFields(Exception):
    """Fields are missing or wrong: what is said of each, by its name."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__(", ".join(f"{name}: {text}" for name, text in faults.items()))
        self.faults = dict(faults)


class Fields:
    """The fields of one request; a name with dots reaches into an object."""

    def __init__(self, tree: Mapping[str, Any], *, inside: str = "") -> None:
        self._tree = tree
        self._inside = inside
        """What the names of these fields begin with in the request, its dot included."""

    @classmethod
    def of(cls, request: Request) -> "Fields":
        """Read the fields of a request. Raises BadFields."""
        if request.query_string:
            return cls(_from_query(request))
        content = body_of(request)
        return cls(_object_in(content) if content.strip() else {})

    def raw(self, name: str) -> Any:
        """Give what stands under *name*; None when nothing does, or nothing but blanks."""
        found: Any = self._tree
        for part in name.split("."):
            found = as_object(found)
            found = found.get(part) if found is not None else None
        return None if isinstance(found, str) and not found.strip() else found

    def demand(self, *names: str) -> None:
        """Refuse when one of the fields is not there."""
        missing = [self._inside + name for name in names if self.raw(name) is None]
        if missing:
            raise BadFields({name: required(name) for name in missing})

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str:
        """Give a text; empty when there is none. A whole number counts as its digits."""
        found = self.raw(name)
        if found is None:
            return ""
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if not isinstance(found, str) or len(found) > limit:
            raise self.fault(name, f"must be a text of at most {limit} characters.")
        return found

    def whole(self, name: str, *, most: int = MAX_NONCE) -> int | None:
        """Give a whole number without sign, fraction or leading zeros; None when there is none."""
        text = self.text(name)
        if not text:
            return None
        if not is_whole(text) or int(text) > most:
            raise self.fault(name, f"must be a whole number of at most {most}.")
        return int(text)

    def nested(self, name: str) -> "Fields":
        """Give an object, or a JSON text that is one; empty when there is none."""
        found = self.raw(name)
        tree = {} if found is None else as_object(found)
        if tree is None:
            raise self.fault(name, "must be an object.")
        return Fields(tree, inside=f"{self._inside}{name}.")

    def entries(self, name: str) -> "list[Fields]":
        """Give a list of objects, or a JSON text that is one. Raises BadFields."""
        found = as_list(self.raw(name))
        if found is None or not all(isinstance(entry, dict) for entry in found):
            raise self.fault(name, "must be a list of objects.")
        return [Fields(entry, inside=f"{self._inside}{name}[{at}].") for at, entry in enumerate(found)]

    @property
    def tree(self) -> Mapping[str, Any]:
        """Give everything, as it came."""
        return self._tree

    def __contains__(self, name: str) -> bool:
        return self.raw(name) is not None

    def fault(self, name: str, text: str) -> BadFields:
        """Word what is wrong with a field."""
        whole = self._inside + name
        return BadFields({whole: f"The {whole} {text}"})


def required(name: str) -> str:
    """Word the fault of a field that is not there."""
    return f"The {name} field is required."


def is_whole(text: str) -> bool:
    """Tell whether *text* is a whole number without sign, fraction or leading zeros."""
    return _NUMBER.match(text) is not None


def body_of(request: Request) -> bytes:
    """Give the body of a request, as often as asked. Raises BadFields when it is too large."""
    if _KEPT_BODY not in request.environ:
        request.environ[_KEPT_BODY] = _read_body(request)
    return bytes(request.environ[_KEPT_BODY])


def is_body_read(request: Request) -> bool:
    """Tell whether nothing of the body is left on the way."""
    return _KEPT_BODY in request.environ


def _read_body(request: Request) -> bytes:
    if "Transfer-Encoding" in request.headers:
        raise LengthRequired
    if (request.content_length or 0) > MAX_BODY:
        raise BadFields({"body": f"The body must have at most {MAX_BODY} bytes."})
    try:
        return request.stream.read(MAX_BODY)
    except OSError:
        raise RequestTimeout from None


def _from_query(request: Request) -> dict[str, Any]:
    if any(len(values) > 1 for _, values in request.args.lists()):
        raise BadFields({"query": "Each field must stand in the query once."})
    return dict(request.args.items())


def _object_in(content: bytes) -> dict[str, Any]:
    try:
        found = _loaded(content.decode())
    except (ValueError, RecursionError):
        raise BadFields({"body": "The body must be JSON, each field once."}) from None
    if not isinstance(found, dict):
        raise BadFields({"body": "The body must be a JSON object."})
    return found


def _loaded(text: str) -> Any:
    """Read JSON that can be written again: nothing twice, nothing endless, no half characters. Raises ValueError."""
    found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if _is_deep(found):
        raise ValueError
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _no_constant(_name: str) -> None:
    raise ValueError


def as_list(value: Any) -> list[Any] | None:
    """Give a list, or a JSON text that is one; nothing is an empty one, and None when it is something else."""
    found = _parsed(value)
    return [] if found is None else found if isinstance(found, list) else None


def as_object(value: Any) -> dict[str, Any] | None:
    """Give an object, or a JSON text that is one; None when it is neither."""
    found = _parsed(value)
    return dict(found) if isinstance(found, Mapping) else None


def _parsed(value: Any) -> Any:
    """Read what stands in a text as JSON: clients send objects so in a query."""
    if not isinstance(value, str) or value[:1] not in {"{", "["}:
        return value
    try:
        return _loaded(value)
    except (ValueError, RecursionError):
        return value


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
