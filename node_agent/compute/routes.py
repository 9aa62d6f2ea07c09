"""What is served where: the names clients look up in the root document, with their verbs and paths."""

from collections.abc import Mapping

from werkzeug.routing import Map, Rule

BASE = "/api/services"
DOCUMENTS = "/api/aquarius/assets/ddo/<did>"
ENDPOINTS: Mapping[str, tuple[str, str]] = {
    "nonce": ("GET", f"{BASE}/nonce"),
    "computeEnvironments": ("GET", f"{BASE}/computeEnvironments"),
    "computeStart": ("POST", f"{BASE}/compute"),
    "computeStatus": ("GET", f"{BASE}/compute"),
    "computeStop": ("PUT", f"{BASE}/compute"),
    "computeDelete": ("DELETE", f"{BASE}/compute"),
    "computeResult": ("GET", f"{BASE}/computeResult"),
    "createAuthToken": ("GET", f"{BASE}/createAuthToken"),
    "deleteAuthToken": ("DELETE", f"{BASE}/deleteAuthToken"),
    "initializeCompute": ("POST", f"{BASE}/initializeCompute"),
    "fileinfo": ("POST", f"{BASE}/fileinfo"),
    "validateContainer": ("POST", f"{BASE}/validateContainer"),
    "computeStreamableLogs": ("GET", f"{BASE}/computeStreamableLogs"),
    "freeCompute": ("POST", f"{BASE}/freeCompute"),
    "generateAuthToken": ("POST", f"{BASE}/auth/token"),
    "invalidateAuthToken": ("POST", f"{BASE}/auth/token/invalidate"),
}
UNLISTED: Mapping[str, tuple[str, str]] = {
    "root": ("GET", "/"),
    "openapi": ("GET", f"{BASE}/openapi.json"),
    "document": ("GET", DOCUMENTS),
}
"""Served as well, but looked up by nobody."""
ROUTES = Map(
    [
        Rule(path, methods=[method], endpoint=name)
        for name, (method, path) in {**UNLISTED, **ENDPOINTS}.items()
    ],
    strict_slashes=False,
    # a redirect would be followed without its body or its signature
    merge_slashes=False,
)
