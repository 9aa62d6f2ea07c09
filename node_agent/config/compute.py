"""The settings of the compute API: where it listens, what it offers, to whom, and in which environments.

Each kind of value is a function from what YAML gave to a checked one. What one part says of another is looked at in
offering.py. Must not know requests or jobs.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from node_agent.config.machine import Kind
from node_agent.config.values import (
    AbsolutePath,
    AsTuple,
    Duration,
    ImageReference,
    NoRepeats,
    PrivatePath,
    Real,
    Section,
    ServerUrl,
    Size,
    Text,
    Whole,
    YesNo,
    machine_of,
    one_of,
)
from node_agent.domain.assets import JobContract, is_did
from node_agent.domain.joboffer import AccessKind
from node_agent.domain.policy import DIGEST, parse_image

MIB, GIB, TIB = 2**20, 2**30, 2**40
DAY = 86_400
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_CHECKSUM: Final = re.compile(r"[0-9a-f]{64}\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,62}\Z")
_LISTEN: Final = re.compile(
    r"(?P<host>[0-9.]{7,15}|localhost|\[[0-9a-fA-F:.]{2,45}\]):(?P<port>[0-9]{1,5})\Z"
)
_LOCALHOST: Final = "localhost"
_LAST_PORT: Final = 65_535
_EVERYBODY: Final = "*"


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
    if not DIGEST.match(text):
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
    if match is None or not 0 < int(match["port"]) <= _LAST_PORT or not _is_address(match["host"]):
        raise ValueError("is not address:port; write for example 127.0.0.1:8030")
    return text


def _is_address(host: str) -> bool:
    try:
        return host == _LOCALHOST or bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _callback(text: str) -> str:
    if text.startswith("http://") and not _stays_here(urlsplit(text).hostname or ""):
        raise ValueError("must begin with https://: who answers decides who may use the data")
    return text


def _code(path: Path, info: ValidationInfo) -> Path:
    kind = machine_of(info).kind(path)
    if kind in {Kind.MISSING, Kind.FOLDER, Kind.HIDDEN}:
        raise ValueError(
            f"is no file that the agent can reach ({kind}); name the one with the algorithm's code"
        )
    return path


def _certificate(path: Path, info: ValidationInfo) -> Path:
    kind = machine_of(info).kind(path)
    if kind in {Kind.MISSING, Kind.FOLDER}:
        raise ValueError(f"is no file ({kind}); name the PEM file with the certificate and its chain")
    return path


def _service(value: object) -> object:
    # clients send the number 0 as often as the text
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def place_of_listener(listen: str) -> tuple[str, int]:
    """Take `address:port` apart; an IPv6 address comes without its brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(listen: str) -> bool:
    """Tell whether only this machine reaches the address."""
    return _stays_here(place_of_listener(listen)[0])


def _stays_here(host: str) -> bool:
    try:
        return host == _LOCALHOST or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Consumer = Annotated[str, AfterValidator(_consumer)]
Consumers = Annotated[tuple[Consumer, ...], AsTuple, NoRepeats]
AssetDid = Annotated[str, AfterValidator(_did)]
TrustedDid = Annotated[str, AfterValidator(_did_or_everybody)]
Digest = Annotated[str, AfterValidator(_image_digest)]
Checksum = Annotated[str, AfterValidator(_checksum)]
ShortName = Annotated[str, AfterValidator(_short_name)]
CallbackUrl = Annotated[ServerUrl, AfterValidator(_callback)]
CodeFile = Annotated[AbsolutePath, AfterValidator(_code)]
CertificateFile = Annotated[AbsolutePath, AfterValidator(_certificate)]
ServiceId = Annotated[str, BeforeValidator(_service), Field(min_length=1, max_length=64)]


class TlsSection(Section):
    """The certificate of the listener."""

    certificate: CertificateFile
    key: PrivatePath


class TrustedSection(Section):
    """An algorithm a data set trusts."""

    did: TrustedDid
    files_checksum: Checksum | None = None
    container_checksum: Checksum | None = None


class OfferedSection(Section):
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


class AlgorithmSection(Section):
    """An algorithm of this node's catalogue."""

    did: AssetDid | None = None
    owner: Annotated[str, AfterValidator(_consumer)]
    service_id: ServiceId = "0"
    image: ImageReference
    digest: Digest
    entrypoint: Annotated[str, Field(max_length=4096)] = ""
    contract: Annotated[JobContract, one_of(JobContract)] = JobContract.OCEAN
    code: CodeFile | None = None

    @field_validator("image")
    @classmethod
    def _has_its_digest_apart(cls, value: str) -> str:
        parsed = parse_image(value)
        if parsed is not None and parsed.digest is not None:
            raise ValueError("has a digest in it; write it into digest, and the name alone here")
        return value

    @field_validator("owner")
    @classmethod
    def _is_somebody(cls, value: str) -> str:
        if value == _EVERYBODY:
            raise ValueError("is not an address: 0x and 40 hexadecimal digits")
        return value


class EnvironmentSection(Section):
    """A profile jobs run in."""

    id: ShortName
    description: Annotated[str, Field(max_length=256)] = ""
    cpus: Annotated[Real, Field(ge=0.01, le=4096)] | None = None
    memory: Annotated[Size, Field(ge=16 * MIB, le=64 * TIB)] | None = None
    disk: Annotated[Size, Field(ge=MIB, le=64 * TIB)] | None = None
    max_jobs: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    max_job_time: Annotated[Duration, Field(ge=1, le=365 * DAY)] | None = None
    keep_results: Annotated[Duration, Field(ge=60, le=365 * DAY)] = 7 * DAY


class ComputeApiSection(Section):
    """The compute API."""

    listen: Annotated[str, AfterValidator(_listen)] | None = None
    tls: TlsSection | None = Field(default=None, validate_default=True)
    access: Annotated[AccessKind, one_of(AccessKind)] = AccessKind.DENY
    addresses: Consumers = ()
    command: AbsolutePath | None = Field(default=None, validate_default=True)
    callback: CallbackUrl | None = Field(default=None, validate_default=True)
    callback_ca_bundle: CertificateFile | None = None
    unsigned_status: YesNo = True
    signed_bodies: YesNo = False
    max_waiting: Annotated[Whole, Field(ge=1, le=100_000)] = 1000
    requests_per_second: Annotated[Real, Field(ge=0.1, le=10_000)] = 50.0
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
