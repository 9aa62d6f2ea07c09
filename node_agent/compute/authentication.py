"""Who asks: a signature or a token, and a nonce that is used up once.

The order of the checks is the point. Shapes first, then who signed, then everything the caller of this module checks of
its own fields, and only then the nonce, before anything is done for the request. To a stranger a wrong signature, a
wrong owner and an unknown job look the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from node_agent.compute.fields import BadFields, Fields
from node_agent.compute.layouts import Operation, messages
from node_agent.compute.ledger import Ledger
from node_agent.compute.signatures import Address, parse_address, signer_of
from node_agent.compute.tokens import AuthTokens, BadToken

BAD_SIGNATURE = "Invalid signature provided. Please check the nonce or documentId."
_NO_TOKEN = frozenset({"", "undefined", "null", "none"})
"""What clients send that have no token."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, proven; the nonce is not used up yet."""

    address: Address
    nonce: int


def bad_signature() -> BadFields:
    """Word the one refusal for everything a stranger must not tell apart."""
    return BadFields({"signature": BAD_SIGNATURE})


class Authentication:
    """Recognises who asks and keeps every request from being used twice."""

    def __init__(self, ledger: Ledger, tokens: AuthTokens) -> None:
        self._ledger = ledger
        self._tokens = tokens

    def recognise(
        self, operation: Operation, fields: Fields, headers: Mapping[str, str], *, by_token: bool = True
    ) -> Asker:
        """Find out who asks. Raises BadFields."""
        name = "consumerAddress" if "consumerAddress" in fields else "address"
        address = parse_address(fields.raw(name))
        if address is None:
            raise BadFields({name: f"The {name} must be an address: 0x and 40 hexadecimal digits."})
        nonce = fields.whole("nonce")
        if nonce is None:
            raise BadFields({"nonce": "The nonce field is required."})
        signature = fields.text("signature")
        if signature:
            self._check_signature(operation, fields, signature, address)
        elif not by_token or not self._has_good_token(headers, address):
            raise bad_signature()
        return Asker(address, nonce)

    def use_nonce(self, asker: Asker) -> None:
        """Use the nonce up. Raises BadFields when it is not higher than those before."""
        if not self._ledger.use_nonce(asker.address, asker.nonce):
            last = self._ledger.last_nonce(asker.address)
            raise BadFields(
                {
                    "nonce": f"The nonce must be higher than the last one used, which was {last}; ask for it and add 1."
                }
            )

    def _check_signature(
        self, operation: Operation, fields: Fields, signature: str, address: Address
    ) -> None:
        nonce = fields.text("nonce")
        if not any(
            signer_of(message, signature) == address for message in messages(operation, fields, nonce=nonce)
        ):
            raise bad_signature()

    def _has_good_token(self, headers: Mapping[str, str], address: Address) -> bool:
        token = token_in(headers)
        if not token:
            return False
        try:
            self._tokens.check(token, address)
        except BadToken as refusal:
            raise BadFields({"signature": f"{BAD_SIGNATURE} {refusal}"}) from refusal
        return True


def token_in(headers: Mapping[str, str]) -> str:
    """Find the token in the headers; empty when there is none."""
    for name in ("AuthToken", "Authorization"):
        found = headers.get(name, "").strip()
        if found.lower() not in _NO_TOKEN:
            return found
    return ""
