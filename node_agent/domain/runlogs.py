"""What of an algorithm's log leaves this node, and in which form it travels inside the agent.

Owns words and values only. Must not know where a log comes from, what is secret in it, or who gets it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from node_agent.domain.run import RunId

LogMask = Callable[[Iterable[bytes]], Iterator[bytes]]
"""Gives a stream again, in pieces of its own, with the secrets in it masked."""


class LogSharing(StrEnum):
    """When the researcher gets the log of an algorithm."""

    OFF = "off"
    ERRORS = "errors"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Something a container wrote in one go; *at* is the engine's own word for when, good for `since` and for sorting."""

    at: str
    content: bytes


@dataclass(frozen=True, slots=True)
class LiveMark:
    """How far the log of a running run was sent: up to the entry written at *since*, *sent* bytes in all."""

    since: str = ""
    sent: int = 0


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Whole lines that a running run wrote, masked."""

    run_id: RunId
    text: str
