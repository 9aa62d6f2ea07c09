"""Logins and tokens."""

from dataclasses import dataclass

from node_agent.domain.secret import Secret
from node_agent.domain.task import TaskId
from node_agent.errors import ServerUnreachable
from node_agent.server.exchange import Reply, parse_json
from node_agent.server.wire.shapes import Id, Jwt, Wire, json_body, shaped


class _Tokens(Wire):
    access_token: Jwt
    refresh_token: Jwt


class _ContainerToken(Wire):
    container_token: Jwt


class _Claims(Wire):
    sub: Id
    iat: float | int | None = None
    exp: float | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says about itself."""

    node_id: int
    lifetime: float | None
    """Seconds from issue to expiry; None when it does not expire."""


def login_body(api_key: Secret) -> bytes:
    """Write the login."""
    return json_body(api_key=api_key.reveal())


def parse_tokens(reply: Reply) -> tuple[Secret, Secret]:
    """Read the access token and the refresh token."""
    tokens = shaped(_Tokens, reply.json(), reply.call)
    return Secret(tokens.access_token), Secret(tokens.refresh_token)


def parse_claims(payload: bytes) -> Claims:
    """Read what a token says about itself; nobody but the server can verify it."""
    try:
        claims = _Claims.model_validate(parse_json(payload))
    except ValueError:  # the value of a token is not for error texts, so the cause is not kept
        raise ServerUnreachable(
            "The server answered the login with a token that is not understood."
        ) from None
    lifetime = None if claims.exp is None or claims.iat is None else float(claims.exp - claims.iat)
    return Claims(node_id=claims.sub, lifetime=lifetime)


def container_token_body(task_id: TaskId, image: str) -> bytes:
    """Write the request for a container token."""
    return json_body(task_id=task_id, image=image)


def parse_container_token(reply: Reply) -> Secret:
    """Read a container token."""
    return Secret(shaped(_ContainerToken, reply.json(), reply.call).container_token)
