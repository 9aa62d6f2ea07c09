"""Who this node is, and the organizations around it."""

from typing import Annotated

from pydantic import Field

from node_agent.domain.ports import NodeIdentity
from node_agent.domain.task import OrganizationId
from node_agent.server.exchange import Reply
from node_agent.server.wire.shapes import Id, Link, Name, Wire, json_body, shaped

_ONLINE = "online"


class _Node(Wire):
    id: Id
    name: Name
    organization: Link
    collaboration: Link
    status: str | None = None


class _Organization(Wire):
    name: Name


class _KeyHolder(Wire):
    public_key: Annotated[str, Field(max_length=65_536)] | None = None


class _Version(Wire):
    version: Annotated[str, Field(max_length=100)]


class _Collaboration(Wire):
    name: Name
    encrypted: bool


def parse_version(reply: Reply) -> str:
    """Read which version of the protocol the server speaks."""
    return shaped(_Version, reply.json(), reply.call).version


def parse_node(reply: Reply) -> tuple[int, int]:
    """Read the organization and the collaboration of a node."""
    node = shaped(_Node, reply.json(), reply.call)
    return node.organization.id, node.collaboration.id


def parse_identity(*, node: Reply, organization: Reply, collaboration: Reply) -> NodeIdentity:
    """Read who this node is."""
    me = shaped(_Node, node.json(), node.call)
    mine = shaped(_Collaboration, collaboration.json(), collaboration.call)
    return NodeIdentity(
        node_id=me.id,
        node_name=me.name,
        organization_id=OrganizationId(me.organization.id),
        organization_name=shaped(_Organization, organization.json(), organization.call).name,
        collaboration_id=me.collaboration.id,
        collaboration_name=mine.name,
        encrypted=mine.encrypted,
        seen_online=me.status == _ONLINE,
    )


def parse_organization_name(reply: Reply) -> str:
    """Read the name of an organization."""
    return shaped(_Organization, reply.json(), reply.call).name


def parse_public_key(reply: Reply) -> str:
    """Read the public key of an organization, as the server keeps it; empty when there is none."""
    return shaped(_KeyHolder, reply.json(), reply.call).public_key or ""


def public_key_body(key: str) -> bytes:
    """Write the message that gives the server a public key."""
    return json_body(public_key=key)
