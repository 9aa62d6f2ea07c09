"""Tokens as the server gives them: HS256, and `sub` is no string. Knows nothing of tasks."""

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.doubles.fake_server.refusal import Refusal


@dataclass(slots=True)
class Lifetimes:
    """Seconds."""

    access: float = 6 * 3600.0
    refresh: float = 48 * 3600.0


class Credentials:
    """Makes and checks tokens."""

    def __init__(self) -> None:
        self.lifetimes = Lifetimes()
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._issued: dict[str, set[str]] = {"access": set(), "refresh": set()}
        self._expired: set[str] = set()

    def change_secret(self) -> None:
        """Make every token invalid, as a server without a configured secret does at each start."""
        self._secret = secrets.token_bytes(32)

    def expire(self, kind: str) -> None:
        """Let every *access* or *refresh* token given so far count as expired."""
        with self._lock:
            self._expired |= self._issued[kind]

    def node_tokens(self, node_id: int) -> dict[str, str]:
        """Give both tokens of a node."""
        return {
            "access_token": self._node_token(node_id, "access", self.lifetimes.access),
            "refresh_token": self._node_token(node_id, "refresh", self.lifetimes.refresh),
        }

    def container_token(self, claims: dict[str, Any]) -> str:
        """Give a container's token, which does not expire."""
        now = int(time.time())
        return self._sign(
            {
                "sub": claims,
                "type": "access",
                "client_type": "container",
                "iat": now,
                "jti": secrets.token_hex(8),
            }
        )

    def check(self, header: str | None, kind: str = "access") -> dict[str, Any]:
        """Give the claims of an Authorization header, or refuse in the server's words."""
        if not header or not header.startswith("Bearer "):
            raise Refusal(401, "Missing Authorization Header")
        claims = self._verified(header.removeprefix("Bearer "))
        if claims["type"] != kind:
            raise Refusal(422, f"Only {'non-' if kind == 'access' else ''}refresh tokens are allowed")
        if claims["jti"] in self._expired or claims.get("exp", float("inf")) < time.time():
            raise Refusal(401, "Token has expired")
        return claims

    def _node_token(self, node_id: int, kind: str, lifetime: float) -> str:
        now = int(time.time())
        jti = secrets.token_hex(8)
        claims = {
            "fresh": False,
            "iat": now,
            "nbf": now,
            "exp": now + int(lifetime),
            "jti": jti,
            "csrf": secrets.token_hex(4),
            "type": kind,
            "sub": node_id,
            "client_type": "node",
            "roles": [],
        }
        with self._lock:
            self._issued[kind].add(jti)
        return self._sign(claims)

    def _sign(self, claims: dict[str, Any]) -> str:
        head = ".".join(
            _encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
        )
        return f"{head}.{self._signature(head)}"

    def _signature(self, head: str) -> str:
        return _encode(hmac.digest(self._secret, head.encode(), hashlib.sha256))

    def _verified(self, token: str) -> dict[str, Any]:
        head, _, signature = token.rpartition(".")
        if head.count(".") != 1:
            raise Refusal(422, "Not enough segments")
        if not hmac.compare_digest(signature, self._signature(head)):
            raise Refusal(422, "Signature verification failed")
        claims: dict[str, Any] = json.loads(_decode(head.split(".")[1]))
        return claims


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
