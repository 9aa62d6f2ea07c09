"""Kinds of values a setting may have: sizes, durations, image patterns, addresses, secrets.

Each kind is a function from what YAML gave to a checked value; ValueError carries the end of a sentence that
begins with the value. Must not know which setting uses it.
"""

import ipaddress
import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from node_agent.config.document import FromEnvironment
from node_agent.config.globs import (
    image_glob,
    image_pattern,
    no_regex,
    no_repeats,
    store_pattern,
    who,
    word_pattern,
)
from node_agent.config.machine import Machine
from node_agent.domain.policy import parse_image
from node_agent.domain.secret import Secret


class Section(BaseModel):
    """A part of the file: every key is known, of its kind, and stays as it was read."""

    # the library's own texts would show what was given, and that may be a secret
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)\s?(?P<unit>[kKMGT]i?B|B)\Z")
_UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("kMGT", start=1)},
    "KB": 1000,
    "KiB": 1024,
}
_DURATION = re.compile(
    r"(?:(?P<d>[0-9]{1,5})d)?(?:(?P<h>[0-9]{1,6})h)?(?:(?P<m>[0-9]{1,8})m)?(?:(?P<s>[0-9]{1,9})s)?\Z"
)
_PERCENT = re.compile(r"(?P<number>[0-9]{1,3})\s?%\Z")
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_USER = re.compile(r"(?P<uid>[0-9]{1,10}):(?P<gid>[0-9]{1,10})\Z")
_LARGEST_ID = 2**32 - 2
_IDS = re.compile(r"(?P<first>[0-9]{1,10})-(?P<last>[0-9]{1,10})\Z")
_LARGEST_CONTAINER_ID = 2**31 - 1
_FEWEST_IDS = 256
CAPABILITIES = frozenset(
    """
    AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
    DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD
    NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYS_ADMIN SYS_BOOT SYS_CHROOT
    SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM
    """.split()  # noqa: SIM905 - a list would take forty lines
)


def parse_size(value: object) -> object:
    """Read `512MiB`, `4GiB`, `1GB` as bytes."""
    if not isinstance(value, str):
        return _refuse_bare_number(value, "a size needs a unit; write for example 512MiB, 4GiB or 1GB")
    match = _SIZE.match(value)
    if match is None:
        raise ValueError("is not a size; write for example 512MiB, 4GiB or 1GB")
    return int(float(match["number"]) * _UNITS[match["unit"]])


def size_text(size: int) -> str:
    """Write bytes in the largest binary unit that fits without remainder."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{size}B"


def parse_duration(value: object) -> object:
    """Read `90s`, `15m`, `24h`, `1h30m` as seconds."""
    if not isinstance(value, str):
        return _refuse_bare_number(value, "a duration needs a unit; write for example 90s, 15m or 24h")
    match = _DURATION.match(value)
    if match is None or not value:
        raise ValueError("is not a duration; write for example 90s, 15m or 24h")
    return sum(int(match[unit] or 0) * seconds for unit, seconds in _SECONDS.items())


def duration_text(seconds: int) -> str:
    """Write seconds in the largest unit that fits without remainder."""
    for unit, length in _SECONDS.items():
        if seconds and seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def parse_percent(value: object) -> object:
    """Read `85%` as 85."""
    if not isinstance(value, str):
        return _refuse_bare_number(value, "a share needs the sign %; write for example 85%")
    match = _PERCENT.match(value)
    if match is None:
        raise ValueError("is not a share; write for example 85%")
    return int(match["number"])


def _refuse_bare_number(value: object, text: str) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"has no unit: {text}")  # noqa: TRY004 - pydantic wants ValueError
    return value


def parse_number(value: object) -> object:
    """Read a number or a truth value out of an environment variable; leave everything else alone."""
    if not isinstance(value, FromEnvironment):
        return value
    words = {"true": True, "false": False}
    if value.lower() in words:
        return words[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _absolute(value: object) -> object:
    if not isinstance(value, str):
        return value
    path = Path(value)
    if not path.is_absolute() or "\0" in value or ".." in path.parts:
        raise ValueError("must be an absolute path without `..`")
    return path


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with https:// (or http:// inside a closed network)")
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError("is not a URL") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password; the node logs in with its API key")
    if not named or parts.query or parts.fragment or re.search(r"[\s\\]", text):
        raise ValueError("is not the address of an API; write for example https://server.example.org/api")
    return text.rstrip("/")


def _image(text: str) -> str:
    if parse_image(text) is None:
        raise ValueError("is not an image reference; write for example registry.example.org/tools/probe:1")
    return text


def _secret(value: object) -> object:
    if isinstance(value, str) and value:
        return Secret(str(value))
    raise ValueError("must be text that is not empty; put it in quotes")


def _secret_file(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        raise ValueError("must be the path of a file")  # noqa: TRY004 - pydantic wants ValueError
    machine = machine_of(info)
    return machine.read_secret(_secret_path(value, machine))


def _private_path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be the path of a file")
    return _secret_path(value, machine_of(info))


def _secret_path(text: str, machine: Machine) -> Path:
    path = Path(text)
    if path.is_absolute():
        return path
    folder = machine.environment.get("CREDENTIALS_DIRECTORY")
    if ".." in path.parts or not folder:
        raise ValueError(
            "must be an absolute path, or the name of a systemd credential (only under a service that has it)"
        )
    return Path(folder) / path


def _user(value: object) -> object:
    match = _USER.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be "uid:gid" with two numbers in quotes, for example "64198:64198"')
    uid, gid = int(match["uid"]), int(match["gid"])
    if not 0 < uid <= _LARGEST_ID or not 0 < gid <= _LARGEST_ID:
        raise ValueError("is not possible: algorithms never run as root (0), and ids end at 4294967294")
    return uid, gid


def _ids(value: object) -> object:
    match = _IDS.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            'must be "first-last" with two numbers in quotes, for example "2000300000-2000365535"'
        )
    first, last = int(match["first"]), int(match["last"])
    if not 0 < first <= last <= _LARGEST_CONTAINER_ID:
        raise ValueError("is not possible: it begins above root (0), and an engine's ids end at 2147483647")
    if last - first < _FEWEST_IDS - 1:
        raise ValueError(
            f"must have at least {_FEWEST_IDS} ids: each run takes one until nothing of it is left"
        )
    return first, last


def _subnet(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError("is not an IPv4 network; write for example 10.213.7.0/24") from error
    if not 16 <= network.prefixlen <= 28 or not network.is_private:  # noqa: PLR2004 - the text says the numbers
        raise ValueError("must be a private network with a prefix from /16 to /28")
    return text


def _engine_address(text: str) -> str:
    if not re.match(r"(?:unix:///|tcp://|http://|https://)[^\s@]+\Z", text):
        raise ValueError("is not an engine's address; write for example unix:///run/docker.sock")
    return text


def _capability(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name not in CAPABILITIES:
        raise ValueError("is not a Linux capability; write for example NET_BIND_SERVICE")
    return name


def one_of(words: type[StrEnum]) -> BeforeValidator:
    """Accept the words of an enumeration, in any case, and suggest the nearest for any other."""
    known = [str(word) for word in words]

    def choose(value: object) -> StrEnum:
        word = value.lower() if isinstance(value, str) else ""
        if word not in known:
            raise ValueError(f"is not one of {', '.join(known)}{suggest(value, known)}")
        return words(word)

    return BeforeValidator(choose)


def suggest(word: object, known: Iterable[str]) -> str:
    """Give `; did you mean …?` when one of *known* is close to *word*, else nothing."""
    close = get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def machine_of(info: ValidationInfo) -> Machine:
    """Give the machine the configuration is loaded on."""
    return cast("Machine", cast("dict[str, Any]", info.context)["machine"])


FromVariable = BeforeValidator(parse_number)
AsTuple = BeforeValidator(_as_tuple)

Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[int, BeforeValidator(parse_duration)]
Percent = Annotated[int, BeforeValidator(parse_percent)]
Whole = Annotated[int, FromVariable]
Real = Annotated[float, FromVariable, Field(allow_inf_nan=False)]
YesNo = Annotated[bool, FromVariable]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
ServerUrl = Annotated[str, AfterValidator(_url)]
NoRepeats = AfterValidator(no_repeats)
ImagePattern = Annotated[str, BeforeValidator(no_regex), AfterValidator(image_pattern)]
ImageGlob = Annotated[str, BeforeValidator(no_regex), AfterValidator(image_glob)]
StorePattern = Annotated[str, BeforeValidator(no_regex), AfterValidator(store_pattern)]
WordPattern = Annotated[str, BeforeValidator(no_regex), AfterValidator(word_pattern)]
Who = Annotated[int | str, BeforeValidator(who)]
ImageReference = Annotated[str, AfterValidator(_image)]
SecretText = Annotated[Secret, BeforeValidator(_secret)]
SecretFile = Annotated[Secret, BeforeValidator(_secret_file)]
PrivatePath = Annotated[Path, BeforeValidator(_private_path)]
"""Where a secret stands that something else reads."""
UserAndGroup = Annotated[tuple[int, int], BeforeValidator(_user)]
Ids = Annotated[tuple[int, int], BeforeValidator(_ids)]
"""The first and the last of a range of ids."""
Subnet = Annotated[str, AfterValidator(_subnet)]
EngineAddress = Annotated[str, AfterValidator(_engine_address)]
Capability = Annotated[str, AfterValidator(_capability)]
