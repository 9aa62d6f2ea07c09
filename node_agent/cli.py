"""The commands and their exit codes.

Owns the words of the command line. Must not know how anything is done: each command loads the configuration, calls
one part, and shows what it gives. Parts are imported when they are called, so that `--help` is quick.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node_agent import __version__, screen
from node_agent.compute.commands import grant, offer
from node_agent.config_commands import config as config_group
from node_agent.errors import AccessDenied, ConfigError, NodeAgentError, Transient
from node_agent.options import config_option, examples, json_option, verbatim
from node_agent.sandbox.commands import sandbox

if TYPE_CHECKING:
    from node_agent.checks import CheckResult
    from node_agent.commands import Parts
    from node_agent.service import RunningAgent

EXIT_FINE: Final = 0
EXIT_FAILING: Final = 1
EXIT_NOT_RUNNING: Final = 3
EXIT_USAGE: Final = 64
EXIT_BUG: Final = 70
EXIT_LATER: Final = 75
EXIT_DENIED: Final = 77
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130
EXIT_OF: Final[tuple[tuple[type[NodeAgentError], int], ...]] = (
    (ConfigError, EXIT_CONFIG),
    (AccessDenied, EXIT_DENIED),
    (Transient, EXIT_LATER),
)
_PROGRESS_SECONDS: Final = 2.0
_REPORTED: Final = frozenset({"reported", "removed"})
_NOT_BEGUN: Final = "received"
"""The state of a run that the agent knows of and has not claimed: to the server it is pending, as if nobody had seen it."""


class _Digest(click.ParamType[str]):
    """The digest of an image's content."""

    name = "sha256:…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is no digest."""
        from node_agent.domain.policy import DIGEST

        if not DIGEST.match(str(value)):
            self.fail("a digest is `sha256:` and 64 hexadecimal digits", param, ctx)
        return str(value)


_EXIT_CODES: Final = verbatim(
    "Exit codes:",
    "  0   fine                            70  bug: please report it",
    "  1   check, sandbox run: a failure   75  something is away: try later",
    "  3   status, drain: not running      77  the server denies access",
    "  64  wrong usage                     78  the configuration needs a correction",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EXIT_CODES
)
@click.version_option(__version__, message="node-agent %(version)s")
def commands() -> None:
    """Run federated algorithms beside the data of one organization."""


@commands.command(epilog=examples("run -c /etc/node-agent/alpha.yaml"))
@config_option
@click.pass_obj
def run(parts: "Parts", config: Path) -> None:
    """Run the agent in the foreground.

    SIGTERM stops the agent and leaves containers running; the next start adopts them. A second SIGTERM stops it at
    once. SIGHUP has it read its configuration again. The log goes to standard error.
    """
    from node_agent import lean

    with lean.undisturbed():
        lean.travel_light()
        from node_agent.reloading import set_up_log

    settings = parts.load(config)
    set_up_log(settings)
    parts.run(settings)


@commands.command(
    epilog=examples(
        "check -c /etc/node-agent/alpha.yaml", "check -c /etc/node-agent/alpha.yaml --offline --json"
    )
)
@config_option
@json_option
@click.option("--offline", is_flag=True, help="Leave the server out.")
@click.pass_obj
def check(parts: "Parts", config: Path, *, as_json: bool, offline: bool) -> None:
    """Check configuration, machine and server.

    Each check gives a line, with what to do when it fails. A running agent is not disturbed; without one, the
    isolated network is made as a start would make it, and proven. Exit code 0 when nothing fails, 1 when something does,
    78 when the configuration itself is at fault.
    """
    results = _checked(
        parts, config, ("server",) if offline else (), show=_ignore if as_json else _show_result
    )
    if as_json:
        click.echo(
            screen.as_json({"ok": not _failing(results), "checks": [result.as_dict() for result in results]})
        )
    elif not _failing(results):
        doubtful = any(result.verdict == "warning" for result in results)
        click.echo(
            "Nothing fails; the lines with ! deserve a look." if doubtful else "Everything is as it must be."
        )
    if _failing(results[:1]):
        raise click.exceptions.Exit(EXIT_CONFIG)
    if _failing(results):
        raise click.exceptions.Exit(EXIT_FAILING)


def _checked(
    parts: "Parts", config: Path, skipped: Sequence[str], *, show: Callable[["CheckResult"], None]
) -> list["CheckResult"]:
    from node_agent.checks import configuration_faulty, configuration_fine

    try:
        settings = parts.load(config)
    except ConfigError as error:
        found = [configuration_faulty(error)]
        show(found[0])
        return found
    results = []
    for result in chain([configuration_fine(config)], parts.check(settings, skipped)):
        show(result)
        results.append(result)
    return results


def _show_result(result: "CheckResult") -> None:
    click.echo(f"{screen.mark(result.verdict)} {result.name:<14} {screen.plain(result.found)}")
    for fault in result.faults:
        click.echo(f"    {screen.plain(fault)}")
    if result.todo:
        click.echo(f"    → {screen.plain(result.todo)}")


def _ignore(_result: "CheckResult") -> None:
    return


def _failing(results: Iterable["CheckResult"]) -> bool:
    return any(result.verdict == "fail" for result in results)


@commands.command(
    epilog=examples(
        "runs -c /etc/node-agent/alpha.yaml", "runs -c /etc/node-agent/alpha.yaml --limit 1000 --json"
    )
)
@config_option
@json_option
@click.option(
    "-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="How many."
)
@click.pass_obj
def runs(parts: "Parts", config: Path, *, as_json: bool, limit: int) -> None:
    """List the runs of the journal, newest first.

    It works while the agent runs.
    """
    state_dir = parts.load_place(config).state_dir
    history = parts.history(state_dir, limit)
    if any(row["state"] == "received" for row in history):
        history = screen.with_queue(history, parts.sight(state_dir))
    if as_json:
        click.echo(screen.as_json([screen.with_times(row) for row in history]))
        return
    if not history:
        click.echo("No runs yet.")
        return
    screen.show_table(screen.run_rows(history))


@commands.command(
    epilog=examples("status -c /etc/node-agent/alpha.yaml", "status -c /etc/node-agent/alpha.yaml --json")
)
@config_option
@json_option
@click.pass_obj
def status(parts: "Parts", config: Path, *, as_json: bool) -> None:
    """Say how the agent is.

    Whether it is alive, online and busy, and what it owes the server. Exit code 0 when it is running, 3 when it is not.
    """
    settings = parts.load_place(config)
    seen, api = parts.sight(settings.state_dir), parts.see_api(settings)
    if as_json:
        click.echo(screen.as_json(screen.status_facts(seen, api)))
    else:
        click.echo("\n".join([*screen.status_lines(seen), *screen.api_lines(api)]))
    if not seen.running:
        raise click.exceptions.Exit(EXIT_NOT_RUNNING)


@commands.command(epilog=examples("drain -c /etc/node-agent/alpha.yaml"))
@config_option
@click.pass_obj
def drain(parts: "Parts", config: Path) -> None:
    """Finish what is here, then end the agent.

    The agent accepts nothing new, finishes and reports what it has, and ends; this command waits for it.
    Ctrl-C stops the waiting, not the draining. Exit code 3 when no agent is running, 1 when it ended before
    everything it had begun was reported.
    """
    state_dir = parts.load_place(config).state_dir
    pid = parts.sight(state_dir).pid
    if pid is None:
        click.echo("No agent is running.")
        raise click.exceptions.Exit(EXIT_NOT_RUNNING)
    with parts.agent(pid) as agent:
        # asked again now that the process is held: its number may have gone to another one
        if parts.sight(state_dir).pid == pid:
            agent.drain()
            click.echo(f"The agent (process {pid}) takes nothing new any more.")
        _wait_for_end(parts, agent, state_dir)
    _say_what_is_left(parts, state_dir)


def _wait_for_end(parts: "Parts", agent: "RunningAgent", state_dir: Path) -> None:
    last = ""
    while not agent.ended_within(_PROGRESS_SECONDS):
        said = parts.sight(state_dir).presence
        line = (
            ""
            if said is None
            else f"{said.working} runs at work, {said.waiting} not begun, {said.owed} reports owed"
        )
        if line != last:
            click.echo(line)
        last = line


def _say_what_is_left(parts: "Parts", state_dir: Path) -> None:
    states = Counter(row["state"] for row in parts.history(state_dir, 1000))
    if left := sum(number for state, number in states.items() if state not in _REPORTED | {_NOT_BEGUN}):
        click.echo(
            f"The agent has ended, but {left} runs are not reported; its next start goes on with them."
        )
        raise click.exceptions.Exit(EXIT_FAILING)
    click.echo("The agent has ended; everything is reported.")
    if states[_NOT_BEGUN]:
        click.echo(f"Not begun, and waiting for the next start: {states[_NOT_BEGUN]}.")


@commands.command(
    epilog=examples(
        "prune -c /etc/node-agent/alpha.yaml --dry-run", "prune -c /etc/node-agent/alpha.yaml --json"
    )
)
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.pass_obj
def prune(parts: "Parts", config: Path, *, as_json: bool, dry_run: bool) -> None:
    """Remove what may go.

    Containers, networks, volumes and folders of this agent that belong to no open run, images it pulled that nobody used
    for long (images.keep, images.disk_pressure), and runs that are long over (keep.runs). A running agent does it itself,
    now and not only from time to time. Nothing without the agent's label is touched. Exit code 1 when something had to
    stay.
    """
    settings = parts.load_place(config)
    pruned = parts.would_go(settings) if dry_run else parts.prune(settings)
    if as_json:
        click.echo(screen.as_json(screen.pruned_facts(pruned)))
    else:
        click.echo("\n".join(screen.pruned_lines(pruned, future=dry_run)))
    if pruned.left:
        raise click.exceptions.Exit(EXIT_FAILING)


@commands.group()
def key() -> None:
    """Make, show or upload the organization's key.

    The RSA key of encrypted collaborations. All nodes and users of an organization share one: make it once, and copy it.
    """


@key.command(
    epilog=examples(
        "key create -c /etc/node-agent/alpha.yaml",
        "key create -c /etc/node-agent/alpha.yaml --out /etc/node-agent/alpha.pem",
    )
)
@config_option
@click.option(
    "--out",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Write here, not to encryption.private_key.",
)
@click.pass_obj
def create(parts: "Parts", config: Path, *, out: Path | None) -> None:
    """Make the organization's first private key.

    It goes to a new file that only its owner may read; nothing is overwritten.
    """
    made = parts.create_key(parts.load_place(config), out)
    click.echo("\n".join(screen.new_key_lines(made)))


@key.command(
    epilog=examples("key show -c /etc/node-agent/alpha.yaml", "key show -c /etc/node-agent/alpha.yaml --json")
)
@config_option
@json_option
@click.pass_obj
def show(parts: "Parts", config: Path, *, as_json: bool) -> None:
    """Show the public part and its fingerprint.

    Two people who see the same fingerprint have the same key.
    """
    found = parts.show_key(parts.load_place(config))
    click.echo(screen.as_json(screen.key_facts(found)) if as_json else "\n".join(screen.key_lines(found)))


@key.command(
    epilog=examples(
        "key upload -c /etc/node-agent/alpha.yaml", "key upload -c /etc/node-agent/alpha.yaml --replace"
    )
)
@config_option
@click.option("--replace", is_flag=True, help="Also when the server has another key.")
@click.pass_obj
def upload(parts: "Parts", config: Path, *, replace: bool) -> None:
    """Give the server the public part.

    A start does this by itself when the server has no key. After --replace, other nodes and users of the organization can
    read nothing new until they have the same private key. Exit code 78 when the server has another key, and --replace is
    not given.
    """
    settings = parts.load(config)
    done = parts.replace_key(settings) if replace else parts.upload_key(settings)
    click.echo("\n".join(screen.upload_lines(done)))


@key.command(
    "list",
    epilog=examples(
        "key list -c /etc/node-agent/alpha.yaml", "key list -c /etc/node-agent/alpha.yaml --json"
    ),
)
@config_option
@json_option
@click.pass_obj
def list_(parts: "Parts", config: Path, *, as_json: bool) -> None:
    """List the keys of organizations this node holds to.

    The first key seen of an organization is pinned. A key that the server shows instead is offered here, and counts once
    it is accepted.
    """
    found = parts.list_keys(parts.load_place(config))
    click.echo(
        screen.as_json([screen.pin_facts(pin) for pin in found])
        if as_json
        else "\n".join(screen.pin_lines(found))
    )


@key.command(
    epilog=examples(
        "key accept -c /etc/node-agent/alpha.yaml 7", "key accept -c /etc/node-agent/alpha.yaml 7 --json"
    )
)
@config_option
@json_option
@click.argument("organization", type=click.IntRange(min=1))
@click.pass_obj
def accept(parts: "Parts", config: Path, *, organization: int, as_json: bool) -> None:
    """Accept the new key of an organization.

    Compare its fingerprint with that organization first, and not by way of the server. Works while the agent runs: results
    that were held go out by themselves within a minute. Exit code 78 when no other key is offered.
    """
    done = parts.accept_key(parts.load_place(config), organization)
    click.echo(
        screen.as_json(screen.accepted_facts(done)) if as_json else "\n".join(screen.accepted_lines(done))
    )


@commands.group()
def policy() -> None:
    """Ask the owner's policy.

    What it would say of a task, and why.
    """


@policy.command(
    epilog=examples(
        "policy explain -c /etc/node-agent/alpha.yaml --image registry.example.org/approved/average:1.0",
        "policy explain -c /etc/node-agent/alpha.yaml --image x/y --user 3 --organization 2 --method partial_average",
    )
)
@config_option
@json_option
@click.option("--image", required=True, help="The image, as a task names it.")
@click.option("--digest", type=_Digest(), help="The digest of the content that would run.")
@click.option("--user", metavar="ID", help="Who asks, by id or name.")
@click.option("--organization", metavar="ID", help="Whose user asks, by id or name.")
@click.option(
    "--own-organization", type=click.IntRange(min=1), metavar="ID", help="This node's own organization."
)
@click.option("--method", help="The method that is called.")
@click.option("--database", "databases", multiple=True, help="A label that is asked for; '' for none.")
@click.option("--store", metavar="URL", help="The algorithm store the task names.")
@click.pass_obj
def explain(
    parts: "Parts", /, config: Path, *, as_json: bool, databases: tuple[str, ...], **known: Any
) -> None:
    """Say what would happen to a task, and why.

    Every rule in order with what it finds, then the verdict. No server, store or registry is asked: what is not told by
    an option is not known. Exit code 0 when the task would be allowed for sure, 1 when it would be refused or when the
    answer depends on something unknown.
    """
    from node_agent import explaining
    from node_agent.domain.verdict import Answer

    labels = tuple(label for label in databases if label) if databases else None
    question = explaining.Question(databases=labels, **known)
    verdict = explaining.explain(parts.load_place(config).policy, question)
    if as_json:
        click.echo(screen.as_json(explaining.as_dict(verdict, question)))
    else:
        click.echo("\n".join(screen.plain(line) for line in explaining.lines(verdict)))
    if verdict.answer is not Answer.YES:
        raise click.exceptions.Exit(EXIT_FAILING)


@commands.group()
def network() -> None:
    """Set up or remove the isolated network.

    The network and the firewall rule that closes this host to algorithms; needs root.

    A service whose agent has no root rights runs `network ensure` as a root step before it starts.
    """


@network.command(epilog=examples("network ensure -c /etc/node-agent/alpha.yaml"))
@config_option
@click.pass_obj
def ensure(parts: "Parts", config: Path) -> None:
    """Create network and rule, or check them."""
    click.echo(parts.ensure_network(parts.load_place(config)))


@network.command(epilog=examples("network remove -c /etc/node-agent/alpha.yaml"))
@config_option
@click.pass_obj
def remove(parts: "Parts", config: Path) -> None:
    """Remove the network and the rule of this agent."""
    click.echo(parts.remove_network(parts.load_place(config)))


# the words of these commands only; their parts are imported when they are called, like all others
commands.add_command(sandbox)
commands.add_command(config_group)
commands.add_command(offer)
commands.add_command(grant)


class _Lazy:
    """Loads the parts when a command asks for the first of them: `--help` needs none."""

    def __getattr__(self, name: str) -> Any:
        from node_agent.commands import PARTS

        return getattr(PARTS, name)


def main(argv: Sequence[str] | None = None, *, parts: "Parts | None" = None) -> int:
    """Run one command and give its exit code."""
    try:
        result = commands.main(args=argv, prog_name="node-agent", standalone_mode=False, obj=parts or _Lazy())
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except BrokenPipeError:
        # the reader of a pipe went away; the interpreter must not stumble over it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FINE
    except Exception as error:  # noqa: BLE001 - the last edge: every error becomes an exit code here
        return _report(error)
    return result if isinstance(result, int) else EXIT_FINE


def _report(error: Exception) -> int:
    for kind, code in EXIT_OF:
        if isinstance(error, kind):
            _explain(error)
            return code
    return _report_bug(error)


def _explain(error: NodeAgentError) -> None:
    from node_agent import logs

    if logs.writes_json():
        # whoever reads the lines as JSON must not find anything else among them
        logs.say_ended(error.message, hint=error.hint, faults=getattr(error, "faults", ()))
        return
    click.echo(f"node-agent: {screen.plain(error.message)}", err=True)
    for fault in getattr(error, "faults", ()):
        click.echo(f"  {screen.plain(fault)}", err=True)
    if error.hint:
        click.echo(f"  → {screen.plain(error.hint)}", err=True)


def _report_bug(error: Exception) -> int:
    import structlog

    from node_agent import logs

    if not structlog.is_configured():
        logs.set_up(level="info", form="auto")
    structlog.get_logger().error("agent_bug", version=__version__, exc_info=error)
    click.echo("node-agent: This is a bug. Please report it with the line `agent_bug` above.", err=True)
    return EXIT_BUG
