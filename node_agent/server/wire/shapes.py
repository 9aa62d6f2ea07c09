"""Kinds of values every message is made of, how they are checked, and how a complaint about them is worded.

Owns what the other modules of this package share. Must not know any message.
"""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from node_agent.domain.run import FIRST_JOB_RUN
from node_agent.errors import ServerUnreachable
from node_agent.payload.longtext import LongText
from node_agent.server.exchange import shorten

UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains characters that cannot be printed")
    return text


def _one_word(text: str) -> str:
    if any(c.isspace() for c in text):
        raise ValueError("contains white space")
    return _printable(text)


def _text(value: object) -> str | LongText:
    if not isinstance(value, str | LongText):
        raise ValueError("Input should be a valid string")  # noqa: TRY004 - pydantic wants ValueError
    return value


LongString = Annotated[str | LongText, PlainValidator(_text)]
Id = Annotated[int, Field(gt=0, lt=2**63)]
RunNumber = Annotated[int, Field(gt=0, lt=FIRST_JOB_RUN)]
"""The number of a run of the server; greater ones belong to the jobs of the compute API, and the server may name none."""
Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Image = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_one_word)]
Uuid = Annotated[str, Field(pattern=rf"\A{UUID}\z")]
Name = Annotated[str, Field(max_length=1024)]
Jwt = Annotated[str, Field(min_length=1, max_length=16_384, pattern=r"^[A-Za-z0-9_.-]+$")]


class Wire(BaseModel):
    """What a message is read into: nothing is converted, unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Link(Wire):
    """A relation to one thing."""

    id: Id


class Links(Wire):
    """Where the other pages of a listing are."""

    next: str | None = None


class Listed(Wire):
    """One page of any listing."""

    data: list[Any]
    links: Links = Links()


_Shape = TypeVar("_Shape", bound=Wire)


def shaped(shape: type[_Shape], content: object, call: str) -> _Shape:
    """Read an answer. Raises ServerUnreachable when it is not what it should be."""
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise ServerUnreachable(f"The answer to {call} is not understood: {complaint(error)}.") from None


def complaint(error: ValidationError) -> str:
    """Say the first fault in a few words, without the value: it may be a secret or an input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return shorten(f"`{place}`: {text}" if place else text)


def json_body(**fields: object) -> bytes:
    """Write a small message."""
    return json.dumps(fields).encode()


def id_of(link: Link | None) -> int | None:
    """Give the number behind a relation; None when there is none."""
    return None if link is None else link.id


def format_time(at: float) -> str:
    """Write a time as the server accepts it: with six digits and +00:00, all else is an error 500 there."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def parse_time(text: str | None) -> float | None:
    """Read a time of the server, which is UTC even when it does not say so; None for what is no time."""
    try:
        found = datetime.fromisoformat(text or "")
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
