"""The documents that clients look data sets and algorithms up in, made from the configuration.

They say what is offered and on which terms, and nothing of what lies in the data: no file, no size, no place.
"""

from collections.abc import Mapping
from typing import Any

from node_agent.compute.signatures import Address, shown_address
from node_agent.domain.assets import Assets, CatalogueAlgorithm, DataSet

_CONTEXT = "https://w3id.org/did/v1"
_VERSION = "4.1.0"
_NO_TOKEN = "0x" + "0" * 40
_EPOCH = "1970-01-01T00:00:00Z"


def document(assets: Assets, did: str, *, base: str, own_address: Address) -> dict[str, Any] | None:
    """Describe what has this DID; None when nothing has."""
    data_set = assets.data_set(did)
    if data_set is not None and data_set.did == did:
        return _described(did, _of_data_set(data_set, base), owner=own_address)
    algorithm = assets.algorithm(did)
    if algorithm is not None:
        return _described(did, _of_algorithm(algorithm, base), owner=Address(algorithm.owner))
    return None


def file_list(assets: Assets, did: str, service_id: str) -> list[dict[str, Any]] | None:
    """Say that there are files behind a service, without saying how large; None when there is no such service."""
    found = assets.data_set(did) or assets.algorithm(did)
    if found is None or found.service_id != service_id:
        return None
    return [{"index": 0, "valid": True, "contentType": "application/octet-stream", "contentLength": ""}]


def _described(did: str, parts: Mapping[str, Any], *, owner: Address) -> dict[str, Any]:
    return {
        "@context": [_CONTEXT],
        "id": did,
        "version": _VERSION,
        "chainId": 0,
        "nftAddress": _NO_TOKEN,
        "metadata": parts["metadata"],
        "services": parts["services"],
        "credentials": {"allow": [], "deny": []},
        # There is no chain behind this; readers in job images refuse documents that lack any of it.
        "nft": {
            "address": _NO_TOKEN,
            "name": "",
            "symbol": "",
            "state": 0,
            "tokenURI": "",
            "owner": shown_address(owner),
            "created": _EPOCH,
        },
        "datatokens": [],
        "event": {"tx": "", "block": 0, "from": _NO_TOKEN, "contract": _NO_TOKEN, "datetime": _EPOCH},
        "stats": {"allocated": 0, "orders": 0, "price": {"value": 0}},
    }


def _of_data_set(data_set: DataSet, base: str) -> dict[str, Any]:
    compute = {
        "allowRawAlgorithm": data_set.raw_algorithms,
        "allowNetworkAccess": False,
        "publisherTrustedAlgorithms": [
            {
                "did": trusted.did,
                "filesChecksum": trusted.files_checksum or "",
                "containerSectionChecksum": trusted.container_checksum or "",
            }
            for trusted in data_set.trusted_algorithms
        ],
        "publisherTrustedAlgorithmPublishers": list(data_set.trusted_publishers),
    }
    return {
        "metadata": _metadata("dataset", data_set.label),
        "services": [{**_service(data_set.service_id, "compute", base), "compute": compute}],
    }


def _of_algorithm(algorithm: CatalogueAlgorithm, base: str) -> dict[str, Any]:
    container = {
        "image": algorithm.image,
        "tag": "",
        "checksum": algorithm.digest,
        "entrypoint": algorithm.entrypoint,
    }
    described = {"language": "", "version": "", "container": container, "consumerParameters": []}
    return {
        "metadata": {**_metadata("algorithm", algorithm.image), "algorithm": described},
        "services": [_service(algorithm.service_id, "access", base)],
    }


def _metadata(kind: str, name: str) -> dict[str, Any]:
    return {
        "type": kind,
        "name": name,
        "description": name,
        "author": "",
        "license": "",
        "created": _EPOCH,
        "updated": _EPOCH,
    }


def _service(service_id: str, kind: str, base: str) -> dict[str, Any]:
    return {
        "id": service_id,
        "type": kind,
        "files": "",
        "name": kind,
        "description": "",
        "datatokenAddress": _NO_TOKEN,
        "serviceEndpoint": base,
        "timeout": 0,
    }
