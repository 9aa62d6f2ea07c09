"""What the compute API offers, made from the settings: data sets, algorithms, environments.

Owns how settings become what requests are held against, and what the owner is shown of it. The configuration has been
checked before; only the code of an algorithm is read here. Must not know requests or jobs.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from node_agent.compute.objects import Environment
from node_agent.config import Settings
from node_agent.config.compute import AlgorithmSection, EnvironmentSection, OfferedSection
from node_agent.config.offering import did_of_algorithm, did_of_data_set
from node_agent.config.values import duration_text, size_text
from node_agent.domain.assets import (
    EVERYBODY,
    Assets,
    CatalogueAlgorithm,
    DataSet,
    TrustedAlgorithm,
    container_checksum,
    is_did,
)
from node_agent.domain.database import Database
from node_agent.domain.policy import parse_image
from node_agent.errors import ConfigError

DEFAULT_ENVIRONMENT: Final = "default"
MAX_CODE: Final = 16 << 20
"""Bytes an algorithm's code may have: it is a script or a small archive, data belong into a data set."""
_PIECE: Final = 1 << 20


def assets_of(settings: Settings) -> Assets:
    """Give everything that has a DID here; reads the code of algorithms. Raises ConfigError."""
    algorithms = [_algorithm(settings.name, section) for section in settings.compute_api.algorithms]
    return Assets(
        {data_set.did: data_set for data_set in data_sets_of(settings)},
        {algorithm.did: algorithm for algorithm in algorithms},
    )


def data_sets_of(settings: Settings) -> tuple[DataSet, ...]:
    """Give the data sets; nothing but the settings is looked at."""
    databases = {database.label: database for database in settings.databases}
    return tuple(
        _data_set(settings.name, section, databases[section.label])
        for section in settings.compute_api.data_sets
    )


def environments_of(settings: Settings) -> tuple[Environment, ...]:
    """Give the profiles jobs run in; without any there is one as large as the limits."""
    sections = settings.compute_api.environments or (EnvironmentSection(id=DEFAULT_ENVIRONMENT),)
    return tuple(_environment(section, settings) for section in sections)


def doubts_about(assets: Assets) -> Iterator[str]:
    """Say what the owner may have meant otherwise: nothing here is wrong by itself."""
    for data_set in assets.data_sets.values():
        if not (data_set.trusted_algorithms or data_set.trusted_publishers or data_set.raw_algorithms):
            yield f"{data_set.label} trusts no algorithm: no job can use it"
        if data_set.raw_algorithms and not data_set.as_files:
            reason = "only vantage6 algorithms could use it: code of jobs cannot"
            yield f"{data_set.label} lies behind a server, and {reason}"
        for trusted in data_set.trusted_algorithms:
            if trusted.did != EVERYBODY and assets.algorithm(trusted.did) is None:
                yield f"{data_set.label} trusts {trusted.did}, which is no algorithm of the catalogue"


def checksum_of(code: Path) -> str:
    """Hash the code of an algorithm, in hexadecimal. Raises ConfigError."""
    hashed, size = sha256(), 0
    try:
        # not opened when it is a pipe: that would wait for a writer
        if not code.is_file():
            raise ConfigError(
                f"The code {code} of an algorithm is no file.", hint="Correct compute_api.algorithms."
            )
        with code.open("rb") as file:
            while piece := file.read(_PIECE):
                size += len(piece)
                if size > MAX_CODE:
                    raise ConfigError(
                        f"The code {code} of an algorithm is larger than {MAX_CODE >> 20} MiB.",
                        hint="Put what is large into the image or into a data set.",
                    )
                hashed.update(piece)
    except OSError as error:
        raise ConfigError(
            f"The code {code} of an algorithm cannot be read: {error.strerror}.",
            hint="Let the agent's user read it, or correct compute_api.algorithms.",
        ) from error
    return hashed.hexdigest()


def data_set_named(settings: Settings, name: str) -> DataSet:
    """Find a data set by its DID or its label. Raises ConfigError."""
    found = data_sets_of(settings)
    for data_set in found:
        if name in {data_set.did, data_set.label}:
            return data_set
    labels = ", ".join(data_set.label for data_set in found) or "none"
    kind = "no DID" if is_did(name) else "no label"
    raise ConfigError(
        f"{name} is {kind} of a data set that compute_api.data_sets offers (offered: {labels}).",
        hint="`node-agent offer` shows every data set with its DID.",
    )


def _data_set(node: str, section: OfferedSection, database: Database) -> DataSet:
    return DataSet(
        did=did_of_data_set(node, section),
        label=section.label,
        service_id=section.service_id,
        trusted_algorithms=tuple(TrustedAlgorithm(**dict(entry)) for entry in section.trusted_algorithms),
        trusted_publishers=section.trusted_publishers,
        raw_algorithms=section.raw_algorithms,
        share_log=section.share_log,
        consumers=section.consumers,
        denied_consumers=section.denied_consumers,
        as_files=database.path is not None,
    )


def _algorithm(node: str, section: AlgorithmSection) -> CatalogueAlgorithm:
    parsed = parse_image(section.image)
    if parsed is None:
        raise ConfigError(f"{section.image} is no image reference.", hint="Correct compute_api.algorithms.")
    return CatalogueAlgorithm(
        did=did_of_algorithm(node, section),
        owner=section.owner,
        service_id=section.service_id,
        image=parsed.name,
        digest=section.digest,
        entrypoint=section.entrypoint,
        contract=section.contract,
        code=section.code,
        files_checksum="" if section.code is None else checksum_of(section.code),
    )


def _environment(section: EnvironmentSection, settings: Settings) -> Environment:
    limits = settings.limits
    return Environment(
        id=section.id,
        description=section.description,
        cpus=section.cpus or limits.cpus,
        memory=section.memory or limits.memory,
        disk=section.disk or limits.output_size,
        longest=section.max_job_time or limits.run_time,
        max_jobs=section.max_jobs or limits.concurrent_runs,
        keep_results=section.keep_results,
    )


def facts_of_offer(settings: Settings) -> dict[str, Any]:
    """Give everything that is offered, for people and other programs; code that cannot be read is said to be so."""
    compute = settings.compute_api
    return {
        "listen": compute.listen,
        "access": str(compute.access),
        "environments": [_environment_facts(environment) for environment in environments_of(settings)],
        "data_sets": [_data_set_facts(data_set) for data_set in data_sets_of(settings)],
        "algorithms": [_algorithm_facts(settings.name, section) for section in compute.algorithms],
    }


def _environment_facts(environment: Environment) -> dict[str, Any]:
    return {
        "id": environment.id,
        "description": environment.description,
        "cpus": environment.cpus,
        "memory": size_text(environment.memory),
        "disk": size_text(environment.disk),
        "max_jobs": environment.max_jobs,
        "max_job_time": duration_text(int(environment.longest)),
        "keep_results": duration_text(int(environment.keep_results)),
    }


def _data_set_facts(data_set: DataSet) -> dict[str, Any]:
    return {
        "label": data_set.label,
        "did": data_set.did,
        "service_id": data_set.service_id,
        "as_files": data_set.as_files,
        "trusted_algorithms": [trusted.did for trusted in data_set.trusted_algorithms],
        "trusted_publishers": list(data_set.trusted_publishers),
        "raw_algorithms": data_set.raw_algorithms,
        "share_log": data_set.share_log,
    }


def _algorithm_facts(node: str, section: AlgorithmSection) -> dict[str, Any]:
    try:
        files = "" if section.code is None else checksum_of(section.code)
    except ConfigError as error:
        files = error.message
    return {
        "image": section.image,
        "did": did_of_algorithm(node, section),
        "service_id": section.service_id,
        "owner": section.owner,
        "digest": section.digest,
        "entrypoint": section.entrypoint,
        "contract": str(section.contract),
        "files_checksum": files,
        "container_checksum": container_checksum(section.entrypoint, section.digest),
    }
