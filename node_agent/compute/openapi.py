"""The compute API described as an OpenAPI document: served beside it, and kept in the documentation.

A table of routes and their fields, written out. Must not know how anything is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BASE = "/api/services"
_ADDRESS = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}
_NONCE = {
    "oneOf": [
        {"type": "string", "pattern": "^(0|[1-9][0-9]{0,15})$"},
        {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
    ]
}
_TEXT = {"type": "string", "maxLength": 4096}
_OBJECT = {"oneOf": [{"type": "object"}, {"type": "string", "description": "the object as JSON"}]}
_DATA_SET = {
    "type": "object",
    "required": ["documentId", "serviceId"],
    "properties": {
        "documentId": _TEXT,
        "serviceId": {"oneOf": [_TEXT, {"type": "integer", "minimum": 0}]},
        "transferTxId": _TEXT,
        "userdata": _OBJECT,
    },
}
_ALGORITHM = {
    "type": "object",
    "properties": {
        "documentId": _TEXT,
        "serviceId": {"oneOf": [_TEXT, {"type": "integer", "minimum": 0}]},
        "transferTxId": _TEXT,
        "meta": _OBJECT,
        "algocustomdata": _OBJECT,
        "userdata": _OBJECT,
    },
}
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "consumerAddress": _ADDRESS,
    "userAddress": _ADDRESS,
    "address": _ADDRESS,
    "nonce": _NONCE,
    "signature": {"type": "string", "pattern": "^(0x)?[0-9a-fA-F]{130}$"},
    "jobId": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "documentId": _TEXT,
    "index": {"type": "integer", "minimum": 0},
    "environment": _TEXT,
    "dataset": _DATA_SET,
    "additionalDatasets": {"type": "array", "items": _DATA_SET, "maxItems": 31},
    "datasets": {"type": "array", "items": _DATA_SET, "maxItems": 32},
    "algorithm": _ALGORITHM,
    "compute": {
        "type": "object",
        "required": ["env", "validUntil"],
        "properties": {"env": _TEXT, "validUntil": {"type": "integer", "minimum": 0}},
    },
    "maxJobDuration": {"type": "integer", "minimum": 0},
    "metadata": {"type": "object"},
    "additionalViewers": {"type": "array", "items": _ADDRESS, "maxItems": 32},
    "queueMaxWaitTime": {"type": "integer", "minimum": 0},
    "expiration": {"type": "integer", "minimum": 0},
    "validUntil": {"type": "integer", "minimum": 0},
    "token": _TEXT,
    "did": _TEXT,
    "serviceId": {"oneOf": [_TEXT, {"type": "integer", "minimum": 0}]},
    "entrypoint": _TEXT,
    "image": _TEXT,
    "checksum": _TEXT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    name: str
    summary: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    answer: str = "object"
    statuses: tuple[int, ...] = (200, 400, 429)


_SIGNED = ("consumerAddress", "nonce")
_CALLS: Mapping[tuple[str, str], _Call] = {
    ("get", "/"): _Call(name="root", summary="What is served where.", statuses=(200, 429)),
    ("get", f"{BASE}/nonce"): _Call(
        name="nonce",
        summary="The last nonce an address used; 0 when it never did.",
        required=("userAddress",),
    ),
    ("get", f"{BASE}/computeEnvironments"): _Call(
        name="computeEnvironments", summary="The profiles jobs run in.", answer="array", statuses=(200, 429)
    ),
    ("post", f"{BASE}/initializeCompute"): _Call(
        name="initializeCompute",
        summary="Whether a start would be let in, and which grant to name then.",
        required=("consumerAddress", "datasets", "algorithm"),
        optional=("compute", "environment", "maxJobDuration"),
    ),
    ("post", f"{BASE}/compute"): _Call(
        name="computeStart",
        summary="Start a job.",
        required=(*_SIGNED, "dataset", "algorithm"),
        optional=("signature", "environment", "additionalDatasets", "maxJobDuration"),
        answer="array",
    ),
    ("get", f"{BASE}/compute"): _Call(
        name="computeStatus",
        summary="How a job is; without a signature, little of it.",
        required=("consumerAddress",),
        optional=("jobId", "documentId", "nonce", "signature"),
        answer="array",
    ),
    ("put", f"{BASE}/compute"): _Call(
        name="computeStop",
        summary="Stop a job.",
        required=(*_SIGNED, "jobId"),
        optional=("documentId", "signature"),
        answer="array",
    ),
    ("delete", f"{BASE}/compute"): _Call(
        name="computeDelete",
        summary="Stop a job and delete everything of it.",
        required=(*_SIGNED, "jobId"),
        optional=("documentId", "signature"),
        answer="array",
    ),
    ("get", f"{BASE}/computeResult"): _Call(
        name="computeResult",
        summary="One file of an ended job; parts of it by Range.",
        required=(*_SIGNED, "jobId", "index"),
        optional=("signature",),
        answer="file",
        statuses=(200, 206, 304, 400, 416, 429),
    ),
    ("get", f"{BASE}/createAuthToken"): _Call(
        name="createAuthToken",
        summary="A token that stands for a signature for a while.",
        required=("address", "expiration", "nonce", "signature"),
    ),
    ("delete", f"{BASE}/deleteAuthToken"): _Call(
        name="deleteAuthToken",
        summary="End a token before its time.",
        required=("address", "token", "nonce", "signature"),
    ),
    ("post", f"{BASE}/fileinfo"): _Call(
        name="fileinfo",
        summary="Whether there are files behind a service.",
        required=("did", "serviceId"),
        answer="array",
    ),
    ("post", f"{BASE}/validateContainer"): _Call(
        name="validateContainer",
        summary="Whether a container's section is complete.",
        required=("entrypoint", "image", "checksum"),
    ),
    ("post", f"{BASE}/freeCompute"): _Call(
        name="freeCompute",
        summary="Start a job, in the newer dialect.",
        required=(*_SIGNED, "environment", "datasets", "algorithm"),
        optional=("signature", "maxJobDuration", "metadata", "additionalViewers", "queueMaxWaitTime"),
        answer="array",
    ),
    ("get", f"{BASE}/computeStreamableLogs"): _Call(
        name="computeStreamableLogs",
        summary="The log of a running job, as it is written.",
        required=(*_SIGNED, "jobId"),
        optional=("signature",),
        answer="file",
        statuses=(200, 400, 404, 429),
    ),
    ("post", f"{BASE}/auth/token"): _Call(
        name="generateAuthToken",
        summary="A token, in the newer dialect.",
        required=("address", "nonce", "signature"),
        optional=("validUntil",),
    ),
    ("post", f"{BASE}/auth/token/invalidate"): _Call(
        name="invalidateAuthToken",
        summary="End a token, in the newer dialect.",
        required=("address", "token", "nonce", "signature"),
    ),
    ("get", "/api/aquarius/assets/ddo/{did}"): _Call(
        name="document", summary="The document of a data set or an algorithm.", statuses=(200, 404, 429)
    ),
}
_WORDS: Mapping[int, str] = {
    200: "Done.",
    206: "A part of the file.",
    304: "The file is as it was.",
    400: "Refused: `errors` names fields, `error` what stands against the request.",
    404: "There is no such thing.",
    416: "The file has no such part.",
    429: "Too many requests, or too many jobs wait; `Retry-After` says when to try again.",
}


def openapi(*, version: str) -> dict[str, Any]:
    """Give the whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for (verb, path), call in _CALLS.items():
        paths.setdefault(path, {})[verb] = _operation(verb, path, call)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Compute API of node-agent",
            "version": version,
            "description": "A chain-free subset of the Ocean Provider compute API.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "AuthToken"},
            }
        },
    }


def _operation(verb: str, path: str, call: _Call) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "responses": {str(status): _response(call, status) for status in call.statuses},
    }
    if "{did}" in path:
        operation["parameters"] = [{"name": "did", "in": "path", "required": True, "schema": _TEXT}]
    elif verb == "post":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _body(call)}},
        }
    elif call.required or call.optional:
        operation["parameters"] = [
            {"name": name, "in": "query", "required": name in call.required, "schema": _FIELDS[name]}
            for name in (*call.required, *call.optional)
        ]
    return operation


def _body(call: _Call) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(call.required),
        "properties": {name: _FIELDS[name] for name in (*call.required, *call.optional)},
    }


def _response(call: _Call, status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _WORDS[status]}
    if status in {200, 206} and call.answer == "file":
        response["content"] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    elif status == 200:  # noqa: PLR2004 - OK
        response["content"] = {"application/json": {"schema": {"type": call.answer}}}
    elif status != 304:  # noqa: PLR2004 - it has no body
        response["content"] = {"application/json": {"schema": {"type": "object"}}}
    return response
