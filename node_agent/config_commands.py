"""The commands around the configuration file: the way over from vantage6, the schema, what is in effect.

Owns their words on the command line. Must not know how anything is done; parts are imported when they are called.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node_agent import screen
from node_agent.options import config_option, examples, json_option

if TYPE_CHECKING:
    from node_agent.config.vantage6.moving import NewConfiguration

_FAULTY: Final = 1
_HEADINGS: Final = {
    "must": "To be corrected before the agent starts:",
    "decide": "To be decided by you; until then less is allowed than before:",
    "lost": "Not available here:",
    "changed": "Works otherwise than before:",
}


@click.group()
def config() -> None:
    """Write, check and show configuration files."""


@config.command(
    "import-vantage6", epilog=examples("config import-vantage6 alpha.yaml --out /etc/node-agent/alpha.yaml")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Where to write it.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option("--name", metavar="NAME", help="Name of this agent; the old file's name if not given.")
@click.option("--environment", metavar="NAME", help="Which one, when the file holds several.")
@json_option
def import_vantage6(
    file: Path, out: Path | None, name: str | None, environment: str | None, *, force: bool, as_json: bool
) -> None:
    """Make a configuration out of that of a vantage6 node.

    FILE is the YAML of a vantage6 version 4 (or 3) node. The new configuration has a comment for everything that is not as
    before. Without --out it is printed, without secrets; with --out it is written, and API key and passwords of
    registries into files beside it, all for their owner's eyes only. Exit code 1 when something must be corrected first.
    """
    from node_agent.config.vantage6 import moving

    folder = moving.DEFAULT_FOLDER if out is None else out.absolute().parent
    new = moving.convert(file, name=name, environment=environment, folder=folder)
    files = {} if out is None else moving.files_of(new, out.absolute())
    if not force:
        moving.refuse_existing(files)
    moving.write_files(files)
    if as_json:
        click.echo(screen.as_json(_facts(new, list(files))))
    else:
        _show(new, list(files))
    if new.faults:
        raise click.exceptions.Exit(_FAULTY)


def _facts(new: "NewConfiguration", files: list[Path]) -> dict[str, Any]:
    return {
        "name": new.name,
        "loads": not new.faults,
        "files": [str(path) for path in files],
        "configuration": new.shown,
        "findings": [
            {
                "weight": str(found.weight),
                "old": found.old,
                "line": found.line,
                "setting": found.here,
                "text": found.text,
            }
            for found in new.findings
        ],
    }


def _show(new: "NewConfiguration", files: list[Path]) -> None:
    if not files:
        click.echo(new.shown, nl=False)
    for path in files:
        click.echo(f"Written: {path}", err=True)
    for weight, heading in _HEADINGS.items():
        found = [finding for finding in new.findings if finding.weight == weight]
        if found:
            click.echo(heading, err=True)
        for finding in found:
            click.echo(f"  {screen.plain(finding)}", err=True)
    click.echo("Smaller changes stand as comments in the file.", err=True)
    click.echo(_verdict(new), err=True)


def _verdict(new: "NewConfiguration") -> str:
    if new.faults:
        count = "one correction" if len(new.faults) == 1 else f"{len(new.faults)} corrections"
        return f"Checked by our own rules: it needs {count} before it loads."
    return "Checked by our own rules: it loads."


@config.command(epilog=examples("config schema > node-agent.schema.json"))
def schema() -> None:
    """Print the JSON Schema of the configuration.

    Editors check and complete a file with it: `# yaml-language-server: $schema=node-agent.schema.json` in its first line.
    """
    from node_agent.config.schema import json_schema

    click.echo(screen.as_json(json_schema()))


@config.command(epilog=examples("config show -c /etc/node-agent/alpha.yaml"))
@config_option
@json_option
def show(config: Path, *, as_json: bool) -> None:
    """Show every setting as it counts.

    Defaults are filled in and secrets masked; no file that the configuration names is looked at.
    """
    from node_agent.config.showing import effective_settings

    shown = effective_settings(config)
    if as_json:
        click.echo(screen.as_json(shown))
        return
    for path, value in shown.items():
        click.echo(
            f"{path}: {screen.plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}"
        )
