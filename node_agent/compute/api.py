"""The compute API as a WSGI application: routes, answers, and refusals in the words its clients expect.

Owns HTTP and nothing else: who asks is found out by authentication.py, whether a job may run by admitting.py, and what
becomes of it by the job desk. Nothing of a request is echoed or logged but its route.
"""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import structlog
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request

from node_agent.compute.authentication import Authentication
from node_agent.compute.desk import JobDesk
from node_agent.compute.pace import Pace
from node_agent.compute.tokens import AuthTokens

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

BASE = "/api/services"
ENDPOINTS: Mapping[str, tuple[str, str]] = {
    "nonce": ("GET", f"{BASE}/nonce"),
    "computeEnvironments": ("GET", f"{BASE}/computeEnvironments"),
    "initializeCompute": ("POST", f"{BASE}/initializeCompute"),
    "computeStart": ("POST", f"{BASE}/compute"),
    "computeStatus": ("GET", f"{BASE}/compute"),
    "computeStop": ("PUT", f"{BASE}/compute"),
    "computeDelete": ("DELETE", f"{BASE}/compute"),
    "computeResult": ("GET", f"{BASE}/computeResult"),
    "createAuthToken": ("GET", f"{BASE}/createAuthToken"),
    "deleteAuthToken": ("DELETE", f"{BASE}/deleteAuthToken"),
    "fileinfo": ("POST", f"{BASE}/fileinfo"),
    "validateContainer": ("POST", f"{BASE}/validateContainer"),
    "freeCompute": ("POST", f"{BASE}/freeCompute"),
    "computeStreamableLogs": ("GET", f"{BASE}/computeStreamableLogs"),
    "generateAuthToken": ("POST", f"{BASE}/auth/token"),
    "invalidateAuthToken": ("POST", f"{BASE}/auth/token/invalidate"),
}
_BAD_REQUEST, _TOO_MANY, _NO_CONTENT_YET = 400, 429, 404


class ComputeApi:
    """Answers the calls of consumers."""

    def __init__(
        self,
        *,
        desk: JobDesk,
        authentication: Authentication,
        tokens: AuthTokens,
        pace: Pace,
        about: Mapping[str, Any],
    ) -> None:
        self._desk = desk
        self._authentication = authentication
        self._tokens = tokens
        self._pace = pace
        self._about = about
        self._routes: Map = Map(
            [
                Rule("/", methods=["GET"], endpoint=self._root),
                Rule(f"{BASE}/nonce", methods=["GET"], endpoint=self._nonce),
                Rule(f"{BASE}/computeEnvironments", methods=["GET"], endpoint=self._environments),
                Rule(f"{BASE}/initializeCompute", methods=["POST"], endpoint=self._initialize),
                Rule(f"{BASE}/compute", methods=["POST"], endpoint=self._start),
                Rule(f"{BASE}/compute", methods=["GET"], endpoint=self._status),
                Rule(f"{BASE}/compute", methods=["PUT"], endpoint=self._stop),
                Rule(f"{BASE}/compute", methods=["DELETE"], endpoint=self._delete),
                Rule(f"{BASE}/computeResult", methods=["GET"], endpoint=self._result),
                Rule(f"{BASE}/createAuthToken", methods=["GET"], endpoint=self._create_token),
                Rule(f"{BASE}/deleteAuthToken", methods=["DELETE"], endpoint=self._delete_token),
                Rule(f"{BASE}/fileinfo", methods=["POST"], endpoint=self._file_info),
                Rule(f"{BASE}/validateContainer", methods=["POST"], endpoint=self._validate_container),
                Rule(f"{BASE}/freeCompute", methods=["POST"], endpoint=self._free_start),
                Rule(f"{BASE}/computeStreamableLogs", methods=["GET"], endpoint=self._live_log),
                Rule(f"{BASE}/auth/token", methods=["POST"], endpoint=self._create_newer_token),
                Rule(f"{BASE}/auth/token/invalidate", methods=["POST"], endpoint=self._delete_newer_token),
                Rule("/api/aquarius/assets/ddo/<did>", methods=["GET"], endpoint=self._document),
            ],
            strict_slashes=False,
        )

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one call; whatever happens, the client gets JSON and the agent lives on."""
        request = Request(environ)
        started = time.monotonic()
        response = self._answer(request)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        log.info(
            "compute_request",
            method=request.method,
            path=request.path[:100],
            status=response.status_code,
            ms=round((time.monotonic() - started) * 1000),
        )
        return response(environ, start_response)
