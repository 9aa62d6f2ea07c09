"""What users and nodes need to connect to a sandbox: addresses, names, ids and secrets.

Owns its two forms, for people and for programs. Must not know what runs at the address.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError

if TYPE_CHECKING:
    from node_agent.sandbox.server import SandboxServer

CLIENT = "vantage6-client 4.15.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One organization, its researcher and its node."""

    id: int
    name: str
    username: str
    password: Secret
    node_id: int | None
    api_key: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One sandbox, from outside."""

    url: str
    """The REST base."""
    server_url: str
    """Scheme and host, as the Python client takes them."""
    port: int
    api_path: str
    collaboration_id: int
    collaboration: str
    members: tuple[Member, ...]

    @property
    def researcher(self) -> Member:
        """Give the member whose user sends tasks when nobody in particular is asked to."""
        return self.members[0]

    def member(self, name: str) -> Member | None:
        """Find an organization by its name."""
        return next((member for member in self.members if member.name == name), None)

    def organization(self, number: int) -> str:
        """Give the name of an organization."""
        return next((member.name for member in self.members if member.id == number), f"organization {number}")

    @classmethod
    def of(cls, server: "SandboxServer") -> Self:
        """Ask a running server."""
        host, _, port = server.root.rpartition(":")
        return cls(
            url=server.url,
            server_url=host,
            port=int(port),
            api_path=server.url.removeprefix(server.root),
            collaboration_id=server.collaboration_id,
            collaboration=next(iter(server.collaboration_ids)),
            members=tuple(
                Member(
                    id=number,
                    name=name,
                    username=name,
                    password=server.passwords[name],
                    node_id=server.node_ids.get(name),
                    api_key=server.credentials.api_key(name),
                )
                for name, number in server.organization_ids.items()
            ),
        )

    # --- for programs -------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Give everything as JSON knows it, secrets included."""
        return {
            "url": self.url,
            "server_url": self.server_url,
            "port": self.port,
            "api_path": self.api_path,
            "collaboration": {"id": self.collaboration_id, "name": self.collaboration},
            "organizations": [_as_dict(member) for member in self.members],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `as_dict` gave. Raises KeyError, TypeError."""
        return cls(
            url=content["url"],
            server_url=content["server_url"],
            port=content["port"],
            api_path=content["api_path"],
            collaboration_id=content["collaboration"]["id"],
            collaboration=content["collaboration"]["name"],
            members=tuple(_from_dict(entry) for entry in content["organizations"]),
        )


def _as_dict(member: Member) -> dict[str, Any]:
    return {
        "id": member.id,
        "name": member.name,
        "username": member.username,
        "password": member.password.reveal(),
        "node_id": member.node_id,
        "api_key": member.api_key.reveal(),
    }


def _from_dict(entry: Mapping[str, Any]) -> Member:
    return Member(
        id=entry["id"],
        name=entry["name"],
        username=entry["username"],
        password=Secret(entry["password"]),
        node_id=entry["node_id"],
        api_key=Secret(entry["api_key"]),
    )


def read_connection(file: Path) -> Connection | None:
    """Read the file a server wrote its connection into; None while it is not written yet."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    if not text.endswith("\n"):
        return None  # still being written
    try:
        return Connection.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"The sandbox's connection {file} cannot be read.",
            hint="Take the sandbox down and bring it up again.",
        ) from error


# --- for people -------------------------------------------------------------------------------------------------


def server_text(connection: Connection) -> str:
    """Show a server on its own: its address, and every organization with its secrets."""
    rows = [
        f"  {member.name:<12} user {member.username}, password {member.password.reveal()},"
        f" node {member.node_id}, API key {member.api_key.reveal()}"
        for member in connection.members
    ]
    return "\n".join(
        [
            f"Coordinating server: {connection.url}",
            f"Collaboration {connection.collaboration_id}, with the organizations",
            *rows,
            *client_lines(connection),
            "Ctrl-C ends it.",
        ]
    )


def researcher_text(connection: Connection) -> str:
    """Show what a researcher needs; the nodes have their keys already."""
    rows = [
        f"  {member.name:<10} id {member.id}, node {member.node_id},"
        f" user {member.username}, password {member.password.reveal()}"
        for member in connection.members
    ]
    return "\n".join(
        [
            f"Server         {connection.server_url}, port {connection.port}, API path {connection.api_path}",
            f"Collaboration  id {connection.collaboration_id}, {connection.collaboration}",
            "Organizations",
            *rows,
            *client_lines(connection),
        ]
    )


def client_lines(connection: Connection) -> list[str]:
    """Give the lines that connect the Python client."""
    user = connection.researcher
    return [
        f"From Python, with {CLIENT}:",
        "  from vantage6.client import UserClient",
        f"  client = UserClient({connection.server_url!r}, {connection.port}, {connection.api_path!r})",
        f"  client.authenticate({user.username!r}, {user.password.reveal()!r})",
        "  client.setup_encryption(None)",
    ]
