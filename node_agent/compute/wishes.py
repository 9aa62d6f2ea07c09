"""What a consumer wants run: a request's fields taken apart, in both dialects, before anything is looked up.

Missing and misshapen fields are refused here. Whether the named things exist and may meet is for admitting.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from node_agent.compute.fields import BadFields, Fields, as_list, as_object, required
from node_agent.compute.signatures import parse_address

NOTHING_FROM_ELSEWHERE = "url_remote_envs_not_supported"
NO_PAYMENTS = "payments not supported; use freeCompute"
MAX_DATA_SETS = 32
MAX_USER_FIELDS = 64 << 10
MAX_METADATA = 1024
MAX_VIEWERS = 32
LONGEST_JOB_SECONDS = 30 * 86_400
MAX_RESOURCES = 16


SPECIFIED_FIELDS = (
    "consumerAddress",
    "nonce",
    "dataset.documentId",
    "dataset.serviceId",
    "dataset.transferTxId",
)
NEWER_FIELDS = ("consumerAddress", "nonce", "environment")


class Refused(Exception):
    """The request is well-formed but goes no further: *resource* and *message* in the API's words."""

    def __init__(self, resource: str, message: str) -> None:
        super().__init__(f"{resource}: {message}" if resource else message)
        self.resource = resource
        self.message = message

    @property
    def body(self) -> dict[str, Any]:
        """Give the answer's body."""
        return {"error": {self.resource: self.message} if self.resource else self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class WishedDataSet:
    """One data set a job asks for."""

    name: str
    """Its DID, or the label of its database."""
    service_id: str
    order: str = ""
    """What stands for the right to use it; empty in the newer dialect."""
    user_data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WishedAlgorithm:
    """The algorithm a job asks for: one of the catalogue, or its own."""

    name: str = ""
    service_id: str = ""
    meta: Mapping[str, Any] | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)
    """What the algorithm reads as its parameters (`algocustomdata`)."""
    user_data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A job as it was asked for."""

    data_sets: tuple[WishedDataSet, ...]
    algorithm: WishedAlgorithm
    environment: str = ""
    longest: int | None = None
    """Seconds the consumer wants at most."""
    newer: bool = False
    """Asked in the newer dialect."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    viewers: tuple[str, ...] = ()
    valid_until: int | None = None
    """Until when a quote was asked for, in seconds since the epoch; only of dry runs."""
    queue_patience: int | None = None
    """Seconds the consumer would wait for a free place; 0 refuses to wait."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """How much of `cpu`, `ram` and `disk` was asked for; a job gets what its environment gives."""


def specified_wish(fields: Fields) -> Wish:
    """Read a start request of the specification. Raises BadFields, Refused."""
    fields.demand(*SPECIFIED_FIELDS)
    more = as_list(fields.raw("additionalDatasets"))
    if more is None or not all(isinstance(entry, dict) for entry in more):
        raise Refused("additional_input", "invalid")
    _check_output(fields)
    further = (Fields(entry, inside=f"{resource_name(at)}.") for at, entry in enumerate(more, start=1))
    entries = [fields.nested("dataset"), *further]
    if len(entries) > MAX_DATA_SETS:
        raise Refused("additional_input", "invalid")
    return Wish(
        data_sets=tuple(_data_set(entry, at) for at, entry in enumerate(entries)),
        algorithm=_algorithm(fields, needs_order=True),
        environment=fields.text("environment"),
        longest=_longest(fields),
    )


def newer_wish(fields: Fields) -> Wish:
    """Read a start request of the newer dialect. Raises BadFields, Refused."""
    fields.demand(*NEWER_FIELDS)
    for name in ("output", "outputBucketId", "encryptedDockerRegistryAuth"):
        if fields.raw(name):
            raise Refused(name, "not_supported")
    return Wish(
        data_sets=_newer_data_sets(fields),
        algorithm=_algorithm(fields, needs_order=False),
        environment=fields.text("environment"),
        longest=_longest(fields),
        newer=True,
        metadata=_bounded(fields, "metadata", MAX_METADATA),
        viewers=_viewers(fields),
        queue_patience=fields.whole("queueMaxWaitTime"),
        resources=_resources(fields),
    )


def dry_wish(fields: Fields) -> Wish:
    """Read a request that asks whether a start would be let in, of either dialect. Raises BadFields, Refused."""
    newer = "compute" not in fields and "environment" in fields
    if fields.raw("payment"):
        raise Refused("", NO_PAYMENTS)
    if not newer:
        fields.demand("datasets", "compute.env", "compute.validUntil")
    return Wish(
        data_sets=_newer_data_sets(fields),
        algorithm=_algorithm(fields, needs_order=False),
        environment=fields.text("environment" if newer else "compute.env"),
        newer=newer,
        valid_until=fields.whole("compute.validUntil"),
    )


def resource_name(at: int) -> str:
    """Name the data set number *at* as refusals do."""
    return f"datasets[{at}]" if at else "dataset"


def _data_set(entry: Fields, at: int) -> WishedDataSet:
    resource = resource_name(at)
    for name in ("documentId", "transferTxId", "serviceId"):
        if entry.raw(name) is None:
            raise Refused(f"{resource}.{name}", "missing")
    return WishedDataSet(
        name=entry.text("documentId"),
        service_id=entry.text("serviceId"),
        order=entry.text("transferTxId"),
        user_data=_bounded(entry, "userdata", MAX_USER_FIELDS),
    )


def _newer_data_sets(fields: Fields) -> tuple[WishedDataSet, ...]:
    entries = fields.entries("datasets")
    if not entries:
        # a data set's owner says what may run: without one, nobody has
        raise BadFields({"datasets": required("datasets")})
    if len(entries) > MAX_DATA_SETS:
        raise BadFields({"datasets": f"The datasets must be at most {MAX_DATA_SETS}."})
    return tuple(_newer_data_set(entry, at) for at, entry in enumerate(entries))


def _newer_data_set(entry: Fields, at: int) -> WishedDataSet:
    resource = resource_name(at)
    if entry.raw("fileObject") is not None or entry.raw("documentId") is None:
        # a file somewhere else: the data of this node are the point
        raise Refused(f"{resource}.documentId", "missing")
    if entry.raw("serviceId") is None:
        raise Refused(f"{resource}.serviceId", "missing")
    return WishedDataSet(
        name=entry.text("documentId"),
        service_id=entry.text("serviceId"),
        order=entry.text("transferTxId"),
        user_data=_bounded(entry, "userdata", MAX_USER_FIELDS),
    )


def _algorithm(fields: Fields, *, needs_order: bool) -> WishedAlgorithm:
    algorithm = fields.nested("algorithm")
    has_name, has_meta = algorithm.raw("documentId") is not None, bool(algorithm.raw("meta"))
    if not has_name and not has_meta:
        raise Refused("algorithm", "missing_meta_documentId")
    if has_name and has_meta:
        raise Refused("algorithm", "either_meta_or_documentId")
    if any(algorithm.raw(name) for name in ("envs", "fileObject")):
        raise Refused("algorithm", NOTHING_FROM_ELSEWHERE)
    custom = _bounded(algorithm, "algocustomdata", MAX_USER_FIELDS)
    user_data = _bounded(algorithm, "userdata", MAX_USER_FIELDS)
    if has_meta:
        return WishedAlgorithm(meta=dict(algorithm.nested("meta").tree), custom=custom, user_data=user_data)
    if algorithm.raw("serviceId") is None:
        raise Refused("algorithm.serviceId", "missing")
    if needs_order and algorithm.raw("transferTxId") is None:
        raise BadFields({"algorithm.transferTxId": required("algorithm.transferTxId")})
    return WishedAlgorithm(
        name=algorithm.text("documentId"),
        service_id=algorithm.text("serviceId"),
        custom=custom,
        user_data=user_data,
    )


def _check_output(fields: Fields) -> None:
    """Refuse an output that is no object; what it says is not used: results stay here."""
    if "output" in fields and as_object(fields.raw("output")) is None:
        raise Refused("output", "invalid")


def _longest(fields: Fields) -> int | None:
    found = fields.whole("maxJobDuration", most=LONGEST_JOB_SECONDS)
    if found == 0:
        raise BadFields({"maxJobDuration": "The maxJobDuration must be at least 1 second."})
    return found


def _bounded(fields: Fields, name: str, limit: int) -> dict[str, Any]:
    tree = dict(fields.nested(name).tree)
    if len(json.dumps(tree)) > limit:
        raise fields.fault(name, f"must have at most {limit} characters as JSON.")
    return tree


def _viewers(fields: Fields) -> tuple[str, ...]:
    found = as_list(fields.raw("additionalViewers"))
    viewers = [parse_address(entry) for entry in found or []]
    if found is None or len(viewers) > MAX_VIEWERS or None in viewers:
        raise BadFields(
            {"additionalViewers": f"The additionalViewers must be at most {MAX_VIEWERS} addresses."}
        )
    return tuple(viewer for viewer in viewers if viewer is not None)


def _resources(fields: Fields) -> dict[str, float]:
    entries = fields.entries("resources")
    amounts = {entry.text("id", limit=64): entry.raw("amount") for entry in entries}
    if len(entries) > MAX_RESOURCES or not all(_is_amount(amount) for amount in amounts.values()):
        raise BadFields({"resources": "Each of the resources must be an object with an id and an amount."})
    return amounts


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
