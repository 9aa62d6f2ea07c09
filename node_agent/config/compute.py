"""The settings of the compute API: where it listens, what it offers, to whom, and in which environments.

Each kind of value is a function from what YAML gave to a checked one. Must not know requests or jobs.
"""

import re
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from node_agent.config.values import (
    AbsolutePath,
    AsTuple,
    Duration,
    NoRepeats,
    PrivatePath,
    Real,
    Size,
    Text,
    Whole,
    YesNo,
    one_of,
)
from node_agent.domain.assets import JobContract, is_did
from node_agent.domain.joboffer import AccessKind

MIB, GIB, TIB = 2**20, 2**30, 2**40
DAY = 86_400
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_CHECKSUM: Final = re.compile(r"[0-9a-f]{64}\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,62}\Z")
_LISTEN: Final = re.compile(r"(?P<host>[0-9.]{7,15}|localhost|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})\Z")
_LOOPBACK: Final = ("127.", "localhost", "[::1]")
_LAST_PORT: Final = 65_535
_EVERYBODY: Final = "*"


class _Section(BaseModel):
    # the library's own texts would show what was given
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


def _consumer(text: str) -> str:
    if text != _EVERYBODY and not _ADDRESS.match(text):
        raise ValueError("is not an address: 0x and 40 hexadecimal digits, or * for everybody")
    return text.lower()


def _did(text: str) -> str:
    if not is_did(text):
        raise ValueError("is not a DID: did:op: and 64 hexadecimal digits in lower case")
    return text


def _did_or_everybody(text: str) -> str:
    return text if text == _EVERYBODY else _did(text)


def _image_digest(text: str) -> str:
    if not _DIGEST.match(text):
        raise ValueError("is not a digest: sha256: and 64 hexadecimal digits")
    return text


def _checksum(text: str) -> str:
    if not _CHECKSUM.match(text.lower()):
        raise ValueError("is not a checksum: 64 hexadecimal digits")
    return text.lower()


def _short_name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError("is not a name: letters, digits, `.`, `_` and `-`, at most 63")
    return text


def _listen(text: str) -> str:
    match = _LISTEN.match(text)
    if match is None or not 0 < int(match["port"]) <= _LAST_PORT:
        raise ValueError("is not address:port; write for example 127.0.0.1:8030")
    return text


def _service(value: object) -> object:
    # clients send the number 0 as often as the text
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_loopback(listen: str) -> bool:
    """Tell whether only this machine reaches the address."""
    return listen.startswith(_LOOPBACK)


Consumer = Annotated[str, AfterValidator(_consumer)]
Consumers = Annotated[tuple[Consumer, ...], AsTuple, NoRepeats]
AssetDid = Annotated[str, AfterValidator(_did)]
TrustedDid = Annotated[str, AfterValidator(_did_or_everybody)]
Digest = Annotated[str, AfterValidator(_image_digest)]
Checksum = Annotated[str, AfterValidator(_checksum)]
ShortName = Annotated[str, AfterValidator(_short_name)]
ServiceId = Annotated[str, BeforeValidator(_service), Field(min_length=1, max_length=64)]


class TlsSection(_Section):
    """The certificate of the listener."""

    certificate: AbsolutePath
    key: PrivatePath


class TrustedSection(_Section):
    """An algorithm a data set trusts."""

    did: TrustedDid
    files_checksum: Checksum | None = None
    container_checksum: Checksum | None = None


class OfferedSection(_Section):
    """A database the compute API offers."""

    label: Text
    did: AssetDid | None = None
    service_id: ServiceId = "0"
    consumers: Consumers | None = None
    denied_consumers: Consumers = ()
    trusted_algorithms: Annotated[tuple[TrustedSection, ...], AsTuple] = ()
    trusted_publishers: Consumers = ()
    raw_algorithms: YesNo = False
    share_log: YesNo = False


class AlgorithmSection(_Section):
    """An algorithm of this node's catalogue."""

    did: AssetDid | None = None
    owner: Annotated[str, AfterValidator(_consumer)]
    service_id: ServiceId = "0"
    image: Text
    digest: Digest
    entrypoint: Annotated[str, Field(max_length=4096)] = ""
    contract: Annotated[JobContract, one_of(JobContract)] = JobContract.OCEAN
    code: AbsolutePath | None = None

    @field_validator("owner")
    @classmethod
    def _is_somebody(cls, value: str) -> str:
        if value == _EVERYBODY:
            raise ValueError("is not an address: 0x and 40 hexadecimal digits")
        return value


class EnvironmentSection(_Section):
    """A profile jobs run in."""

    id: ShortName
    description: Annotated[str, Field(max_length=256)] = ""
    cpus: Annotated[Real, Field(ge=0.01, le=4096)] | None = None
    memory: Annotated[Size, Field(ge=16 * MIB, le=64 * TIB)] | None = None
    disk: Annotated[Size, Field(ge=MIB, le=64 * TIB)] | None = None
    max_jobs: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    max_job_time: Annotated[Duration, Field(ge=1, le=365 * DAY)] | None = None
    keep_results: Annotated[Duration, Field(ge=60, le=365 * DAY)] = 7 * DAY


class ComputeApiSection(_Section):
    """The compute API."""

    listen: Annotated[str, AfterValidator(_listen)] | None = None
    tls: TlsSection | None = Field(default=None, validate_default=True)
    access: Annotated[AccessKind, one_of(AccessKind)] = AccessKind.DENY
    addresses: Consumers = ()
    command: AbsolutePath | None = None
    callback: Text | None = None
    unsigned_status: YesNo = True
    signed_bodies: YesNo = False
    max_waiting: Annotated[Whole, Field(ge=1, le=100_000)] = 1000
    requests_per_second: Annotated[Real, Field(ge=0.1, le=10_000)] = 20.0
    environments: Annotated[tuple[EnvironmentSection, ...], AsTuple] = ()
    data_sets: Annotated[tuple[OfferedSection, ...], AsTuple] = ()
    algorithms: Annotated[tuple[AlgorithmSection, ...], AsTuple] = ()

    @field_validator("tls")
    @classmethod
    def _is_there_when_needed(cls, value: Any, info: ValidationInfo) -> Any:
        listen = info.data.get("listen")
        if value is None and listen is not None and not is_loopback(listen):
            raise ValueError(
                "is missing; an address that others reach needs a certificate (or listen on 127.0.0.1)"
            )
        return value

    @field_validator("command", "callback")
    @classmethod
    def _is_meant(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("access")
        needed = {"command": AccessKind.COMMAND, "callback": AccessKind.CALLBACK}[str(info.field_name)]
        if value is None and kind is needed:
            raise ValueError(f"is missing; compute_api.access: {kind} asks it")
        return value

    @field_validator("environments")
    @classmethod
    def _differ(cls, value: tuple[EnvironmentSection, ...]) -> tuple[EnvironmentSection, ...]:
        if len({environment.id for environment in value}) < len(value):
            raise ValueError("has two entries of the same id")
        return value
