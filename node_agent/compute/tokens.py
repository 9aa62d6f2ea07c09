"""Tokens that stand for a signature for a while.

Signed with a secret of this node's own, for one address, with a capped life; each can be revoked. Knows nothing of
requests.
"""

import secrets
from dataclasses import dataclass

import jwt

from node_agent.compute.ledger import Ledger
from node_agent.compute.signatures import Address, parse_address
from node_agent.domain.ports import Clock

LONGEST_SECONDS = 30 * 86_400
_ALGORITHM = "HS256"
_LONGEST_TOKEN = 2048


class BadToken(Exception):
    """The token proves nothing; the text says why, in the API's words."""


@dataclass(frozen=True, slots=True)
class _Claims:
    id: str
    address: Address
    expires_at: int


class AuthTokens:
    """Makes, checks and revokes the tokens of this node."""

    def __init__(self, ledger: Ledger, clock: Clock, *, longest: float = LONGEST_SECONDS) -> None:
        self._ledger = ledger
        self._clock = clock
        self._longest = longest
        self._secret = ledger.secret("tokens", secrets.token_bytes(32))

    def expiry(self, wanted: int | None) -> int:
        """Say when a token will expire; a life longer than allowed is cut. Raises BadToken when it is over already."""
        now = self._clock.now()
        latest = int(now + self._longest)
        until = latest if wanted is None else min(wanted, latest)
        if until <= now:
            raise BadToken("Invalid timestamp provided.")
        return until

    def create(self, address: Address, *, expires_at: int, nonce: int) -> str:
        """Make a token."""
        claims = {
            "jti": secrets.token_hex(16),
            "address": address,
            "exp": expires_at,
            # readers of the newer dialect expect these two
            "createdAt": int(self._clock.now() * 1000),
            "nonce": str(nonce),
        }
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def check(self, token: str, address: Address) -> None:
        """Refuse a token that does not speak for *address* now. Raises BadToken."""
        claims = self._read(token, address)
        if self._ledger.is_revoked(claims.id):
            raise BadToken("Token is deleted.")

    def revoke(self, token: str, address: Address) -> None:
        """End a token before its time. Raises BadToken."""
        claims = self._read(token, address)
        if not self._ledger.revoke_token(claims.id, expires_at=claims.expires_at, now=self._clock.now()):
            raise BadToken("Token is deleted.")

    def _read(self, token: str, address: Address) -> _Claims:
        if len(token) > _LONGEST_TOKEN:
            raise BadToken("Token is invalid.")
        try:
            # the time is looked at below, with the agent's own clock
            found = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                options={"require": ["exp", "jti"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            raise BadToken("Token is invalid.") from None
        claims = _claims(found)
        if claims is None or claims.address != address:
            raise BadToken("Token is invalid.")
        if claims.expires_at <= self._clock.now():
            raise BadToken("Token is expired.")
        return claims


def _claims(found: dict[str, object]) -> _Claims | None:
    address = parse_address(found.get("address"))
    expires_at, token_id = found.get("exp"), found.get("jti")
    if address is None or not isinstance(expires_at, int) or not isinstance(token_id, str):
        return None
    return _Claims(token_id, address, expires_at)
