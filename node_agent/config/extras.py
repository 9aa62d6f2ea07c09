"""Kinds of values for what the owner gives algorithms beyond the contract: variables, host names, a share of their logs.

Each kind is a function from what YAML gave to a checked value; ValueError carries the end of a sentence that begins with
the value. Must not know which setting uses it.
"""

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from node_agent.config.values import one_of
from node_agent.domain.contract import PROXY_NAME, is_taken
from node_agent.domain.runlogs import LogSharing

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,126}\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,251}[A-Za-z0-9])?\Z")
_TAKEN_HOSTS: Final = frozenset({PROXY_NAME, "localhost"})


def _variables(given: dict[str, str]) -> dict[str, str]:
    for name, value in given.items():
        if not _VARIABLE.match(name):
            raise ValueError(f"has the name {name!r}: letters, digits and `_`, no digit first, at most 127")
        if is_taken(name):
            raise ValueError(f"sets {name}, which the node or the image sets itself; choose another name")
        if "\0" in value:
            raise ValueError(f"has a null character in {name}")
    return given


def _hosts(given: dict[str, str]) -> dict[str, str]:
    for name, address in given.items():
        if not _HOST.match(name):
            raise ValueError(f"has the name {name!r}, which is no host name")
        if name.lower() in _TAKEN_HOSTS:
            raise ValueError(f"sets {name}, which has a meaning of its own in every container")
        _check_address(name, address)
    return given


def _check_address(name: str, address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise ValueError(f"gives {name} no address; write for example 192.0.2.7") from error


def _off_is_a_word(value: object) -> object:
    # YAML reads the word `off` as false
    return LogSharing.OFF.value if value is False else value


AlgorithmVariables = Annotated[dict[str, str], AfterValidator(_variables)]
AlgorithmHosts = Annotated[dict[str, str], AfterValidator(_hosts)]
# validators of this kind run from the last to the first
SharedLogs = Annotated[LogSharing, one_of(LogSharing), BeforeValidator(_off_is_a_word)]
