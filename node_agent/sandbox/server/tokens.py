"""Tokens as servers of this kind give them: HS256, and `sub` is a number or, for containers, an object.

Owns making and checking. Must not know what a token lets anybody do.
"""

import itertools
import secrets
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal, NoReturn

import jwt

from node_agent.sandbox.server.refusal import Refusal

Kind = Literal["user", "node", "container"]
Use = Literal["access", "refresh"]

_ALGORITHM: Final = "HS256"
_EXPIRED: Final = "Token has expired"


@dataclass(slots=True)
class Lifetimes:
    """Seconds."""

    access: float = 6 * 3600.0
    refresh: float = 48 * 3600.0

    def of(self, use: Use) -> float:
        """Give how long a token for this use lasts."""
        return self.access if use == "access" else self.refresh


class Mint:
    """Makes and checks tokens."""

    def __init__(self, secret: str | None = None, lifetimes: Lifetimes | None = None) -> None:
        self.lifetimes = lifetimes or Lifetimes()
        self._secret = secret or new_secret()
        self._numbers = itertools.count(1)
        self._expired_up_to: dict[str, int] = {"access": 0, "refresh": 0}

    def change_secret(self) -> None:
        """Make every token invalid, as a server without a configured secret does at each start."""
        self._secret = new_secret()

    def expire(self, use: Use) -> None:
        """Let every token made so far for this use count as expired."""
        self._expired_up_to[use] = next(self._numbers)

    def pair(self, kind: Kind, number: int) -> dict[str, str]:
        """Make both tokens of a user or node."""
        return {
            "access_token": self._token(kind, number, "access"),
            "refresh_token": self._token(kind, number, "refresh"),
        }

    def container_token(self, subject: dict[str, Any]) -> str:
        """Make a container's token, which does not expire."""
        claims = self._claims("container", {"client_type": "container", **subject}, "access")
        return self._signed(claims)

    def check(self, header: str | None, use: Use = "access") -> dict[str, Any]:
        """Give the claims of an Authorization header, or refuse in the words clients know."""
        if not header or not header.startswith("Bearer "):
            raise Refusal(HTTPStatus.UNAUTHORIZED, "Missing Authorization Header")
        claims = self._verified(header.removeprefix("Bearer "))
        if claims.get("type") != use:
            only = "Only refresh tokens" if use == "refresh" else "Only non-refresh tokens"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"{only} are allowed")
        if int(claims["jti"].partition("-")[0]) <= self._expired_up_to[use] and "exp" in claims:
            raise Refusal(HTTPStatus.UNAUTHORIZED, _EXPIRED)
        return claims

    def _token(self, kind: Kind, number: int, use: Use) -> str:
        claims = self._claims(kind, number, use)
        return self._signed(claims | {"exp": claims["iat"] + int(self.lifetimes.of(use)), "roles": []})

    def _claims(self, kind: Kind, subject: object, use: Use) -> dict[str, Any]:
        at = int(time.time())
        return {
            "fresh": False,
            "iat": at,
            "nbf": at,
            "jti": f"{next(self._numbers)}-{secrets.token_hex(8)}",
            "csrf": secrets.token_hex(8),
            "type": use,
            "sub": subject,
            "client_type": kind,
        }

    def _signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                # the subject is no string here, which the standard wants it to be
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                options={"verify_sub": False},
            )
        except jwt.PyJWTError as error:
            _refuse(error)
        return claims


def new_secret() -> str:
    """Make a secret to sign with."""
    return secrets.token_hex(32)


def _refuse(error: jwt.PyJWTError) -> NoReturn:
    if isinstance(error, jwt.ExpiredSignatureError):
        raise Refusal(HTTPStatus.UNAUTHORIZED, _EXPIRED) from error
    raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
