"""What is done to payloads on their way through the proxy: nothing much, or sealing and opening.

Algorithms always see plain payloads in base64. A sealer turns them into what travels and back, piece by piece. Knows
nothing of routes, tokens or runs.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from node_agent.domain.ports import Body
from node_agent.domain.task import OrganizationId
from node_agent.errors import KeyChanged, KeyMissing
from node_agent.payload.chunks import Base64Of, Chunks, Literal, NotBase64, decoded_base64
from node_agent.payload.codec import PublicKeyOf
from node_agent.payload.envelope import (
    EnvelopeError,
    Sealed,
    seal_blob,
    sealed_blob_length,
    unseal,
    unseal_blob,
)
from node_agent.payload.keys import KeyUnreadable, PrivateKey, PublicKey
from node_agent.payload.longtext import BadJson, LongText, written_json

log = structlog.get_logger()

MAX_ORGANIZATIONS = 500
"""Each costs a question to the server and a public-key operation."""

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


class CannotSeal(Exception):
    """What an algorithm sent cannot be sealed; the text tells it why."""


class Sealer(Protocol):
    """Turns what algorithms write into what the server keeps, and back."""

    def seal_inputs(self, body: Body, task: Mapping[str, object]) -> Body:
        """Make the inputs of a new task ready to travel; *task* is what *body* says. Raises CannotSeal.

        Raises ServerUnreachable and AccessDenied too, as far as keys are asked for.
        """

    def open_results(self, body: Body, parse: Callable[[Body], object]) -> Body:
        """Make the results in an answer (one, or a page of them) readable for the algorithm."""

    def seal_blob(self, content: Body, reader: str) -> Body:
        """Make one payload ready for the blob store, for whoever has the public key *reader*. Raises CannotSeal."""

    def open_blob(self, content: Body) -> Body:
        """Make what the blob store keeps readable; what cannot be opened passes unchanged."""


class PlainSealer:
    """The sealer of an unencrypted collaboration: base64 is all there is."""

    def seal_inputs(self, body: Body, task: Mapping[str, object]) -> Body:  # noqa: ARG002
        """Leave the inputs as they are."""
        return body

    def open_results(self, body: Body, parse: Callable[[Body], object]) -> Body:  # noqa: ARG002
        """Leave the results as they are."""
        return body

    def seal_blob(self, content: Body, reader: str) -> Body:  # noqa: ARG002
        """Write the payload as base64 text, as every reader of the blob store expects."""
        return Base64Of(content)

    def open_blob(self, content: Body) -> Body:
        """Read base64 text; what is not base64 passes unchanged."""
        try:
            return _measured(partial(decoded_base64, content))
        except NotBase64:
            return content


class EnvelopeSealer:
    """The sealer of an encrypted collaboration: inputs for their readers, results for this node."""

    def __init__(self, key: PrivateKey, public_key_of: PublicKeyOf) -> None:
        self._key = key
        self._public_key_of = public_key_of

    def seal_inputs(self, body: Body, task: Mapping[str, object]) -> Body:  # noqa: ARG002
        """Seal each organization's input with its public key. Raises CannotSeal."""
        asked = task.get("organizations")
        if not isinstance(asked, list) or len(asked) > MAX_ORGANIZATIONS:
            raise CannotSeal(f"`organizations` must be a list of at most {MAX_ORGANIZATIONS}.")
        # every input is looked at before the first byte leaves
        try:
            return written_json({**task, "organizations": [self._sealed_part(part) for part in asked]})
        except BadJson as error:
            raise CannotSeal(f"The body is {error}.") from error

    def open_results(self, body: Body, parse: Callable[[Body], object]) -> Body:
        """Open every result that is sealed for this node; the others pass unchanged."""
        answer = parse(body)
        if not isinstance(answer, dict):
            return body
        page = answer.get("data")
        if isinstance(page, list):
            return written_json({**answer, "data": [self._opened_part(part) for part in page]})
        return written_json(self._opened_part(answer))

    def seal_blob(self, content: Body, reader: str) -> Body:
        """Seal one payload for the blob store. Raises CannotSeal."""
        if not reader:
            raise CannotSeal("Missing X-Public-Key header")
        try:
            key = PublicKey.from_wire(reader)
        except KeyUnreadable as error:
            raise CannotSeal(f"The public key in the header X-Public-Key cannot be used: {error}.") from error
        return _Made(sealed_blob_length(content.length, key), partial(seal_blob, content, key))

    def open_blob(self, content: Body) -> Body:
        """Open what is sealed for this node; anything else passes unchanged."""
        try:
            return _measured(partial(unseal_blob, content, self._key))
        except EnvelopeError as error:
            log.debug("proxy_left_sealed", reason=str(error))
            return content

    def _sealed_part(self, part: object) -> Mapping[str, object]:
        if not isinstance(part, dict):
            raise _no_input()
        number, text = _input_of(part)
        if isinstance(text, str) and _UUID.fullmatch(text):
            return part  # it names what lies in the blob store, sealed
        try:
            message = _measured(partial(decoded_base64, _text(text)))
        except NotBase64 as error:
            raise CannotSeal(f"The input for organization {number} is not base64: {error}.") from error
        try:
            key = self._public_key_of(number)
        except (KeyMissing, KeyChanged) as error:
            raise CannotSeal(error.message) from error
        return {**part, "input": Sealed(message, key)}

    def _opened_part(self, part: object) -> object:
        if not isinstance(part, dict) or part.get("blob_storage_used"):
            return part
        result = part.get("result")
        if not isinstance(result, str | LongText) or not result:
            return part
        try:
            message = _measured(partial(unseal, _text(result), self._key))
        except EnvelopeError as error:
            log.debug("proxy_left_sealed", reason=str(error))
            return part
        return {**part, "result": Base64Of(message)}


@dataclass(frozen=True, slots=True)
class _Made:
    """Bytes that are made anew each time they are read."""

    length: int
    make: Callable[[], Iterable[bytes]]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.make())


def _measured(make: Callable[[], Iterable[bytes]]) -> Chunks:
    """Make the bytes once, to know that it works and how many they are."""
    return _Made(sum(map(len, make())), make)


def _text(value: str | LongText) -> Chunks:
    # half a character is neither base64 nor sealed, and is refused as such
    return value if isinstance(value, LongText) else Literal(value.encode(errors="replace"))


def _input_of(part: Mapping[str, object]) -> tuple[OrganizationId, str | LongText]:
    number, text = part.get("id"), part.get("input")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(text, str | LongText):
        raise _no_input()
    return OrganizationId(number), text


def _no_input() -> CannotSeal:
    return CannotSeal("Each of the organizations needs an `id` and an `input` in base64.")
