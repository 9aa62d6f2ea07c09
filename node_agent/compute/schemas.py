"""The shapes of what the compute API takes and gives, as JSON schemas: the vocabulary of its OpenAPI document.

Tables and nothing else. That answers really have these shapes is held against them by tests.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from node_agent.compute.fields import MAX_NONCE, MAX_TEXT
from node_agent.compute.wishes import LONGEST_JOB_SECONDS, MAX_DATA_SETS, MAX_RESOURCES, MAX_VIEWERS
from node_agent.domain.jobstatus import WORDS

Schema = Mapping[str, Any]


def _told(schema: Schema, meaning: str) -> Schema:
    return {**schema, "description": meaning}


def _object(required: Sequence[str], properties: Mapping[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": dict(properties), **more}


def _closed(properties: Mapping[str, Schema]) -> Schema:
    """Describe an object of which every field is always there and no other is."""
    return _object(list(properties), properties, additionalProperties=False)


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Schema = {"type": "string", "maxLength": MAX_TEXT}
_NAME: Schema = {**_TEXT, "minLength": 1}
_ADDRESS: Schema = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}
_JOB_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_DIGITS = "^(0|[1-9][0-9]{0,15})$"
_SECONDS_TEXT: Schema = {"type": "string", "pattern": "^[0-9]+$"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_AMOUNT: Schema = {"type": "number", "minimum": 0}
_ANYTHING: Schema = {"type": "object"}
_ANY_OBJECT: Schema = {
    "oneOf": [{"type": "object"}, {"type": "string", "contentMediaType": "application/json"}]
}


def _whole(most: int = MAX_NONCE) -> Schema:
    return {
        "oneOf": [
            {"type": "integer", "minimum": 0, "maximum": most},
            {"type": "string", "pattern": _DIGITS},
        ]
    }


_SERVICE: Schema = {"oneOf": [_NAME, _COUNT]}

FIELDS: Mapping[str, Schema] = {
    "consumerAddress": _told(_ADDRESS, "Who asks."),
    "userAddress": _told(_ADDRESS, "Whose nonce is asked for."),
    "address": _told(_ADDRESS, "Whose token it is."),
    "nonce": _told(
        _whole(), "Higher than every one this address used before; used up by every signed request."
    ),
    "signature": _told(
        {"type": "string", "pattern": "^(0x)?[0-9a-fA-F]{130}$"},
        "Of the fields that the operation signs; a token or a signed body may stand in its place.",
    ),
    "jobId": _told(_JOB_ID, "The job's number, as the start gave it."),
    "documentId": _told(
        _NAME, "A data set of the job, by its DID; needed under a signature of the specification's dialect."
    ),
    "index": _told(_whole(), "Which of the job's results."),
    "chainId": _told(_TEXT, "Ignored: there is no chain."),
    "environment": _told(_TEXT, "The environment the job runs in; the first where it is left out."),
    "dataset": _ref("DataSet"),
    "additionalDatasets": _told(
        _list(_ref("DataSet"), maxItems=MAX_DATA_SETS - 1), "Further data sets, or the list as a JSON text."
    ),
    "datasets": _list(_ref("NewerDataSet"), minItems=1, maxItems=MAX_DATA_SETS),
    "algorithm": _ref("Algorithm"),
    "compute": _told(
        _object(("env", "validUntil"), {"env": _TEXT, "validUntil": _whole()}),
        "Environment and end of the quote that is asked for; this dialect's place for them.",
    ),
    "maxJobDuration": _told(
        _whole(LONGEST_JOB_SECONDS), "Seconds the job may run; never more than the environment allows."
    ),
    "resources": _told(
        _list(_ref("Resource"), maxItems=MAX_RESOURCES),
        "Refused when it is more than the environment gives; a job gets what its environment gives.",
    ),
    "metadata": _told(_ANY_OBJECT, "Shown with the job; at most 1024 characters as JSON."),
    "additionalViewers": _told(
        _list(_ADDRESS, maxItems=MAX_VIEWERS), "Who else may fetch results and follow the log."
    ),
    "queueMaxWaitTime": _told(_whole(), "Seconds the job may wait for a free place; 0 refuses to wait."),
    "output": _told(_ANY_OBJECT, "Ignored: results stay on this node until they are fetched."),
    "expiration": _told(_whole(), "When the token ends, in seconds since the epoch; cut to 30 days."),
    "validUntil": _told(_whole(), "When the token ends, in seconds or milliseconds since the epoch."),
    "token": _NAME,
    "did": _told(_NAME, "A data set or an algorithm."),
    "serviceId": _SERVICE,
    "entrypoint": _NAME,
    "image": _NAME,
    "tag": _TEXT,
    "checksum": _told(_NAME, "`sha256:` and the digest of the image."),
    "consumerParameters": {},
}
"""Every field of every request."""

_USER_DATA = _told(_ANY_OBJECT, "Kept with the job and shown to the algorithm; never part of an address.")
_REQUESTS: Mapping[str, Schema] = {
    "DataSet": _object(
        ("documentId", "serviceId", "transferTxId"),
        {
            "documentId": _told(_NAME, "Its DID, or the label of its database."),
            "serviceId": _SERVICE,
            "transferTxId": _told(_NAME, "What stands for the right to use it: a grant, or anything."),
            "userdata": _USER_DATA,
        },
    ),
    "NewerDataSet": _object(
        ("documentId", "serviceId"),
        {"documentId": _NAME, "serviceId": _SERVICE, "transferTxId": _NAME, "userdata": _USER_DATA},
    ),
    "Algorithm": _object(
        (),
        {
            "documentId": _told(_NAME, "Its DID in this node's catalogue; either this or `meta`."),
            "serviceId": _SERVICE,
            "transferTxId": _NAME,
            "meta": {
                "oneOf": [_ref("RawAlgorithm"), {"type": "string", "contentMediaType": "application/json"}]
            },
            "algocustomdata": _told(
                _ANY_OBJECT,
                "Parameters; `method`, `args` and `kwargs` for algorithms of the vantage6 contract.",
            ),
            "userdata": _USER_DATA,
        },
    ),
    "RawAlgorithm": _object(
        ("rawcode", "container"),
        {
            "rawcode": {"type": "string", "minLength": 11},
            "language": _TEXT,
            "version": _TEXT,
            "format": _TEXT,
            "container": _ref("Container"),
        },
    ),
    "Container": _object(
        ("entrypoint", "image", "checksum"),
        {name: FIELDS[name] for name in ("entrypoint", "image", "tag", "checksum", "consumerParameters")},
    ),
    "Resource": _object(("id", "amount"), {"id": _NAME, "amount": _AMOUNT}),
}

_STATUS: Schema = {
    "type": "integer",
    "enum": sorted(WORDS),
    "description": "; ".join(f"{number}: {words}" for number, words in sorted(WORDS.items())),
}
_LITTLE: Mapping[str, Schema] = {
    "owner": _ADDRESS,
    "jobId": _JOB_ID,
    "documentId": _or_null(_TEXT),
    "dateCreated": _told(_SECONDS_TEXT, "Seconds since the epoch, as a text."),
    "dateFinished": _told(_or_null(_SECONDS_TEXT), "Set once, when the job has ended in whatever way."),
    "status": _STATUS,
    "statusText": {"type": "string"},
    "stopreq": _told({"enum": [0, 1, 2]}, "1: stopped by its owner; 2: its time was over."),
    "removed": _told({"enum": [0, 1]}, "1: what it left was deleted."),
    "environment": {"type": "string"},
}
_LINK: Schema = {"type": "string", "format": "uri-reference"}
_ANSWERS: Mapping[str, Schema] = {
    "ReducedJob": _closed(_LITTLE),
    "Job": _closed(
        {
            **_LITTLE,
            "agreementId": _told({"type": "string"}, "What stood for the right to the first data set."),
            "algorithmLogUrl": _told(_LINK, "Relative; fetching it needs a signature of its own."),
            "resultsUrls": _list(_LINK),
            "resultsDid": {"const": ""},
            "results": _list(_ref("ResultFile")),
            "algoDID": _told({"type": "string"}, "`raw` for code that came with the job."),
            "inputDID": _list({"type": "string"}),
            "terminationDetails": _closed(
                {"exitCode": _or_null({"type": "integer"}), "OOMKilled": {"type": "boolean"}}
            ),
            "maxJobDuration": _AMOUNT,
            "queueMaxWaitTime": _or_null(_COUNT),
            "resources": _list(_closed({"id": _NAME, "amount": _AMOUNT})),
            "metadata": _ANYTHING,
            "algoStartTimestamp": _or_null(_SECONDS_TEXT),
            "reason": _told({"type": "string"}, "In words why it ended so; empty when all went well."),
        }
    ),
    "ResultFile": _closed(
        {
            "filename": {"type": "string"},
            "filesize": _COUNT,
            "type": {"enum": ["output", "algorithmLog"]},
            "index": _COUNT,
        }
    ),
    "ResourceOffer": _closed(
        {"id": _NAME, "type": _NAME, "total": _AMOUNT, "min": _AMOUNT, "max": _AMOUNT, "inUse": _AMOUNT}
    ),
    "Whoever": _closed({"addresses": _list({"type": "string"}), "accessLists": _list(_ANYTHING)}),
    "Environment": _closed(
        {
            "id": {"type": "string"},
            "desc": {"type": "string"},
            "description": {"type": "string"},
            "cpuNumber": _AMOUNT,
            "nCPU": _AMOUNT,
            "cpuType": {"type": "string"},
            "gpuNumber": _COUNT,
            "nGPU": _COUNT,
            "gpuType": {"type": "string"},
            "ramGB": _AMOUNT,
            "diskGB": _AMOUNT,
            "priceMin": _told({"const": 0}, "Free."),
            "feeToken": {"const": ""},
            "currentJobs": _COUNT,
            "maxJobs": _COUNT,
            "consumerAddress": _told(_ADDRESS, "This node."),
            "storageExpiry": _told(_COUNT, "Seconds results are kept."),
            "minJobDuration": _COUNT,
            "maxJobDuration": _told(_COUNT, "Seconds a job may run."),
            "lastSeen": _SECONDS_TEXT,
            "platform": _closed({"architecture": {"type": "string"}, "os": {"type": "string"}}),
            "runningJobs": _COUNT,
            "runningfreeJobs": _COUNT,
            "queuedJobs": _COUNT,
            "queuedFreeJobs": _COUNT,
            "queMaxWaitTime": _COUNT,
            "queMaxWaitTimeFree": _COUNT,
            "runMaxWaitTime": _COUNT,
            "runMaxWaitTimeFree": _COUNT,
            "enableNetwork": {"const": False},
            "access": _ref("Whoever"),
            "resources": _list(_ref("ResourceOffer")),
            "fees": _ANYTHING,
            "free": _closed(
                {
                    "maxJobDuration": _COUNT,
                    "minJobDuration": _COUNT,
                    "maxJobs": _COUNT,
                    "storageExpiry": _COUNT,
                    "resources": _list(_ref("ResourceOffer")),
                    "access": _ref("Whoever"),
                    "allowImageBuild": {"const": False},
                }
            ),
        }
    ),
    "Root": _closed(
        {
            "software": {"type": "string"},
            "version": {"type": "string"},
            "chainIds": _list({"type": "integer"}, maxItems=0),
            "providerAddress": _ADDRESS,
            "providerAddresses": {"type": "object", "additionalProperties": _ADDRESS},
            "serviceEndpoints": _told(
                {
                    "type": "object",
                    "additionalProperties": _list({"type": "string"}, minItems=2, maxItems=2),
                },
                "Verb and path of every route, by name.",
            ),
        }
    ),
    "Nonce": _closed({"nonce": _COUNT}),
    "Token": _closed({"token": {"type": "string"}}),
    "Done": _closed({"success": {"enum": [True, "Token has been deactivated."]}}),
    "Order": _closed({"validOrder": _told({"type": "string"}, "To be sent as `transferTxId`.")}),
    "Quote": _object(
        ("datasets",),
        {"datasets": _list(_ref("Order")), "algorithm": _ref("Order")},
        additionalProperties=False,
    ),
    "FileOnOffer": _closed(
        {
            "index": _COUNT,
            "valid": {"type": "boolean"},
            "contentType": {"type": "string"},
            "contentLength": _told({"const": ""}, "Not told."),
        }
    ),
    "Document": _object(
        ("id", "metadata", "services"),
        {"id": {"type": "string"}, "metadata": _ANYTHING, "services": _list(_ANYTHING)},
    ),
    "BadFields": _closed(
        {
            "errors": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": _list({"type": "string"}, minItems=1),
            },
            "message": {"const": "Validation error"},
            "success": {"const": False},
        }
    ),
    "Refusal": _closed(
        {
            "error": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "minProperties": 1,
                        "maxProperties": 1,
                        "additionalProperties": {"type": "string"},
                    },
                ]
            }
        }
    ),
    "Problem": _closed({"error": {"type": "string"}}),
    "ProblemInContext": _told(
        _object(
            ("error",),
            {"error": {"type": "string"}, "context": {"type": "object", "maxProperties": 0}},
            additionalProperties=False,
        ),
        "The context is always empty: nothing of a request is repeated.",
    ),
}
SCHEMAS: Mapping[str, Schema] = {**_REQUESTS, **_ANSWERS}
"""Every shape that has a name."""
