"""Routes about who takes part: users, organizations, collaborations, nodes."""

import base64
import binascii
import ipaddress

from node_agent.sandbox.server import links
from node_agent.sandbox.server.call import Answer, Call, moment, number
from node_agent.sandbox.server.database import Condition, Row, one_of
from node_agent.sandbox.server.listing import Listing, listed
from node_agent.sandbox.server.refusal import bad, bad_field, denied, missing

_ORGANIZATION_TEXTS = ("name", "domain", "address1", "address2", "zipcode", "country")

_USERS = Listing(
    source="user",
    filters={
        "username": ("username LIKE ?", str),
        "organization_id": ("organization_id = ?", number),
        "firstname": ("firstname LIKE ?", str),
        "lastname": ("lastname LIKE ?", str),
        "email": ("email LIKE ?", str),
    },
    sortable=("id", "username"),
)
_ORGANIZATIONS = Listing(
    source="organization",
    filters={
        "name": ("name LIKE ?", str),
        "country": ("country LIKE ?", str),
        "collaboration_id": (
            "id IN (SELECT organization_id FROM member WHERE collaboration_id = ?)",
            number,
        ),
    },
    sortable=("id", "name", "country"),
)
_COLLABORATIONS = Listing(
    source="collaboration",
    filters={
        "name": ("name LIKE ?", str),
        "encrypted": ("encrypted = ?", lambda text: text.lower() in {"1", "true"}),
        "organization_id": (
            "id IN (SELECT collaboration_id FROM member WHERE organization_id = ?)",
            number,
        ),
    },
    sortable=("id", "name"),
)
_NODES = Listing(
    source="node",
    filters={
        "name": ("name LIKE ?", str),
        "organization_id": ("organization_id = ?", number),
        "collaboration_id": ("collaboration_id = ?", number),
        "status": ("status = ?", str),
        "ip": ("ip = ?", str),
        "last_seen_from": ("last_seen >= ?", moment),
        "last_seen_till": ("last_seen <= ?", moment),
    },
    sortable=("id", "name", "status"),
)


# --- users ------------------------------------------------------------------------------------------------------


def users(call: Call) -> object:
    """List the users of the caller's organization."""
    own = one_of("organization_id", [call.caller.organization_id])
    return listed(call, _USERS, [own], lambda row: links.user(row, call.backend.links))


def user(call: Call) -> object:
    """Show a user of the caller's organization."""
    row = call.backend.database.row("SELECT * FROM user WHERE id = ?", call.id)
    if row is None:
        raise missing(f"user id={call.id} is not found")
    if row["organization_id"] != call.caller.organization_id:
        raise denied()
    return links.user(row, call.backend.links)


# --- organizations ----------------------------------------------------------------------------------------------


def _partners(call: Call) -> Condition:
    """Give the condition for organizations that share a collaboration with the caller, and its own."""
    shared = one_of("collaboration_id", call.caller.collaborations)
    return Condition(
        f"id = ? OR id IN (SELECT organization_id FROM member WHERE {shared.text})",  # noqa: S608 - marks only
        (call.caller.organization_id, *shared.values),
    )


def organizations(call: Call) -> object:
    """List the organizations the caller works with."""
    chosen = [_partners(call)]
    if wanted := call.query.get("ids"):
        chosen.append(one_of("id", [number(word) for word in wanted.split(",")]))
    return listed(call, _ORGANIZATIONS, chosen, lambda row: links.organization(row, call.backend.links))


def organization(call: Call) -> object:
    """Show an organization the caller works with."""
    return links.organization(_organization_row(call), call.backend.links)


def _organization_row(call: Call) -> Row:
    database, partners = call.backend.database, _partners(call)
    row = database.row("SELECT * FROM organization WHERE id = ?", call.id)
    if row is None:
        raise missing(f"Organization id={call.id} not found!")
    visible = f"SELECT 1 FROM organization WHERE id = ? AND ({partners.text})"  # noqa: S608 - marks only
    if database.row(visible, call.id, *partners.values) is None:
        raise denied()
    return row


def change_organization(call: Call) -> object:
    """Change the caller's own organization; nodes publish their public key so."""
    row, body = _organization_row(call), call.body()
    if row["id"] != call.caller.organization_id:
        raise denied()
    body.only({*_ORGANIZATION_TEXTS, "public_key"})
    new = {name: body.text_or(name, row[name]) for name in (*_ORGANIZATION_TEXTS, "public_key")}
    _check_public_key(new["public_key"])
    call.backend.database.change(
        "UPDATE organization SET name = ?, domain = ?, address1 = ?, address2 = ?, zipcode = ?, country = ?,"
        " public_key = ? WHERE id = ?",
        *new.values(),
        call.id,
    )
    return organization(call)


def _check_public_key(text: str) -> None:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_field("public_key", "Not base64 of a public key.") from None


# --- collaborations ---------------------------------------------------------------------------------------------


def collaborations(call: Call) -> object:
    """List the collaborations the caller is in."""
    chosen = [one_of("id", call.caller.collaborations)]
    return listed(call, _COLLABORATIONS, chosen, lambda row: _show_collaboration(call, row))


def collaboration(call: Call) -> object:
    """Show a collaboration the caller is in."""
    row = call.backend.database.row("SELECT * FROM collaboration WHERE id = ?", call.id)
    if row is None:
        raise missing(f"Collaboration id={call.id} not found!")
    if call.id not in call.caller.collaborations:
        raise denied()
    return _show_collaboration(call, row)


def _show_collaboration(call: Call, row: Row) -> object:
    shown = links.collaboration(row, call.backend.links)
    if "organizations" in call.included():
        members = call.backend.database.rows(
            "SELECT organization.* FROM organization JOIN member ON organization_id = id"
            " WHERE collaboration_id = ? ORDER BY id",
            row["id"],
        )
        shown["organizations"] = [links.organization(member, call.backend.links) for member in members]
    return shown


# --- nodes ------------------------------------------------------------------------------------------------------


def _show_node(call: Call, row: Row) -> object:
    return links.node(row, call.backend.links, call.backend.database)


def nodes(call: Call) -> object:
    """List nodes: users see those of their collaborations, nodes those of their organization."""
    chosen = [call.caller.sight]
    if call.caller.kind == "node":
        chosen.append(one_of("organization_id", [call.caller.organization_id]))
    return listed(call, _NODES, chosen, lambda row: _show_node(call, row))


def _node_row(call: Call) -> Row:
    row = call.backend.database.row("SELECT * FROM node WHERE id = ?", call.id)
    if row is None:
        raise missing(f"Node id={call.id} is not found!")
    own = row["organization_id"] == call.caller.organization_id
    if not own and (call.caller.kind == "node" or row["collaboration_id"] not in call.caller.collaborations):
        raise denied()
    return row


def node(call: Call) -> object:
    """Show a node."""
    return _show_node(call, _node_row(call))


def change_node(call: Call) -> object:
    """Change name or address of a node of the caller's organization."""
    row, body = _node_row(call), call.body()
    if row["organization_id"] != call.caller.organization_id:
        raise denied()
    body.only({"name", "ip", "clear_ip"})
    address = None if "clear_ip" in body else body.text_or("ip", row["ip"] or "") or None
    _check_address(address)
    name = body.text_or("name", row["name"])
    call.backend.database.change("UPDATE node SET name = ?, ip = ? WHERE id = ?", name, address, call.id)
    return node(call)


def _check_address(address: str | None) -> None:
    try:
        ipaddress.ip_address(address or "::")
    except ValueError:
        raise bad_field("ip", "Not a valid IP address.") from None


# --- what this server does not have -----------------------------------------------------------------------------


def nothing(call: Call) -> object:
    """List what this server has none of: studies, algorithm stores, roles, rules."""
    path = call.path
    return Answer(
        body={"data": [], "links": {"first": f"{path}?page=1", "self": f"{path}?page=1"}},
        headers={"total-count": "0"},
    )


def nothing_like_it(call: Call) -> object:
    """Refuse to show one of what this server has none of."""
    raise missing(f"id={call.id} is not found: the sandbox has none of these")


def blob_status(_: Call) -> object:
    """Say that results travel within messages."""
    return {"blob_store_enabled": False}


def unsupported(_: Call) -> object:
    """Refuse what this server does not do."""
    raise bad("The sandbox's server does not support this")
