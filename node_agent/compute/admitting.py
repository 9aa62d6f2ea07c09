"""Whether a job may run: the things it names exist, the data sets trust the algorithm, and the owner lets the consumer in.

The order of the checks is that of the specification, so that a refusal names what its clients expect. Must not know how
requests arrive or jobs are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node_agent.compute.access import Access, Question
from node_agent.compute.signatures import Address
from node_agent.compute.wishes import (
    NOTHING_FROM_ELSEWHERE,
    Refused,
    Wish,
    WishedAlgorithm,
    WishedDataSet,
    resource_name,
)
from node_agent.domain.assets import (
    Assets,
    CatalogueAlgorithm,
    DataSet,
    JobContract,
    credential_fault,
    distrust,
)
from node_agent.domain.policy import DIGEST, parse_image

MAX_RAW_CODE = 1 << 20
SHORTEST_RAW_CODE = 11
"""Up to ten characters count as no code, as in the line this API comes from."""
_REFUSED_IN_META = ("url", "remote", "envs")
_REFUSED_IN_CONTAINER = ("dockerfile", "additionalDockerFiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAlgorithm:
    """An algorithm that came with its job."""

    image: str
    digest: str
    entrypoint: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A job that may run."""

    data_sets: tuple[DataSet, ...]
    orders: tuple[str, ...]
    """What stood for the right to use each of them."""
    algorithm: CatalogueAlgorithm | RawAlgorithm


def admit(wish: Wish, assets: Assets, *, consumer: Address, access: Access) -> Admitted:
    """Look everything up and hold it against the owner's word. Raises Refused."""
    algorithm = _catalogued(wish.algorithm, assets) if wish.algorithm.name else None
    found = [
        _usable(wished, at, assets, consumer=consumer, algorithm=algorithm)
        for at, wished in enumerate(wish.data_sets)
    ]
    _check_repeats(found)
    chosen = algorithm or _raw(wish.algorithm)
    _check_contract(wish, found, chosen)
    orders = tuple(
        _ordered(wished, data_set, at, access=access, consumer=consumer, wish=wish)
        for at, (wished, data_set) in enumerate(zip(wish.data_sets, found, strict=True))
    )
    return Admitted(data_sets=tuple(found), orders=orders, algorithm=chosen)


def _catalogued(wished: WishedAlgorithm, assets: Assets) -> CatalogueAlgorithm:
    algorithm = assets.algorithm(wished.name)
    if algorithm is None:
        known = assets.data_set(wished.name) is not None
        raise Refused("algorithm", "not_algo" if known else "did_not_found")
    if wished.service_id != algorithm.service_id:
        raise Refused("algorithm.serviceId", "not_found")
    if algorithm.code is not None and not algorithm.code.is_file():
        raise Refused("algorithm", "file_unavailable")
    return algorithm


def _usable(
    wished: WishedDataSet, at: int, assets: Assets, *, consumer: Address, algorithm: CatalogueAlgorithm | None
) -> DataSet:
    resource = resource_name(at)
    data_set = assets.data_set(wished.name)
    if data_set is None:
        fault = "service_not_access_compute" if assets.algorithm(wished.name) else "did_not_found"
        where = "serviceId" if fault.startswith("service") else "documentId"
        raise Refused(f"{resource}.{where}", fault)
    if wished.service_id != data_set.service_id:
        raise Refused(f"{resource}.serviceId", "not_found")
    if not data_set.as_files and (algorithm is None or algorithm.contract is JobContract.OCEAN):
        raise Refused(f"{resource}.serviceId", "service_not_access_compute")
    code = credential_fault(data_set, consumer)
    if code:
        raise Refused(resource, f"Error: Access to asset {data_set.did} was denied with code: {code}.")
    if algorithm is None:
        if not data_set.raw_algorithms:
            raise Refused(resource, "no_raw_algo_allowed")
        return data_set
    fault = distrust(data_set, algorithm)
    if fault:
        raise Refused(resource, fault)
    return data_set


def _check_repeats(found: list[DataSet]) -> None:
    """Refuse a data set that is there twice: a container has one place for it."""
    dids = [data_set.did for data_set in found]
    for at, did in enumerate(dids):
        if did in dids[:at]:
            raise Refused(f"{resource_name(at)}.documentId", "repeated")


def _raw(wished: WishedAlgorithm) -> RawAlgorithm:
    meta = dict(wished.meta or {})
    code = meta.get("rawcode")
    if any(meta.get(name) for name in _REFUSED_IN_META):
        raise Refused("algorithm", NOTHING_FROM_ELSEWHERE)
    if not isinstance(code, str) or len(code) < SHORTEST_RAW_CODE:
        raise Refused("algorithm", "meta_oneof_url_rawcode_remote")
    if len(code.encode(errors="replace")) > MAX_RAW_CODE:
        raise Refused("algorithm", "rawcode_too_large")
    container = meta.get("container")
    fault = container_fault(container)
    if fault:
        raise Refused("algorithm.container", fault)
    return _with_container(dict(container or {}), code)


def _with_container(container: Mapping[str, Any], code: str) -> RawAlgorithm:
    image, digest = str(container["image"]), str(container["checksum"])
    parsed = parse_image(image)
    if parsed is None or not DIGEST.match(digest):
        raise Refused("algorithm.container", "checksum_prefix")
    return RawAlgorithm(
        image=parsed.name, digest=digest, entrypoint=str(container["entrypoint"])[:4096], code=code
    )


def container_fault(container: object) -> str:
    """Say what is wrong with a container's section, in the API's words; empty when nothing is."""
    section = container if isinstance(container, Mapping) else {}
    values = [section.get(name) for name in ("entrypoint", "image", "checksum")]
    if not all(isinstance(value, str) and value for value in values):
        return "missing_entrypoint_image_checksum"
    if not str(section["checksum"]).startswith("sha256:"):
        return "checksum_prefix"
    if any(section.get(name) for name in _REFUSED_IN_CONTAINER):
        return "dockerfile_not_supported"
    return ""


def _check_contract(wish: Wish, found: list[DataSet], algorithm: CatalogueAlgorithm | RawAlgorithm) -> None:
    """Refuse parameters the algorithm's contract has no place for."""
    if isinstance(algorithm, RawAlgorithm) or algorithm.contract is JobContract.OCEAN:
        return
    method = wish.algorithm.custom.get("method")
    if not isinstance(method, str) or not method:
        raise Refused("algorithm.algocustomdata", "missing_method")
    if not found:
        raise Refused("dataset", "missing")


def _ordered(
    wished: WishedDataSet, data_set: DataSet, at: int, *, access: Access, consumer: Address, wish: Wish
) -> str:
    order = access.right_to(
        Question(
            consumer=consumer,
            data_set=data_set,
            algorithm=wish.algorithm.name or "raw",
            order=wished.order,
            environment=wish.environment,
        )
    )
    if order is None:
        raise Refused(f"{resource_name(at)}.serviceId", "order_invalid")
    return order
