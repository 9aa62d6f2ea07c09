"""Kinds of values for what the owner opens: places outside, and how servers of databases are reached.

Each kind is a function from what YAML gave to a checked value; ValueError carries the end of a sentence that begins with
the value. Must not know which setting uses it.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, ValidationInfo

from node_agent.config.values import AbsolutePath, machine_of
from node_agent.domain.contract import PROXY_NAME
from node_agent.domain.egress import parse_rule
from node_agent.domain.service import HOST_ITSELF

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.\-]{0,61}[a-z0-9])?\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,251}[A-Za-z0-9])?\Z")
_CONTAINER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")
_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\-]{0,63}\Z")
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?\Z")
_TAKEN: Final = frozenset({PROXY_NAME, *HOST_ITSELF})
_LAST_PORT: Final = 65_535


def _egress(text: str) -> str:
    parse_rule(text)
    return text


def _service_name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError("is not a host name: small letters, digits, `-` and `.`, at most 63")
    if text in _TAKEN:
        raise ValueError("has a meaning of its own; choose another name and use it in the databases' URIs")
    return text


def _container(text: str) -> str:
    if not _CONTAINER.match(text):
        raise ValueError("is not the name of a container")
    return text


def _host(text: str) -> str:
    if not _HOST.match(text):
        raise ValueError("is not a host name or an IPv4 address")
    return text


def _account(text: str) -> str:
    if not _ACCOUNT.match(text):
        raise ValueError("is not the name of an account")
    return text


def _target(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if (
        not colon
        or not _HOST.match(host)
        or not re.match(r"[0-9]{1,5}\Z", port)
        or not 1 <= int(port) <= _LAST_PORT
    ):
        raise ValueError("is not host:port; write for example db.internal:5432, as the far machine sees it")
    return text


def _host_key(text: str) -> str:
    if _FINGERPRINT.match(text):
        return text
    words = text.split()[:2]
    if len(words) != 2 or not _names_itself(*words):  # noqa: PLR2004 - type and key
        raise ValueError(
            "is not a host key; write it as in known_hosts without the host (ssh-ed25519 AAAA…), "
            "or its fingerprint as SHA256:…"
        )
    return " ".join(words)


def _names_itself(kind: str, content: str) -> bool:
    """Tell whether the key's content begins with its type, as every real one does."""
    try:
        blob = base64.b64decode(content, validate=True)
    except binascii.Error:
        return False
    length = int.from_bytes(blob[:4])
    return blob[4 : 4 + length] == kind.encode() and len(blob) > 4 + length


def _private(path: Path, info: ValidationInfo) -> Path:
    machine_of(info).read_secret(path)
    return path


EgressPlace = Annotated[str, AfterValidator(_egress)]
ServiceName = Annotated[str, AfterValidator(_service_name)]
ContainerName = Annotated[str, AfterValidator(_container)]
HostName = Annotated[str, AfterValidator(_host)]
AccountName = Annotated[str, AfterValidator(_account)]
HostAndPort = Annotated[str, AfterValidator(_target)]
HostKey = Annotated[str, AfterValidator(_host_key)]
PrivateFile = Annotated[AbsolutePath, AfterValidator(_private)]
"""A file with a secret that another program reads: checked like our own secrets, and not kept."""
