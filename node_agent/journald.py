"""The machine's journal as the place of our log: each line as an entry with fields of its own.

Owns the journal's wire form and the names of our fields. Must not know what is logged; what it is given has no secrets
any more. When the journal does not take an entry, the caller writes the line to standard error, as without a journal.
"""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TextIO

SOCKET: Final = "/run/systemd/journal/socket"
PREFIX: Final = "NODE_AGENT_"
IDENTIFIER: Final = "node-agent"
LONGEST_NAME: Final = 64
WAIT_SECONDS: Final = 1.0
_PRIORITIES: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
)
# The journal has its own time and its own weight.
_NO_FIELDS: Final = frozenset({"timestamp", "level"})
_NO_WORDS: Final = frozenset({"event", "exception"})
_STRANGE: Final = re.compile(r"[^A-Z0-9_]")
_PLAIN: Final = re.compile(r"[^\s\"'=]+")

Send = Callable[[bytes], None]


def journald_of(environment: Mapping[str, str], stream: TextIO) -> "Journald | None":
    """Give the way to the journal when *stream* ends there already; else None."""
    place = environment.get("JOURNAL_STREAM", "")
    return Journald(_send) if place and place == _identity(stream) else None


def _identity(stream: TextIO) -> str:
    """Name what *stream* is connected to, as the service manager does it."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return ""
    return f"{status.st_dev}:{status.st_ino}"


class Journald:
    """Puts events into the journal."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Put one event into the journal; False when it has to be written elsewhere."""
        try:
            self._send(encoded(fields_of(event)))
        except TimeoutError:
            # Standard error ends at the same journal: a line less is better than an agent that waits for it.
            return True
        except OSError:
            return False
        return True


def fields_of(event: Mapping[str, Any]) -> dict[str, str]:
    """Give the fields of an entry: a line for people, and each fact under a name of its own."""
    fields = {
        "MESSAGE": _line(event),
        "PRIORITY": str(_PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
    }
    return fields | {_name(key): _text(value) for key, value in _facts(event, without=_NO_FIELDS)}


def _facts(event: Mapping[str, Any], *, without: frozenset[str]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in event.items() if value is not None and key not in without)


def _line(event: Mapping[str, Any]) -> str:
    facts = (f"{key}={_word(value)}" for key, value in _facts(event, without=_NO_FIELDS | _NO_WORDS))
    line = " ".join((str(event.get("event")), *facts))
    trace = event.get("exception")
    return line if trace is None else f"{line}\n{trace}"


def _word(value: Any) -> str:
    text = _text(value)
    # in quotes, so that a text with spaces cannot pass for further facts
    return (
        text if _PLAIN.fullmatch(text) or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)
    )


def _name(key: str) -> str:
    return (PREFIX + _STRANGE.sub("_", key.upper()))[:LONGEST_NAME]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def encoded(fields: Mapping[str, str]) -> bytes:
    """Write fields in the journal's own form; a value of several lines has its length before it."""
    return b"".join(_field(name, value.encode(errors="replace")) for name, value in fields.items())


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)


def _send(entry: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(WAIT_SECONDS)
        channel.sendto(entry, SOCKET)
