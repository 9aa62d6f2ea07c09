"""The compute API described as an OpenAPI document: served beside it, and kept in the documentation.

A table of routes with their fields and answers, written out. Must not know how anything is done.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from node_agent.compute.routes import DOCUMENTS, ENDPOINTS, UNLISTED
from node_agent.compute.schemas import FIELDS, SCHEMAS
from node_agent.compute.signedbody import HEADER

_JSON = "application/json"
_BYTES = "application/octet-stream"
_ALWAYS = (400, 408, 414, 429, 503)
_WITH_BODY = (411, 413)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    summary: str
    answer: Any
    """The shape of the answer; the type of a file."""
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    is_signed: bool = False
    statuses: tuple[int, ...] = (200,)
    """Besides those that every call may have."""


def _one(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _many(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _one(name)}


_OF_A_JOB = ("consumerAddress", "nonce", "jobId")
_CALLS: Mapping[str, _Call] = {
    "root": _Call(summary="What is served where.", answer=_one("Root")),
    "openapi": _Call(summary="This document.", answer={"type": "object"}),
    "document": _Call(
        summary="The document of a data set or an algorithm.", answer=_one("Document"), statuses=(200, 404)
    ),
    "nonce": _Call(
        summary="The last nonce an address used; 0 when it never did.",
        answer=_one("Nonce"),
        required=("userAddress",),
    ),
    "computeEnvironments": _Call(
        summary="The environments jobs run in.", answer=_many("Environment"), optional=("chainId",)
    ),
    "initializeCompute": _Call(
        summary="Whether a start would be let in, and what to name then as the right to each data set.",
        answer=_one("Quote"),
        required=("consumerAddress", "datasets", "algorithm"),
        optional=("compute", "environment"),
    ),
    "computeStart": _Call(
        summary="Start a job.",
        answer=_many("Job"),
        required=("consumerAddress", "nonce", "dataset", "algorithm"),
        optional=("signature", "environment", "additionalDatasets", "maxJobDuration", "output"),
        is_signed=True,
    ),
    "computeStatus": _Call(
        summary="How a job is, or all jobs of who signs; without a signature, a little of one job.",
        answer={"type": "array", "items": {"anyOf": [_one("Job"), _one("ReducedJob")]}},
        required=("consumerAddress",),
        optional=("jobId", "documentId", "nonce", "signature"),
        is_signed=True,
    ),
    "computeStop": _Call(
        summary="Stop a job.",
        answer=_many("Job"),
        required=_OF_A_JOB,
        optional=("documentId", "signature"),
        is_signed=True,
    ),
    "computeDelete": _Call(
        summary="Stop a job and delete everything of it.",
        answer=_many("Job"),
        required=_OF_A_JOB,
        optional=("documentId", "signature"),
        is_signed=True,
    ),
    "computeResult": _Call(
        summary="One file of an ended job; parts of it by Range.",
        answer=_BYTES,
        required=(*_OF_A_JOB, "index"),
        optional=("signature",),
        is_signed=True,
        statuses=(200, 206, 304, 416),
    ),
    "computeStreamableLogs": _Call(
        summary="The log of a running job, as it is written.",
        answer=_BYTES,
        required=_OF_A_JOB,
        optional=("signature",),
        is_signed=True,
        statuses=(200, 404),
    ),
    "freeCompute": _Call(
        summary="Start a job, in the newer dialect.",
        answer=_many("Job"),
        required=("consumerAddress", "nonce", "environment", "datasets", "algorithm"),
        optional=(
            "signature",
            "maxJobDuration",
            "resources",
            "metadata",
            "additionalViewers",
            "queueMaxWaitTime",
        ),
        is_signed=True,
    ),
    "createAuthToken": _Call(
        summary="A token that stands for a signature for a while.",
        answer=_one("Token"),
        required=("address", "expiration", "nonce", "signature"),
    ),
    "deleteAuthToken": _Call(
        summary="End a token before its time.",
        answer=_one("Done"),
        required=("address", "token", "nonce", "signature"),
    ),
    "generateAuthToken": _Call(
        summary="A token, in the newer dialect.",
        answer=_one("Token"),
        required=("address", "nonce", "signature"),
        optional=("validUntil",),
    ),
    "invalidateAuthToken": _Call(
        summary="End a token, in the newer dialect.",
        answer=_one("Done"),
        required=("address", "token", "nonce", "signature"),
    ),
    "fileinfo": _Call(
        summary="Whether there are files behind a service.",
        answer=_many("FileOnOffer"),
        required=("did", "serviceId"),
    ),
    "validateContainer": _Call(
        summary="Whether a container's section is complete.",
        answer=_one("Container"),
        required=("entrypoint", "image", "checksum"),
        optional=("tag", "consumerParameters"),
    ),
}
_WORDS: Mapping[int, str] = {
    200: "Done.",
    206: "A part of the file.",
    304: "The file is as it was.",
    400: "Refused: `errors` names fields, `error` what stands against the request.",
    404: "There is no such thing.",
    408: "The request did not arrive in time.",
    411: "The length of the body is not given.",
    413: "The body is far too large.",
    414: "The address is too long.",
    416: "The file has no such part.",
    429: "Too many requests or long answers, or too many jobs wait; `Retry-After` says when to try again.",
    503: "The node cannot do this now.",
}
_PROBLEMS: Mapping[int, Any] = {
    400: {"anyOf": [_one("BadFields"), _one("Refusal")]},
    404: _one("ProblemInContext"),
    503: _one("ProblemInContext"),
}
_RETRY = {"Retry-After": {"description": "In so many seconds.", "schema": {"type": "integer", "minimum": 1}}}
_ABOUT = (
    "A chain-free subset of the Ocean Provider compute API. Fields stand in the query or, where there is none, in a"
    " JSON body, with every verb. How requests are signed and what becomes of jobs is described in"
    " docs/compute-api.md."
)
_WAYS_TO_SIGN: Mapping[str, Any] = {
    "token": {"type": "apiKey", "in": "header", "name": "AuthToken"},
    "authorization": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "A token."},
    "signedBody": {"type": "apiKey", "in": "header", "name": HEADER},
}


def openapi(*, version: str) -> dict[str, Any]:
    """Give the whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for name, (verb, path) in {**UNLISTED, **ENDPOINTS}.items():
        shown = path.replace("<", "{").replace(">", "}")
        paths.setdefault(shown, {})[verb.lower()] = _operation(name, verb, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Compute API of node-agent", "version": version, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS), "securitySchemes": dict(_WAYS_TO_SIGN)},
    }


def _operation(name: str, verb: str, path: str) -> dict[str, Any]:
    call = _CALLS[name]
    operation: dict[str, Any] = {"operationId": name, "summary": call.summary}
    if call.is_signed:
        # the first of them is the signature, which is a field
        operation["security"] = [{}, *({way: []} for way in _WAYS_TO_SIGN)]
    if path == DOCUMENTS:
        operation["parameters"] = [{"name": "did", "in": "path", "required": True, "schema": FIELDS["did"]}]
    elif verb == "POST":
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": _body(call)}}}
    elif call.required or call.optional:
        operation["parameters"] = list(_parameters(call))
    statuses = sorted({*call.statuses, *_ALWAYS, *(_WITH_BODY if verb == "POST" else ())})
    operation["responses"] = {str(status): _response(call, status) for status in statuses}
    return operation


def _parameters(call: _Call) -> Iterator[dict[str, Any]]:
    for name in (*call.required, *call.optional):
        yield {"name": name, "in": "query", "required": name in call.required, "schema": FIELDS[name]}


def _body(call: _Call) -> dict[str, Any]:
    properties = {name: FIELDS[name] for name in (*call.required, *call.optional)}
    return {"type": "object", "required": list(call.required), "properties": properties}


def _response(call: _Call, status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _WORDS[status]}
    if status >= 400:  # noqa: PLR2004 - refusals
        response["content"] = {_JSON: {"schema": _PROBLEMS.get(status, _one("Problem"))}}
    elif call.answer == _BYTES:
        # what has not changed is not sent again
        response |= {} if status == 304 else {"content": {_BYTES: {"schema": {}}}}  # noqa: PLR2004
    else:
        response["content"] = {_JSON: {"schema": call.answer}}
    if status in {429, 503}:
        response["headers"] = _RETRY
    return response
