"""Data sets and algorithms as the compute API names them, and which may meet which.

Owns the trust rules of data sets. Empty lists trust nobody, `*` trusts everybody, and where both lists are given both
must hold. Knows nothing of requests, signatures or containers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import NewType

Did = NewType("Did", str)
"""Names a data set or an algorithm: `did:op:` and 64 hexadecimal digits."""

EVERYBODY = "*"
_PREFIX = "did:op:"
_DID = re.compile(r"did:op:[0-9a-f]{64}\Z")


class JobContract(StrEnum):
    """What a job's container finds."""

    OCEAN = "ocean"
    VANTAGE6 = "vantage6"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedAlgorithm:
    """An algorithm a data set trusts, perhaps with one content only."""

    did: str
    files_checksum: str | None = None
    container_checksum: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A database as the compute API offers it."""

    did: Did
    label: str
    """Which configured database it is."""
    service_id: str
    trusted_algorithms: tuple[TrustedAlgorithm, ...] = ()
    trusted_publishers: tuple[str, ...] = ()
    """Addresses in lower case, or `*`."""
    raw_algorithms: bool = False
    """Whether a job may bring its own code."""
    share_log: bool = False
    consumers: tuple[str, ...] | None = None
    """Who may ask at all, addresses in lower case; None is everybody whom the access check lets in."""
    denied_consumers: tuple[str, ...] = ()
    as_files: bool = True
    """Whether it can be shown as files; what lies behind a service can only be handed to a vantage6 algorithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueAlgorithm:
    """An algorithm the owner has put into this node's catalogue."""

    did: Did
    owner: str
    """Who published it, an address in lower case."""
    service_id: str
    image: str
    """Name with registry, without tag and digest."""
    digest: str
    entrypoint: str
    contract: JobContract
    code: Path | None = None
    """A file that is shown to the container as the algorithm; None when everything is in the image."""
    files_checksum: str = ""
    """SHA-256 of the code, in hexadecimal; of no file, empty."""

    @property
    def container_checksum(self) -> str:
        """Give what names the container's section: the hash of its entrypoint and its digest."""
        return container_checksum(self.entrypoint, self.digest)


@dataclass(frozen=True, slots=True)
class Assets:
    """Everything that has a DID here."""

    data_sets: Mapping[Did, DataSet]
    algorithms: Mapping[Did, CatalogueAlgorithm]

    def data_set(self, name: str) -> DataSet | None:
        """Find a data set by its DID, or by the label of its database."""
        if is_did(name):
            return self.data_sets.get(Did(name))
        return next((found for found in self.data_sets.values() if found.label == name), None)

    def algorithm(self, name: str) -> CatalogueAlgorithm | None:
        """Find an algorithm by its DID."""
        return self.algorithms.get(Did(name))


def is_did(text: str) -> bool:
    """Tell whether *text* is a complete DID."""
    return _DID.match(text) is not None


def derived_did(*names: str) -> Did:
    """Make the DID of something that was given none: the same names give the same DID on every start."""
    return Did(_PREFIX + sha256("\0".join(names).encode()).hexdigest())


def short_did(did: str) -> str:
    """Give a DID as containers see it: without its prefix."""
    return did.removeprefix(_PREFIX)


def container_checksum(entrypoint: str, digest: str) -> str:
    """Hash a container's section, so that a data set can trust exactly this one."""
    return sha256((entrypoint + digest).encode()).hexdigest()


def distrust(data_set: DataSet, algorithm: CatalogueAlgorithm) -> str:
    """Say why the data set does not trust the algorithm, in the API's words; empty when it does."""
    if not data_set.trusted_algorithms and not data_set.trusted_publishers:
        return "not_trusted_algo"
    if data_set.trusted_publishers and not _is_listed(algorithm.owner, data_set.trusted_publishers):
        return "not_trusted_algo_publisher"
    return _distrust_of_content(data_set, algorithm) if data_set.trusted_algorithms else ""


def _distrust_of_content(data_set: DataSet, algorithm: CatalogueAlgorithm) -> str:
    meant = [one for one in data_set.trusted_algorithms if one.did in {algorithm.did, EVERYBODY}]
    faults = [_content_fault(trusted, algorithm) for trusted in meant]
    if not faults:
        return "not_trusted_algo"
    return "" if "" in faults else faults[0]


def _content_fault(trusted: TrustedAlgorithm, algorithm: CatalogueAlgorithm) -> str:
    if trusted.files_checksum and trusted.files_checksum.lower() != algorithm.files_checksum:
        return "algorithm_file_checksum_mismatch"
    if trusted.container_checksum and trusted.container_checksum.lower() != algorithm.container_checksum:
        return "algorithm_container_checksum_mismatch"
    return ""


DISABLED, NOT_ALLOWED, DENIED = 1, 3, 4


def credential_fault(data_set: DataSet, consumer: str) -> int:
    """Give the code of the rule that keeps *consumer* out; 0 when none does."""
    if _is_listed(consumer, data_set.denied_consumers):
        return DENIED
    if data_set.consumers is not None and not _is_listed(consumer, data_set.consumers):
        return NOT_ALLOWED
    return 0


def _is_listed(address: str, listed: Sequence[str]) -> bool:
    return EVERYBODY in listed or address in listed
