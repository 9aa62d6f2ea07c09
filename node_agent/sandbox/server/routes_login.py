"""Routes that give and check tokens, and those that say what this server is."""

import json
import uuid
from http import HTTPStatus

from werkzeug.security import check_password_hash

from node_agent.domain.run import Status
from node_agent.sandbox.server.call import Body, Call
from node_agent.sandbox.server.database import Row
from node_agent.sandbox.server.population import hash_of_key
from node_agent.sandbox.server.refusal import Refusal, bad, bad_field, denied
from node_agent.sandbox.server.tokens import Kind
from node_agent.sandbox.server.work import OPEN

VERSION = "4.15.2"
"""The version of vantage6 whose protocol this server speaks."""
_LONGEST_NAME = 256


def version(_: Call) -> object:
    """Say which protocol is spoken."""
    return {"version": VERSION}


def health(_: Call) -> object:
    """Say that the server works."""
    return {"database": True}


def log_user_in(call: Call) -> object:
    """Exchange name and password for tokens."""
    body = call.body()
    username, password = body.text("username"), body.text("password")
    row = call.backend.database.row("SELECT id, password FROM user WHERE username = ?", username)
    too_long = len(password) > _LONGEST_NAME
    if row is None or too_long or not check_password_hash(row["password"], password):
        raise bad("Invalid username or password!")
    return _tokens(call, "user", row["id"])


def log_node_in(call: Call) -> object:
    """Exchange an API key for tokens."""
    api_key = call.body().text("api_key")
    if not _is_uuid(api_key):
        raise bad_field("api_key", "API key is not a valid UUID")
    node_id = call.backend.database.value("SELECT id FROM node WHERE key_hash = ?", hash_of_key(api_key))
    if node_id is None:
        raise Refusal(HTTPStatus.UNAUTHORIZED, "Api key is not recognized!")
    return _tokens(call, "node", node_id)


def refresh(call: Call) -> object:
    """Exchange a refresh token for two new tokens."""
    claims = call.backend.mint.check(call.authorization, "refresh")
    return _tokens(call, claims["client_type"], claims["sub"])


def _tokens(call: Call, kind: Kind, number: int) -> object:
    links = call.backend.links
    return call.backend.mint.pair(kind, number) | {
        "refresh_url": links.path("token/refresh"),
        f"{kind}_url": links.path(f"{kind}/{number}"),
    }


def give_container_token(call: Call) -> object:
    """Give a node the token of one of its containers."""
    body, caller = call.body(), call.caller
    row = call.backend.database.row("SELECT * FROM task_view WHERE id = ?", body.number("task_id"))
    if row is None:
        raise bad("Parent task does not exist!")
    _check_container(call, row, body)
    claims = {
        "node_id": caller.id,
        "organization_id": caller.organization_id,
        "collaboration_id": row["collaboration_id"],
        "study_id": None,
        "store_id": None,
        "task_id": row["id"],
        "image": row["image"],
        "databases": databases_of(row),
    }
    return {"container_token": call.backend.mint.container_token(claims)}


def _check_container(call: Call, task: Row, body: Body) -> None:
    if body.text("image") != task["image"]:
        raise denied("Image and task do no match")
    if task["collaboration_id"] not in call.caller.collaborations:
        raise denied("You are not within the collaboration")
    if Status(task["status"]) not in OPEN:
        raise bad("Task is already finished!")


def databases_of(task: Row) -> list[dict[str, object]]:
    """Give the databases of a task as they were asked for."""
    return [
        json.loads(wanted["parameters"]) | {"label": wanted["label"]}
        for wanted in json.loads(task["databases"])
    ]


def validate_node(call: Call) -> object:
    """Tell somebody who was shown a node's token whose it is."""
    row = call.backend.database.row("SELECT * FROM node WHERE id = ?", call.caller.id)
    return {
        "msg": "Token is valid",
        "node_id": call.caller.id,
        "name": row["name"] if row else "",
        "organization_id": call.caller.organization_id,
    }


def validate_user(call: Call) -> object:
    """Tell somebody who was shown a user's token whose it is."""
    row = call.backend.database.row("SELECT * FROM user WHERE id = ?", call.caller.id)
    return {
        "msg": "Token is valid",
        "user_id": call.caller.id,
        "username": row["username"] if row else "",
        "email": row["email"] if row else "",
        "organization_id": call.caller.organization_id,
    }


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
