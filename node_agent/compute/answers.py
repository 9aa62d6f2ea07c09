"""Answers and refusals in the words clients expect, as JSON and without anything of the request in them."""

import json
from typing import Any

import structlog
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestedRangeNotSatisfiable
from werkzeug.wrappers import Response

from node_agent.compute.desk import NoFreePlace, NoRoom
from node_agent.compute.fields import BadFields
from node_agent.compute.pace import TooFast
from node_agent.compute.wishes import Refused
from node_agent.errors import Transient

log = structlog.get_logger()

_WORDS = {404: "Not Found", 405: "Method Not Allowed"}
_WITH_CONTEXT = frozenset({404, 503})
"""Where the line this API comes from repeats the request; clients find the key, and nothing in it."""
_ROOM_SECONDS = 60
_TRANSIENT_SECONDS = 5


def answered(body: Any, status: int = 200, *, retry_after: float | None = None) -> Response:
    """Answer with JSON."""
    response = Response(json.dumps(body), status, content_type="application/json")
    if retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(retry_after)))
    return response


def refused(error: Exception) -> Response:
    """Say in the API's words why a request goes no further."""
    match error:
        case BadFields():
            errors = {name: [text] for name, text in error.faults.items()}
            return answered({"errors": errors, "message": "Validation error", "success": False}, 400)
        case Refused():
            return answered(error.body, 400)
        case NoFreePlace():
            return answered({"error": "The environment has no free place, and the job is not to wait."}, 400)
        case HTTPException():
            return _http_error(error)
        case _:
            return _not_now(error)


def _not_now(error: Exception) -> Response:
    match error:
        case NoRoom():
            text = "Too many jobs are waiting here; try again later."
            return answered({"error": text}, 429, retry_after=_ROOM_SECONDS)
        case TooFast():
            return answered({"error": "Too many requests."}, 429, retry_after=error.seconds)
        case Transient():
            log.warning("compute_request_failed", reason=str(error))
            text = "The node cannot do this now; try again later."
            return answered({"error": text, "context": {}}, 503, retry_after=_TRANSIENT_SECONDS)
        case _:
            log.error("compute_request_bug", exc_info=error)
            text = "The node failed at this request; its operator finds why in its log."
            return answered({"error": text, "context": {}}, 503)


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    text = _WORDS.get(status, error.name)
    response = answered(
        {"error": text, "context": {}} if status in _WITH_CONTEXT else {"error": text}, status
    )
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(set(error.valid_methods) - {"HEAD"}))
    if isinstance(error, RequestedRangeNotSatisfiable) and error.length is not None:
        response.headers["Content-Range"] = f"bytes */{error.length}"
    return response
