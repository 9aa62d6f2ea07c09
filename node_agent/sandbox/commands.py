"""The `sandbox` commands.

Owns their words and what they print. Must not know how a server works. Parts are imported when they are called, so
that `--help` is quick.
"""

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from node_agent.sandbox.server import SandboxServer

# a backspace of its own on a line tells click to leave the paragraph as it is
_EXAMPLES: Final = """\b
Examples:
  node-agent sandbox server
  node-agent sandbox server --port 7601 --organizations north,south --state-dir ./sandbox
"""


@click.group()
def sandbox() -> None:
    """Try federated analysis on this machine: for demos, development and tests only."""


@sandbox.command(epilog=_EXAMPLES)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0, the default, takes a free one.",
)
@click.option(
    "--api-path", default="/api", show_default=True, help="Path of the REST interface; may be empty."
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep everything; without it, all is forgotten at the end.",
)
@click.option(
    "--organizations", default="alpha,beta,gamma", show_default=True, help="Names, separated by commas."
)
@click.option("--json", "as_json", is_flag=True, help="Print the connection and the credentials as JSON.")
def server(
    host: str, port: int, api_path: str, state_dir: Path | None, organizations: str, *, as_json: bool
) -> None:
    """Run a coordinating server in the foreground, until Ctrl-C or SIGTERM.

    It makes one collaboration of all organizations, with a node for each and a user of the organization's name, and
    prints their keys and passwords. A state directory that holds a sandbox already is used as it is.
    """
    from node_agent import logs
    from node_agent.sandbox.server import Plan, SandboxServer
    from node_agent.sandbox.server.instance import PURPOSE

    logs.set_up(level="info", form="auto")
    names = [name.strip() for name in organizations.split(",") if name.strip()]
    ended = _ended_by_signal()
    embedded = SandboxServer(Plan.of(names), host=host, port=port, api_path=api_path, state_dir=state_dir)
    with embedded:
        click.echo(PURPOSE, err=True)
        click.echo(json.dumps(connection(embedded)) if as_json else connection_text(embedded))
        ended.wait()


def _ended_by_signal() -> threading.Event:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def connection(embedded: "SandboxServer") -> dict[str, object]:
    """Give everything that users and nodes need to connect, secrets included."""
    host, _, port = embedded.root.rpartition(":")
    return {
        "url": embedded.url,
        "server_url": host,
        "port": int(port),
        "api_path": embedded.url.removeprefix(embedded.root),
        "collaboration": {"id": embedded.collaboration_id, "name": next(iter(embedded.collaboration_ids))},
        "organizations": [
            {
                "id": number,
                "name": name,
                "username": name,
                "password": embedded.passwords[name].reveal(),
                "node_id": embedded.node_ids.get(name),
                "api_key": embedded.credentials.api_key(name).reveal(),
            }
            for name, number in embedded.organization_ids.items()
        ],
    }


def connection_text(embedded: "SandboxServer") -> str:
    """Give the same for people, with the lines that connect the vantage6 Python client."""
    host, _, port = embedded.root.rpartition(":")
    first = embedded.organizations[0]
    rows = [
        f"  {name:<12} user {name}, password {embedded.passwords[name].reveal()},"
        f" node {embedded.node_ids.get(name)}, API key {embedded.credentials.api_key(name).reveal()}"
        for name in embedded.organizations
    ]
    return "\n".join(
        [
            f"Coordinating server: {embedded.url}",
            f"Collaboration {embedded.collaboration_id}, with the organizations",
            *rows,
            "From Python, with vantage6-client 4.15.2:",
            "  from vantage6.client import UserClient",
            f"  client = UserClient({host!r}, {port}, {embedded.url.removeprefix(embedded.root)!r})",
            f"  client.authenticate({first!r}, {embedded.passwords[first].reveal()!r})",
            "  client.setup_encryption(None)",
            "Ctrl-C ends it.",
        ]
    )
