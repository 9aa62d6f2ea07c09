"""Who a token is from. Owns the step from claims to a caller with rights; must not know routes or how tokens are made."""

from collections.abc import Mapping
from typing import Any, Final

from node_agent.sandbox.server.call import Caller
from node_agent.sandbox.server.database import Database, now
from node_agent.sandbox.server.refusal import denied

NOBODY: Final = Caller(kind="user", id=0, organization_id=0, collaborations=())
"""Who calls where no token is asked for."""


def caller_of(claims: Mapping[str, Any], database: Database) -> Caller:
    """Find who these verified claims are about; what was removed since is refused."""
    kind, subject = claims["client_type"], claims["sub"]
    if kind == "container":
        return _container(subject)
    if kind == "node":
        return _node(subject, database)
    return _user(subject, database)


def touch(caller: Caller, database: Database) -> None:
    """Remember that somebody was here; a container says nothing about its node."""
    if caller.kind == "node":
        database.change("UPDATE node SET last_seen = ? WHERE id = ?", now(), caller.id)
    elif caller.kind == "user":
        database.change("UPDATE user SET last_seen = ? WHERE id = ?", now(), caller.id)


def _container(subject: Mapping[str, Any]) -> Caller:
    return Caller(
        kind="container",
        id=subject["node_id"],
        organization_id=subject["organization_id"],
        collaborations=(subject["collaboration_id"],),
        task_id=subject["task_id"],
        image=subject["image"],
    )


def _node(node_id: int, database: Database) -> Caller:
    row = database.row("SELECT * FROM node WHERE id = ?", node_id)
    if row is None:
        raise denied(f"Node id={node_id} is not known any more")
    return Caller(
        kind="node",
        id=node_id,
        organization_id=row["organization_id"],
        collaborations=memberships(row["organization_id"], database),
    )


def _user(user_id: int, database: Database) -> Caller:
    row = database.row("SELECT * FROM user WHERE id = ?", user_id)
    if row is None:
        raise denied(f"User id={user_id} is not known any more")
    return Caller(
        kind="user",
        id=user_id,
        organization_id=row["organization_id"],
        collaborations=memberships(row["organization_id"], database),
    )


def memberships(organization_id: int, database: Database) -> tuple[int, ...]:
    """Give the collaborations an organization is in."""
    rows = database.rows("SELECT collaboration_id FROM member WHERE organization_id = ?", organization_id)
    return tuple(row[0] for row in rows)
