"""Options and help texts that commands share: their words stand here once. Must not know any command."""

from pathlib import Path

import click

config_option = click.option(
    "-c",
    "--config",
    "config",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration of this agent.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for another program.")


def verbatim(*lines: str) -> str:
    """Give a paragraph of a help text that keeps its lines."""
    # a backspace of its own on a line tells click to leave the paragraph as it is
    return "\n".join(["\b", *lines])


def examples(*lines: str) -> str:
    """Give the end of a help text: how the command is called."""
    return verbatim(
        "Examples:" if len(lines) > 1 else "Example:", *(f"  node-agent {line}" for line in lines)
    )
