"""Every setting there is: its name, kind, default and bounds, with one sentence each.

Owns the vocabulary of the configuration file. Must not know how the file is read or how faults are worded.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from node_agent.config.compute import ComputeApiSection, EnvironmentSection
from node_agent.config.extras import AlgorithmHosts, AlgorithmVariables, SharedLogs
from node_agent.config.machine import Kind
from node_agent.config.openings import (
    AccountName,
    ContainerName,
    EgressPlace,
    HostAndPort,
    HostKey,
    HostName,
    PrivateFile,
    ServiceName,
)
from node_agent.config.values import (
    AbsolutePath,
    AsTuple,
    Capability,
    Duration,
    EngineAddress,
    Ids,
    ImageGlob,
    ImagePattern,
    ImageReference,
    NoRepeats,
    Percent,
    PrivatePath,
    Real,
    SecretFile,
    SecretText,
    Section,
    ServerUrl,
    Size,
    StorePattern,
    Subnet,
    Text,
    UserAndGroup,
    Who,
    Whole,
    WordPattern,
    YesNo,
    duration_text,
    machine_of,
    one_of,
    parse_duration,
    parse_percent,
    parse_size,
    size_text,
)
from node_agent.domain.container import PullPolicy
from node_agent.domain.contract import PROXY_NAME
from node_agent.domain.database import FILE_TYPES, PATH_TYPES, Database, DatabaseType
from node_agent.domain.policy import Combine
from node_agent.domain.runlogs import LogSharing
from node_agent.domain.secret import Secret
from node_agent.domain.service import place_of

MIB, GIB, TIB = 2**20, 2**30, 2**40
DAY = 86_400
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}\Z")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")
_FINGERPRINT = re.compile(r"(?:[0-9a-f]{4}-){7}[0-9a-f]{4}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,252}(:[0-9]{1,5})?\Z")


def _an_existing_file(value: Any, info: ValidationInfo, advice: str) -> Any:
    if value is not None and machine_of(info).kind(value) in {Kind.MISSING, Kind.FOLDER}:
        raise ValueError(f"is no file; {advice}")
    return value


class ServerSection(Section):
    """The coordinating server."""

    url: ServerUrl
    api_key: SecretText | None = None
    api_key_file: SecretFile | None = Field(default=None, validate_default=True)
    ca_bundle: AbsolutePath | None = None

    @field_validator("api_key_file", mode="before")
    @classmethod
    def _one_key(cls, value: Any, info: ValidationInfo) -> Any:
        given = info.data.get("api_key", ...)
        if value is not None and given is not None:
            raise ValueError("stands beside api_key; keep one of the two")
        if value is None and given is None:
            raise ValueError("is missing; give the node's API key as api_key_file (or api_key)")
        return value

    @field_validator("ca_bundle")
    @classmethod
    def _is_file(cls, value: Any, info: ValidationInfo) -> Any:
        return _an_existing_file(value, info, "name the PEM file with the server's certificate authority")


class DatabaseSection(Section):
    """One source of data."""

    label: str
    type: Annotated[DatabaseType, one_of(DatabaseType)]
    uri: Text
    env: dict[str, str] = Field({})

    @field_validator("label")
    @classmethod
    def _is_identifier(cls, value: str) -> str:
        if not _LABEL.match(value):
            raise ValueError("is not an identifier: letters, digits and `_`, no digit first, at most 63")
        return value

    @field_validator("uri")
    @classmethod
    def _is_there(cls, value: str, info: ValidationInfo) -> str:
        if {"label", "type"} <= info.data.keys():
            _check_place(Database(label=info.data["label"], type=info.data["type"], uri=value), info)
        return value

    @field_validator("env")
    @classmethod
    def _has_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.match(name):
                raise ValueError("has a name that is no identifier: letters, digits and `_`, no digit first")
        if len({name.upper() for name in value}) < len(value):
            raise ValueError("has two names that differ only in case; algorithms see them in capitals")
        return value


def _check_place(database: Database, info: ValidationInfo) -> None:
    path = database.path
    if path is None:
        if "://" not in database.uri and database.type is not DatabaseType.OTHER:
            raise ValueError(
                f"is no service address; a database of type {database.type} needs scheme://host/…"
            )
        _check_service(database)
        return
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"must be an absolute path without `..` for a database of type {database.type}")
    if database.target in {"/mnt/data", "/mnt/tmp"}:
        raise ValueError(f"would hide {database.target} from algorithms; choose another label")
    _check_kind(database, machine_of(info).kind(path))


def _check_service(database: Database) -> None:
    place = place_of(database)
    if place is not None and place.host.lower() == PROXY_NAME:
        raise ValueError(f"names {PROXY_NAME}, which is our own; give the server another name")


def _check_kind(database: Database, kind: Kind) -> None:
    if kind is Kind.MISSING:
        raise ValueError(f"does not exist: {database.path}; correct the path or bring the data there")
    if kind is Kind.HIDDEN:
        raise ValueError(
            f"cannot be reached: {database.path}; the agent may not enter one of the folders above"
        )
    if database.type in FILE_TYPES and kind is Kind.FOLDER:
        raise ValueError(
            f"is a folder: {database.path}; type {database.type} needs a file (or use type folder)"
        )
    if database.type in PATH_TYPES - FILE_TYPES and kind is Kind.FILE:
        raise ValueError(f"is a file: {database.path}; type folder needs a folder")


class RestrictSection(Section):
    """What the images one pattern means may be asked."""

    image: ImageGlob
    methods: Annotated[tuple[WordPattern, ...] | None, AsTuple, NoRepeats] = None
    databases: Annotated[tuple[WordPattern, ...] | None, AsTuple, NoRepeats] = Field(
        default=None, validate_default=True
    )

    @field_validator("databases")
    @classmethod
    def _restricts_something(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("methods", ...) is None:
            raise ValueError("is missing; a restriction needs methods, databases, or both")
        return value


class PolicySection(Section):
    """What may run here."""

    algorithms: Annotated[tuple[ImagePattern, ...] | None, AsTuple, NoRepeats] = None
    algorithm_stores: Annotated[tuple[StorePattern, ...] | None, AsTuple, NoRepeats] = None
    combine: Annotated[Combine, one_of(Combine)] = Combine.BOTH
    users: Annotated[tuple[Who, ...] | None, AsTuple, NoRepeats] = None
    organizations: Annotated[tuple[Who, ...] | None, AsTuple, NoRepeats] = None
    own_organization_only: YesNo = False
    basics_algorithm: YesNo = True
    restrict: Annotated[tuple[RestrictSection, ...], AsTuple] = ()
    gpu: Annotated[tuple[ImagePattern, ...], AsTuple] = ()


class EncryptionSection(Section):
    """Keys for encrypted collaborations."""

    private_key: PrivatePath | None = None
    fingerprints: dict[str, str] = Field(default={})

    @field_validator("fingerprints", mode="before")
    @classmethod
    def _are_fingerprints(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for number, fingerprint in value.items():
            if not str(number).isdecimal() or isinstance(number, bool):
                raise ValueError(f"names {number!r}; organizations are named by their number at the server")
            if not isinstance(fingerprint, str) or _FINGERPRINT.fullmatch(fingerprint) is None:
                raise ValueError(
                    f"has no fingerprint for organization {number}, as `node-agent key show` prints one"
                )
        return {str(number): fingerprint for number, fingerprint in value.items()}


class RegistrySection(Section):
    """A login to an image registry."""

    host: str
    username: Text
    password: SecretText | None = None
    password_file: SecretFile | None = Field(default=None, validate_default=True)

    @field_validator("host")
    @classmethod
    def _is_host(cls, value: str) -> str:
        if not _HOST.match(value):
            raise ValueError("is not a host name with optional port; write for example registry.example.org")
        return value

    @field_validator("password_file", mode="before")
    @classmethod
    def _one_password(cls, value: Any, info: ValidationInfo) -> Any:
        given = info.data.get("password", ...)
        if value is not None and given is not None:
            raise ValueError("stands beside password; keep one of the two")
        if value is None and given is None:
            raise ValueError("is missing; give the password as password_file (or password)")
        return value

    @property
    def secret(self) -> Secret:
        """Give the password, wherever it came from."""
        return self.password or self.password_file or Secret("")


class ImagesSection(Section):
    """Where algorithm images come from."""

    pull: Annotated[PullPolicy, one_of(PullPolicy)] = PullPolicy.ALWAYS
    registries: Annotated[tuple[RegistrySection, ...], AsTuple] = ()
    docker_config: AbsolutePath | None = None
    max_size: Annotated[Size, Field(ge=MIB, le=64 * TIB)] = 20 * GIB
    keep: Annotated[Duration, Field(ge=0, le=3650 * DAY)] = 30 * DAY
    disk_pressure: Annotated[Percent, Field(ge=1, le=100)] = 85

    @field_validator("docker_config")
    @classmethod
    def _is_file(cls, value: Any, info: ValidationInfo) -> Any:
        return _an_existing_file(value, info, "name Docker's config.json, or leave it out")


class LimitsSection(Section):
    """What runs may use."""

    concurrent_runs: Annotated[Whole, Field(ge=1, le=1000)] = 4
    cpus: Annotated[Real, Field(ge=0.01, le=4096)] = 2.0
    memory: Annotated[Size, Field(ge=16 * MIB, le=64 * TIB)] = 4 * GIB
    total_memory: Size | None = None
    runs_per_person: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    pids: Annotated[Whole, Field(ge=16, le=4_194_304)] = 512
    open_files: Annotated[Whole, Field(ge=64, le=1_048_576)] = 4096
    tmp_size: Annotated[Size, Field(ge=MIB, le=64 * TIB)] = GIB
    output_size: Annotated[Size, Field(ge=1024, le=64 * TIB)] = GIB
    log_size: Annotated[Size, Field(ge=4096, le=GIB)] = MIB
    min_free_disk: Annotated[Size, Field(ge=0, le=64 * TIB)] = GIB
    pull_time: Annotated[Duration, Field(ge=1, le=365 * DAY)] = 3600
    start_time: Annotated[Duration, Field(ge=1, le=365 * DAY)] = 300
    run_time: Annotated[Duration, Field(ge=1, le=365 * DAY)] = DAY
    accept_unenforced: YesNo = False

    @field_validator("total_memory")
    @classmethod
    def _fits_a_run(cls, value: int | None, info: ValidationInfo) -> int | None:
        memory = info.data.get("memory")
        if value is not None and memory is not None and value < memory:
            raise ValueError(
                f"is less than limits.memory ({size_text(memory)}): no run could ever begin; "
                "raise it, or lower limits.memory"
            )
        return value


class KeepSection(Section):
    """How long stays what is over."""

    runs: Annotated[Duration, Field(ge=3600, le=3650 * DAY)] = 90 * DAY
    folders: Annotated[Duration, Field(ge=0, le=365 * DAY)] = 0


class NetworkSection(Section):
    """The isolated network of the runs."""

    proxy_port: Annotated[Whole, Field(ge=1, le=65_535)] = 7480
    subnet: Subnet | None = None
    accept_open_host: YesNo = False
    probe_image: ImageReference | None = None
    kept_ready: Annotated[Whole, Field(ge=0, le=64)] = 5


class EgressSection(Section):
    """What algorithms may reach outside."""

    allow: Annotated[tuple[EgressPlace, ...], AsTuple] = ()
    port: Annotated[Whole, Field(ge=1024, le=65_535)] = 7482


class TunnelSection(Section):
    """The way to a server that only another machine reaches."""

    host: HostName
    port: Annotated[Whole, Field(ge=1, le=65_535)] = 22
    user: AccountName
    key_file: PrivateFile
    host_key: HostKey
    target: HostAndPort


class ServiceSection(Section):
    """What a host name in a database's URI means."""

    name: ServiceName
    container: ContainerName | None = None
    tunnel: TunnelSection | None = Field(default=None, validate_default=True)

    @field_validator("tunnel")
    @classmethod
    def _one_meaning(cls, value: Any, info: ValidationInfo) -> Any:
        if "container" in info.data and (value is None) == (info.data["container"] is None):
            raise ValueError("or container: exactly one of the two says what the name means")
        return value


class RelaxSection(Section):
    """What is given back to the images one pattern names."""

    image: ImageGlob
    image_user: YesNo = False
    writable_root: YesNo = False
    capabilities: Annotated[tuple[Capability, ...], AsTuple] = ()


class HardeningSection(Section):
    """Exceptions from the hardening of containers."""

    relax: Annotated[tuple[RelaxSection, ...], AsTuple] = ()


class ShareSection(Section):
    """What the server and researchers may know of this node."""

    node_facts: YesNo = True
    columns: YesNo = True
    policy: YesNo = True
    algorithm_logs: SharedLogs = LogSharing.FULL
    live_logs: YesNo = False

    @field_validator("live_logs")
    @classmethod
    def _only_what_is_shared(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - the library's form
        if value and info.data.get("algorithm_logs", LogSharing.FULL) is not LogSharing.FULL:
            raise ValueError("needs algorithm_logs: full; what was sent live cannot be taken back")
        return value


class Level(StrEnum):
    """From which weight on a line is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(StrEnum):
    """How a line is written."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LoggingSection(Section):
    """The agent's own log."""

    level: Annotated[Level, one_of(Level)] = Level.INFO
    format: Annotated[Format, one_of(Format)] = Format.AUTO


class StatusSection(Section):
    """Status page and metrics."""

    listen: None = None


class Shape(Section):
    """The whole file."""

    name: str
    server: ServerSection
    state_dir: AbsolutePath
    databases: Annotated[tuple[DatabaseSection, ...], AsTuple] = ()
    policy: PolicySection = PolicySection()
    encryption: EncryptionSection = EncryptionSection()
    images: ImagesSection = ImagesSection()
    limits: LimitsSection = LimitsSection()
    keep: KeepSection = KeepSection()
    network: NetworkSection = NetworkSection()
    egress: EgressSection = EgressSection()
    services: Annotated[tuple[ServiceSection, ...], AsTuple] = ()
    hardening: HardeningSection = HardeningSection()
    container_user: UserAndGroup | None = None
    container_users: Ids | None = None
    algorithm_env: AlgorithmVariables = Field({})
    algorithm_hosts: AlgorithmHosts = Field({})
    run_context_file: YesNo = False
    share: ShareSection = ShareSection()
    docker_host: EngineAddress | None = None
    logging: LoggingSection = LoggingSection()
    status: StatusSection = StatusSection()
    compute_api: ComputeApiSection = ComputeApiSection()

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _NAME.match(value):
            raise ValueError("must be small letters, digits and `-`, a letter or digit first, at most 41")
        return value

    @field_validator("container_users")
    @classmethod
    def _stands_alone(cls, value: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        if value is not None and info.data.get("container_user") is not None:
            raise ValueError(
                "gives each run a user of its own, container_user one to all; keep one of the two"
            )
        return value

    @field_validator("egress")
    @classmethod
    def _has_a_port_of_its_own(cls, value: EgressSection, info: ValidationInfo) -> EgressSection:
        network = info.data.get("network")
        if value.allow and network is not None and value.port == network.proxy_port:
            raise ValueError("has the port of network.proxy_port; choose another egress.port")
        return value

    @field_validator("services")
    @classmethod
    def _differ(cls, value: tuple[ServiceSection, ...]) -> tuple[ServiceSection, ...]:
        if len({service.name for service in value}) < len(value):
            raise ValueError("has two entries of the same name; a host name has one meaning")
        return value


_PRIVATE = frozenset({"api_key", "password", "url", "uri", "docker_host", "env", "algorithm_env"})


def is_private(loc: Sequence[int | str]) -> bool:
    """Tell whether a secret may stand at this place: its value is never shown."""
    return not _PRIVATE.isdisjoint(loc)


def fields_at(loc: Sequence[int | str]) -> list[str]:
    """Give the settings that may stand in the block at *loc*."""
    section: type[BaseModel] = Shape
    for key in loc:
        if isinstance(key, str):
            section = _section_of(section.model_fields[key].annotation) or section
    return list(section.model_fields)


def setting_paths(section: type[BaseModel] = Shape) -> list[str]:
    """Give the path of every setting, as `databases[].label`."""
    return list(_paths(section))


def _paths(section: type[BaseModel]) -> Iterator[str]:
    for key, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None:
            yield key
            continue
        joint = f"{key}[]." if get_origin(field.annotation) is tuple else f"{key}."
        yield from (joint + path for path in _paths(inner))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def in_words(loc: Sequence[int | str], bound: Any) -> str:
    """Write a bound the way the setting itself is written: `16MiB`, `1s`, `4`."""
    field = _with_units().get(str(loc[-1]))
    if field is None or not isinstance(bound, int):
        return str(bound)
    readers = [getattr(note, "func", None) for note in notes_of(field)]
    for reader, written in _WRITTEN.items():
        if reader in readers:
            return written(bound)
    return str(bound)


_WRITTEN: Mapping[Callable[[object], object], Callable[[int], str]] = {
    parse_duration: duration_text,
    parse_size: size_text,
    parse_percent: "{}%".format,
}
"""How a value is written that each of these reads."""


def _with_units() -> dict[str, FieldInfo]:
    """Give the settings that may be written with a unit, by the last part of their path."""
    sections: tuple[type[BaseModel], ...] = (LimitsSection, KeepSection, ImagesSection, EnvironmentSection)
    # the same name means the same kind of value everywhere; limits are the last to say how
    return {name: field for section in reversed(sections) for name, field in section.model_fields.items()}


def notes_of(field: FieldInfo) -> tuple[Any, ...]:
    """Give what is noted about a setting's values, also where it may be left out (`Size | None`)."""
    kinds = get_args(field.annotation)
    return (*field.metadata, *(note for kind in kinds for note in getattr(kind, "__metadata__", ())))
