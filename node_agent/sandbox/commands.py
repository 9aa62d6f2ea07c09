"""The `sandbox` commands.

Owns their words and what they print. Must not know how a server, a node or a task works. Parts are imported when they
are called, so that `--help` is quick.
"""

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from node_agent.options import examples, json_option

if TYPE_CHECKING:
    from node_agent.sandbox.place import Place
    from node_agent.sandbox.researcher import Order
    from node_agent.sandbox.standing import Standing
    from node_agent.sandbox.trying import Network

_EXIT_FAILED: Final = 1
_EXIT_NOT_RUNNING: Final = 3
_MOST_NODES: Final = 24


def _examples(*lines: str) -> str:
    return examples(*(f"sandbox {line}" for line in lines))


_name_option = click.option(
    "--name", default="default", show_default=True, help="Which sandbox; there may be several."
)


@click.group()
def sandbox() -> None:
    """Try federated analysis on this machine.

    For demos, development and tests only. `up` starts a server and nodes in the background, `run` sends a task
    to them, `down` leaves nothing behind.
    """


# --- server -----------------------------------------------------------------------------------------------------


@sandbox.command(
    epilog=_examples("server", "server --port 7601 --organizations north,south --state-dir ./sandbox")
)
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
    """Run a coordinating server alone, in the foreground.

    It ends with Ctrl-C or SIGTERM. It makes one collaboration of all organizations, with a node for each and a user
    of the organization's name, and prints their keys and passwords. A state directory that holds a sandbox already is
    used as it is.
    """
    from node_agent import logs
    from node_agent.sandbox.connection import Connection, server_text
    from node_agent.sandbox.server import Plan, SandboxServer
    from node_agent.sandbox.server.instance import PURPOSE

    logs.set_up(level="info", form="auto")
    ended = _ended_by_signal()
    plan = Plan.of(_words(organizations))
    embedded = SandboxServer(plan, host=host, port=port, api_path=api_path, state_dir=state_dir)
    with embedded:
        click.echo(PURPOSE, err=True)
        connection = Connection.of(embedded)
        click.echo(json.dumps(connection.as_dict()) if as_json else server_text(connection))
        ended.wait()


def _ended_by_signal() -> threading.Event:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


# --- up ---------------------------------------------------------------------------------------------------------


@sandbox.command(
    epilog=_examples("up", "up --nodes 2 --name second", "up --data north.csv,south.csv --image 'my-lab/*'")
)
@_name_option
@click.option(
    "--nodes",
    type=click.IntRange(1, _MOST_NODES),
    help="How many; as many as there are data files, 3 without data.",
)
@click.option(
    "--data",
    default="",
    metavar="FILES",
    help="One file for each node, separated by commas; made up if not given.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="PATTERN",
    help="What may run; any image if not given. Repeatable.",
)
@json_option
def up(name: str, nodes: int | None, data: str, images: Sequence[str], *, as_json: bool) -> None:
    """Start a server and nodes in the background.

    It waits until every node is online and prints how a researcher connects. The server listens on loopback only, the
    passwords are random. Unless `--image` says otherwise the nodes run any image, and they take what was built on this
    machine before they look into a registry. Needs root and a container engine.
    """
    from node_agent.sandbox.place import place_of
    from node_agent.sandbox.raising import Blueprint, bring_up

    _quiet()
    place = place_of(name)
    blueprint = Blueprint.of(nodes=nodes, sources=[Path(file) for file in _words(data)], images=images)
    with _terminated_as_interrupted():
        connection = bring_up(place, blueprint, say=_say)
    if as_json:
        click.echo(json.dumps(connection.as_dict(), indent=2))
        return
    _show_way_in(place, connection, any_image=not images)


def _show_way_in(place: "Place", connection: Any, *, any_image: bool) -> None:
    from node_agent.sandbox.connection import researcher_text

    named = "" if place.name == "default" else f" --name {place.name}"
    click.echo("\nFor demos, development and tests only.")
    if any_image:
        click.echo("The nodes run any image of this machine, and pull others from their registry.")
    click.echo("\n" + researcher_text(connection))
    click.echo(
        "\nNext:\n"
        f"  node-agent sandbox run{named} IMAGE --method METHOD --kwargs '{{…}}'\n"
        f"  node-agent sandbox status{named}\n"
        f"  node-agent sandbox down{named}\n"
        f"Logs and data: {place.folder}"
    )


def _say(line: str) -> None:
    click.echo(line, err=True)


def _quiet() -> None:
    from node_agent import logs

    # the answer of a command is its own output; what it logs on the way matters only when it fails
    logs.set_up(level="error", form="console")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Clean up after SIGTERM as after Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- run --------------------------------------------------------------------------------------------------------


@sandbox.command(
    epilog=_examples(
        'run my-lab/average --method partial_average --kwargs \'{"column": "age"}\'',
        "run my-lab/average --method central_average --args '[\"age\"]' --organizations alpha",
    )
)
@click.argument("image")
@click.option("--method", required=True, help="Which function of the algorithm.")
@click.option("--kwargs", default="{}", metavar="JSON", help="Its arguments by name, a JSON object.")
@click.option("--args", default="[]", metavar="JSON", help="Its arguments by position, a JSON list.")
@click.option("--organizations", default="", help="Who is to run it, separated by commas; all if not given.")
@click.option(
    "--databases", default="default", show_default=True, help="Labels, separated by commas; '' for none."
)
@_name_option
@json_option
def run(
    *,
    image: str,
    method: str,
    kwargs: str,
    args: str,
    organizations: str,
    databases: str,
    name: str,
    as_json: bool,
) -> None:
    """Send a task and follow it to its end.

    IMAGE is the algorithm: any image on this machine, also one built a moment ago. Shows how far each run is, then
    results and logs. A method that asks other nodes itself is sent to one organization. Exit code 0 when every run
    completed, 1 when not. Ctrl-C kills the task.
    """
    from node_agent.sandbox.place import existing_place
    from node_agent.sandbox.researcher import Order
    from node_agent.sandbox.trying import Network

    _quiet()
    by_name, by_position = _parsed("--kwargs", kwargs, dict), _parsed("--args", args, list)
    network = Network.at(existing_place(name))
    order = Order(
        image=image,
        method=method,
        organizations=network.numbers_of(_words(organizations)),
        collaboration_id=network.connection.collaboration_id,
        args=by_position,
        kwargs=by_name,
        databases=tuple(_words(databases)),
    )
    with _terminated_as_interrupted():
        completed = _follow(network, order, as_json=as_json)
    if not completed:
        raise click.exceptions.Exit(_EXIT_FAILED)


def _parsed(option: str, text: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(
            f"{option} is not JSON: {error}. Quote it for the shell: '{{\"a\": 1}}'."
        ) from error
    if not isinstance(value, kind):
        raise click.UsageError(f"{option} must be a JSON {'object' if kind is dict else 'list'}.")
    return value


def _follow(network: "Network", order: "Order", *, as_json: bool) -> bool:
    from node_agent.sandbox import showing
    from node_agent.sandbox.trying import follow

    if as_json:
        ended = follow(network, order, show=showing.nothing)
        click.echo(json.dumps(ended.as_dict(), indent=2, ensure_ascii=False))
        return ended.is_completed
    try:
        with showing.progress() as show:
            ended = follow(network, order, show=show)
    except KeyboardInterrupt:
        _say("The task is killed.")
        raise
    click.echo(showing.ended_text(ended))
    return ended.is_completed


# --- status -----------------------------------------------------------------------------------------------------


@sandbox.command(epilog=_examples("status", "status --name second --json"))
@click.option("--name", help="Which sandbox, with all there is to know; all of them in short if not given.")
@json_option
def status(name: str | None, *, as_json: bool) -> None:
    """Say which sandboxes there are and how they are.

    With `--name`, or when there is only one, also how a researcher connects, password included. Exit code 3 when one
    of them is not running, or there is none.
    """
    from node_agent.sandbox.place import all_places, existing_place
    from node_agent.sandbox.standing import standing_of

    places = all_places() if name is None else (existing_place(name),)
    standings = [standing_of(place) for place in places]
    if as_json:
        click.echo(json.dumps([standing.as_dict() for standing in standings], indent=2))
    else:
        click.echo(_standing_text(standings))
    if not standings or not all(standing.running for standing in standings):
        raise click.exceptions.Exit(_EXIT_NOT_RUNNING)


def _standing_text(standings: "Sequence[Standing]") -> str:
    from node_agent.sandbox.standing import long_text, short_text

    if not standings:
        return "There is no sandbox. Bring one up: node-agent sandbox up"
    if len(standings) == 1:
        return long_text(standings[0])
    return "\n".join(map(short_text, standings))


# --- down -------------------------------------------------------------------------------------------------------


@sandbox.command(epilog=_examples("down", "down --name second", "down --all"))
@_name_option
@click.option("--all", "everything", is_flag=True, help="Every sandbox.")
def down(name: str, *, everything: bool) -> None:
    """Stop a sandbox and leave nothing behind.

    Ends server and nodes, removes their containers, networks, firewall rules and files. Images stay. May be repeated.
    """
    from node_agent.sandbox.lowering import take_down
    from node_agent.sandbox.place import all_places, place_of

    _quiet()
    places = all_places() if everything else (place_of(name),)
    there = [place for place in places if place.exists]
    for place in there:
        take_down(place)
        _say(f"The sandbox '{place.name}' is gone.")
    if not there:
        others = ", ".join(place.name for place in all_places()) or "none"
        _say(f"Nothing to take down. Sandboxes that are there: {others}.")
