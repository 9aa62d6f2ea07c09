"""The node's own credentials: log in, refresh, log in again.

Owns the API key and the tokens. Must not know what they are used for.
"""

import base64
import binascii
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ServerUnreachable
from node_agent.server import wire
from node_agent.server.exchange import Call, Reply, Sends

RENEW_BEFORE = 600.0
FIRST_REFUSAL_SECONDS = 2.0
LAST_REFUSAL_SECONDS = 60.0
"""So long no login is tried after the API key was refused; the pause doubles from the first to the last."""
_KEY_HINT = (
    "Check `server.api_key` or `server.api_key_file`, and that `server.url` names the server the key is from."
)
_URL_HINT = "Check `server.url`: it must name the API's base."
_KEY_REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_PASSING = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    access: Secret
    refresh: Secret
    node_id: int
    renew_at: float
    """On the monotonic clock: the server's clock may be wrong, or ours."""
    ends_at: float


class Tokens:
    """Gives a token that is good now; many threads may ask, one at a time renews."""

    def __init__(
        self,
        exchange: Sends,
        api_key: Secret,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._api_key = api_key
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._pair: _Pair | None = None
        self._refusal: AccessDenied | None = None
        self._refusals = 0
        self._knock_at = 0.0

    def access_token(self) -> Secret:
        """Give a token with time left. Raises ServerUnreachable, AccessDenied."""
        with self._lock:
            return self._current().access

    def node_id(self) -> int:
        """Give the node's id, as its token says it. Raises ServerUnreachable, AccessDenied."""
        with self._lock:
            return self._current().node_id

    def renew(self, refused: Secret) -> Secret:
        """Give another token than the one the server refused. Raises ServerUnreachable, AccessDenied."""
        with self._lock:
            if self._pair is None or self._pair.access == refused:
                self._pair = self._renewed(self._pair)
            return self._pair.access

    def forget(self, refused: Secret) -> None:
        """Drop a token that is not worth refreshing; the next one comes from the API key."""
        with self._lock:
            if self._pair is not None and self._pair.access == refused:
                self._pair = None

    def _current(self) -> _Pair:
        now = self._monotonic()
        if self._pair is None:
            self._pair = self._login()
        elif now >= self._pair.renew_at:
            self._pair = self._renewed_in_time(self._pair, now)
        return self._pair

    def _renewed_in_time(self, pair: _Pair, now: float) -> _Pair:
        try:
            return self._renewed(pair)
        except ServerUnreachable:
            if now >= pair.ends_at:
                raise
            return pair

    def _renewed(self, pair: _Pair | None) -> _Pair:
        return (self._refresh(pair) if pair is not None else None) or self._login()

    def _refresh(self, pair: _Pair) -> _Pair | None:
        """Use the refresh token; None when the server does not take it any more."""
        reply = self._exchange.send(Call(method="POST", path="token/refresh", token=pair.refresh))
        if _is_final_refusal(reply):
            return None
        return self._accepted(reply)

    def _login(self) -> _Pair:
        if self._refusal is not None and self._monotonic() < self._knock_at:
            raise self._refusal
        body = wire.login_body(self._api_key)
        reply = self._exchange.send(Call(method="POST", path="token/node", body=body))
        if reply.status in _KEY_REFUSED and reply.message is not None:
            raise self._denied(reply.message)
        self._refusal, self._refusals = None, 0
        return self._accepted(reply)

    def _denied(self, message: str) -> AccessDenied:
        """Note that the key is refused: asked again and again without a pause, a server takes us for an intruder."""
        self._refusals += 1
        pause = min(FIRST_REFUSAL_SECONDS * 2 ** min(self._refusals - 1, 10), LAST_REFUSAL_SECONDS)
        self._knock_at = self._monotonic() + pause
        self._refusal = AccessDenied(f"The server does not accept the API key: {message}", hint=_KEY_HINT)
        return self._refusal

    def _accepted(self, reply: Reply) -> _Pair:
        if reply.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
            text = f"{reply.call} was answered with {reply.status}: {reply.excerpt()}"
            away = reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            raise ServerUnreachable(text, hint="" if away else _URL_HINT, after=reply.pause)
        access, refresh = wire.parse_tokens(reply)
        claims = wire.parse_claims(_claims_part(access))
        lifetime = float("inf") if claims.lifetime is None else max(claims.lifetime, 0.0)
        now = self._monotonic()
        return _Pair(
            access=access,
            refresh=refresh,
            node_id=claims.node_id,
            # a token that lives shorter than the margin must not be renewed at every call
            renew_at=now + lifetime - min(RENEW_BEFORE, lifetime / 2),
            ends_at=now + lifetime,
        )


def _is_final_refusal(reply: Reply) -> bool:
    """Tell a refusal by the server itself from a gateway that answers in its place."""
    refused = HTTPStatus.BAD_REQUEST <= reply.status < HTTPStatus.INTERNAL_SERVER_ERROR
    return refused and reply.status not in _PASSING and reply.message is not None


def _claims_part(token: Secret) -> bytes:
    """Give the claims of a token, unverified: only the server has the key, and `sub` is no string here."""
    parts = token.reveal().split(".")
    try:
        return base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except (IndexError, binascii.Error) as error:
        raise ServerUnreachable("The server answered the login with something that is no token.") from error
