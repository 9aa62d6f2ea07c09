"""Requests as they arrive: which route, what was sent, and what is left of it on the way.

Owns what HTTP says besides fields. Must not know who asks or what a route does.
"""

from contextlib import suppress
from urllib.parse import urlsplit

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Request

from node_agent.compute.authentication import token_in
from node_agent.compute.fields import MAX_BODY, Fields, body_of, is_body_read
from node_agent.compute.routes import ROUTES
from node_agent.compute.signedbody import HEADER, Sent

UNKNOWN_ROUTE = "unknown"
_ROUTE = "node_agent.route"
_TOKEN_HEADERS = ("AuthToken", "Authorization")
_DRAINED = 4 * MAX_BODY
_PIECE = 64 << 10


def find_route(request: Request) -> str:
    """Say what is asked for, by the name of its route. Raises HTTPException."""
    adapter = ROUTES.bind("node")
    name, _ = adapter.match(request.path, method=request.method)
    if request.method == "HEAD":
        raise MethodNotAllowed(adapter.allowed_methods(request.path))
    request.environ[_ROUTE] = name
    return str(name)


def route_of(request: Request) -> str:
    """Name the route that was found; nothing that was sent."""
    return str(request.environ.get(_ROUTE, UNKNOWN_ROUTE))


def sent_by(request: Request) -> Sent:
    """Give what a signature may cover. Raises BadFields."""
    uri = urlsplit(request.environ.get("REQUEST_URI", ""))
    return Sent(
        method=request.method,
        target=f"{uri.path}?{uri.query}" if uri.query else uri.path,
        body=body_of(request),
        token=token_in(*(request.headers.get(name) for name in _TOKEN_HEADERS)),
        signed_body=request.headers.get(HEADER),
    )


def signature_fields(request: Request) -> tuple[str, ...]:
    """Name the field that must be there where nothing else stands for it."""
    return () if HEADER in request.headers else ("signature",)


def wants_to_be_known(request: Request, fields: Fields) -> bool:
    """Tell whether a status is asked for under a signature; the newer dialect sends a token and no nonce, as anybody."""
    sent = sent_by(request)
    signed = sent.signed_body is not None or "signature" in fields
    return signed or ("nonce" in fields and bool(sent.token))


def read_rest(request: Request) -> None:
    """Take in what is left of a body: to a client that is still sending, the answer would be lost."""
    left = 0 if is_body_read(request) else min(request.content_length or 0, _DRAINED)
    with suppress(OSError, HTTPException):
        while left > 0:
            piece = request.stream.read(min(left, _PIECE))
            left = left - len(piece) if piece else 0
