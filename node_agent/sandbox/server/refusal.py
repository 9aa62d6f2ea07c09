"""How a call is refused. Owns the error and the texts that clients recognise; knows no routes."""

from collections.abc import Mapping
from http import HTTPStatus

LACKS_PERMISSION = "You lack the permission to do that!"
BAD_BODY = "Request body is incorrect"


class Refusal(Exception):
    """The call is refused with a status, a message, and the fields at fault."""

    def __init__(
        self, status: HTTPStatus, message: str, *, errors: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = dict(errors or {})

    @property
    def body(self) -> dict[str, object]:
        """The answer's JSON."""
        return {"msg": self.message} | ({"errors": self.errors} if self.errors else {})


def bad(message: str) -> Refusal:
    """Make the refusal of a call that makes no sense."""
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def bad_field(field: str, text: str) -> Refusal:
    """Make the refusal of a body with a field that is missing or wrong."""
    return Refusal(HTTPStatus.BAD_REQUEST, BAD_BODY, errors={field: [text]})


def missing(message: str) -> Refusal:
    """Make the refusal of a call about something that is not there."""
    return Refusal(HTTPStatus.NOT_FOUND, message)


def denied(message: str = LACKS_PERMISSION) -> Refusal:
    """Make the refusal of a call that this caller may not make."""
    return Refusal(HTTPStatus.UNAUTHORIZED, message)
