"""Who asks: a signature or a token, and a nonce that is used up once.

The order of the checks is the point. Shapes first, then who signed, then everything the caller of this module checks of
its own fields, and only then the nonce, before anything is done for the request. To a stranger a wrong signature, a
wrong owner and an unknown job look the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from node_agent.compute.fields import BadFields, Fields, required
from node_agent.compute.layouts import (
    Operation,
    address_field,
    may_be_cut_elsewhere,
    newer_message,
    specified_message,
)
from node_agent.compute.ledger import Ledger, NonceUse
from node_agent.compute.signatures import Address, parse_address, signer_of
from node_agent.compute.signedbody import HEADER, Sent, body_signature, signed_text
from node_agent.compute.tokens import AuthTokens, BadToken

BAD_SIGNATURE = "Invalid signature provided. Please check the nonce or documentId."
_SIGN_THE_BODY = f"Invalid signature provided. This node wants every request signed with its body ({HEADER})."
_NO_TOKEN = frozenset({"", "undefined", "null", "none"})
"""What clients send that have no token."""
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, proven; the nonce is not used up yet."""

    address: Address
    nonce: int
    text: str = ""
    """What was signed, where its fields stand without a mark between them; else empty."""
    is_ambiguous: bool = False
    """The text could be another request's as well."""


def bad_signature() -> BadFields:
    """Word the one refusal for everything a stranger must not tell apart."""
    return BadFields({"signature": BAD_SIGNATURE})


class Authentication:
    """Recognises who asks and keeps every request from being used twice."""

    def __init__(
        self,
        ledger: Ledger,
        tokens: AuthTokens,
        *,
        node: Address,
        now: Callable[[], float],
        only_signed_bodies: bool = False,
    ) -> None:
        self._ledger = ledger
        self._tokens = tokens
        self._node = node
        self._now = now
        self.only_signed_bodies = only_signed_bodies

    def recognise(self, operation: Operation, fields: Fields, sent: Sent) -> Asker:
        """Find out who asks, by signature or token. Raises BadFields."""
        asker = self._named(operation, fields)
        if sent.signed_body is not None or self.only_signed_bodies or fields.text("signature"):
            return self._signed(asker, operation, fields, sent)
        self._check_token(sent.token, asker.address)
        return asker

    def recognise_signer(self, operation: Operation, fields: Fields, sent: Sent) -> Asker:
        """Find out who asks, by signature alone. Raises BadFields."""
        return self._signed(self._named(operation, fields), operation, fields, sent)

    def use_nonce(self, asker: Asker) -> None:
        """Use the nonce up. Raises BadFields when it is not higher than those before."""
        use = self._ledger.use_nonce(
            asker.address, asker.nonce, text=asker.text, mark=asker.is_ambiguous, at=self._now()
        )
        if use is NonceUse.TOO_LOW:
            last = self._ledger.last_nonce(asker.address)
            text = f"The nonce must be higher than the last one used, which was {last}; ask for it and add 1."
            raise BadFields({"nonce": text})
        if use is NonceUse.TEXT_WAS_USED:
            text = "The nonce was used before in a request of the same text; take another."
            raise BadFields({"nonce": text})

    @staticmethod
    def _named(operation: Operation, fields: Fields) -> Asker:
        name = address_field(operation)
        address = parse_address(fields.raw(name))
        if address is None:
            raise BadFields({name: f"The {name} must be an address: 0x and 40 hexadecimal digits."})
        nonce = fields.whole("nonce")
        if nonce is None:
            raise BadFields({"nonce": required("nonce")})
        return Asker(address, nonce)

    def _signed(self, asker: Asker, operation: Operation, fields: Fields, sent: Sent) -> Asker:
        if sent.signed_body is not None:
            signature = body_signature(sent)
            text = signed_text(sent, node=self._node, asker=asker.address, nonce=asker.nonce)
            if signature is None or signer_of(text, signature) != asker.address:
                raise bad_signature()
            return asker
        if self.only_signed_bodies:
            raise BadFields({"signature": _SIGN_THE_BODY})
        return self._signed_plainly(asker, operation, fields)

    @staticmethod
    def _signed_plainly(asker: Asker, operation: Operation, fields: Fields) -> Asker:
        signature, nonce = fields.text("signature"), str(asker.nonce)
        specified = specified_message(operation, fields, nonce=nonce)
        if specified is not None and signer_of(specified, signature) == asker.address:
            return replace(asker, text=specified, is_ambiguous=may_be_cut_elsewhere(operation, fields))
        newer = newer_message(operation, fields, nonce=nonce)
        if newer is not None and signer_of(newer, signature) == asker.address:
            return asker
        raise bad_signature()

    def _check_token(self, token: str, address: Address) -> None:
        if not token:
            raise bad_signature()
        try:
            self._tokens.check(token, address)
        except BadToken as refusal:
            raise BadFields({"signature": f"{BAD_SIGNATURE} {refusal}"}) from refusal


def token_in(*headers: str | None) -> str:
    """Find the token in what stands in the headers for one; empty when there is none."""
    for value in headers:
        found = (value or "").strip()
        if found.lower().startswith(_BEARER):
            found = found[len(_BEARER) :].strip()
        if found.lower() not in _NO_TOKEN:
            return found
    return ""
