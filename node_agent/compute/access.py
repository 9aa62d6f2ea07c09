"""Who may use a data set: the owner's choice of five ways, asked for every data set of every job.

None of them believes anything but an address that proved itself. Each gives what stood for the right, so that the log can
say why a job ran; None refuses.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from node_agent.compute.callback import Fetch
from node_agent.compute.ledger import Grant, Ledger
from node_agent.compute.program import ask_program
from node_agent.compute.signatures import Address
from node_agent.domain.assets import DataSet
from node_agent.domain.ports import Clock

log = structlog.get_logger()

ASK_SECONDS: Final = 10.0
_LONGEST_REFERENCE: Final = 200
_REFUSED: Final = 1
"""The exit code of a command that says no; every other one but 0 refuses too, and is told as a fault."""
_FINE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about one data set of one job."""

    consumer: Address
    data_set: DataSet
    algorithm: str
    """Its DID, or `raw`."""
    order: str
    """What the consumer sent as its right; empty when nothing was."""
    environment: str

    def as_object(self) -> dict[str, Any]:
        """Give the question as commands and callbacks read it."""
        return {
            "consumerAddress": self.consumer,
            "documentId": self.data_set.did,
            "label": self.data_set.label,
            "serviceId": self.data_set.service_id,
            "algorithm": self.algorithm,
            "transferTxId": self.order,
            "environment": self.environment,
        }


class Access(Protocol):
    """Decides whether a consumer may use a data set."""

    def right_to(self, question: Question) -> str | None:
        """Give what stands for the right to use it; None refuses."""


class DenyEverybody:
    """Lets nobody in: what counts until the owner chooses something else."""

    def right_to(self, question: Question) -> None:
        """Refuse."""


class ListedAddresses:
    """Lets listed addresses in; `*` lets everybody in."""

    def __init__(self, addresses: Collection[str]) -> None:
        self._addresses = frozenset(addresses)

    def right_to(self, question: Question) -> str | None:
        """Look the address up."""
        known = question.consumer in self._addresses or "*" in self._addresses
        return f"address:{question.consumer}" if known else None


class Grants:
    """Lets in who has a grant of the owner: the one named by the order, or any that is good when none is named."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    def right_to(self, question: Question) -> str | None:
        """Find a grant; it is used up when the job is written down."""
        if question.order:
            named = self._ledger.grant(question.order)
            return question.order if named is not None and self._is_good(named, question) else None
        candidates = self._ledger.grants(consumer=question.consumer, data_set=question.data_set.did)
        return next((grant.id for grant in candidates if self._is_good(grant, question)), None)

    def _is_good(self, grant: Grant, question: Question) -> bool:
        return grant.is_good(
            consumer=question.consumer, data_set=question.data_set.did, now=self._clock.now()
        )


class AskedCommand:
    """Asks a program of the owner: the question on its standard input, its exit code the answer."""

    def __init__(self, command: Path, *, seconds: float = ASK_SECONDS) -> None:
        self._command = command
        self._seconds = seconds

    def right_to(self, question: Question) -> str | None:
        """Run the program; 0 lets in, and its first line of output is what stood for the right."""
        try:
            answer = ask_program(
                self._command, json.dumps(question.as_object()).encode(), seconds=self._seconds
            )
        except OSError as error:
            log.warning("access_not_answered", by="command", reason=type(error).__name__)
            return None
        if answer.code == 0:
            return _reference(answer.said.decode(errors="replace")) or "command"
        if answer.code != _REFUSED:
            log.warning("access_not_answered", by="command", reason=f"exit code {answer.code}")
        return None


class AskedService:
    """Asks a service of the owner over HTTP: 200 and `{"allowed": true}` let in, everything else refuses."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def right_to(self, question: Question) -> str | None:
        """Ask the service."""
        try:
            status, answer = self._fetch(question.as_object())
        except OSError as error:
            log.warning("access_not_answered", by="callback", reason=type(error).__name__)
            return None
        if status != _FINE or not isinstance(answer, dict) or "allowed" not in answer:
            log.warning("access_not_answered", by="callback", reason=f"status {status}")
            return None
        if answer["allowed"] is not True:
            return None
        return _reference(str(answer.get("reference") or "")) or "callback"


def _reference(text: str) -> str:
    """Give the first line, as it may be logged and shown to the consumer."""
    line = next(iter(text.strip().splitlines()), "")
    return "".join(letter for letter in line if letter.isprintable())[:_LONGEST_REFERENCE]
