"""How runs and their ends look: a table that lives on a terminal, a line for each change elsewhere.

Owns the looks. Logs and results come from algorithms, so nothing in them may steer the terminal.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from node_agent.sandbox.watching import RunView
from node_agent.screen import plain

if TYPE_CHECKING:
    from rich.console import Group

    from node_agent.sandbox.trying import Ended, EndedRun

_LONGEST_LOG: Final = 60
_LONGEST_RESULT: Final = 4000

Show = Callable[[Sequence[RunView]], None]


# --- while it runs ----------------------------------------------------------------------------------------------


@contextmanager
def progress() -> Iterator[Show]:
    """Give what shows the runs of a task on standard error."""
    if not sys.stderr.isatty():
        yield Lines(lambda line: click.echo(line, err=True))
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=5) as live:
        yield lambda runs: live.update(run_table(runs))


def nothing(_runs: Sequence[RunView]) -> None:
    """Show nothing."""


class Lines:
    """Says each change of a run in a line of its own."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: dict[int, RunView] = {}

    def __call__(self, runs: Sequence[RunView]) -> None:
        """Say what has changed."""
        for run in runs:
            if self._said.get(run.run_id) != run:
                self._said[run.run_id] = run
                self._say(run_line(run))


def run_line(run: RunView) -> str:
    """Give a run in one line."""
    return f"{run.organization:<10} run {run.run_id:<4} {what_of(run):<8} {run.state:<9} {run.code:>3}  {plain(run.now)}"


def what_of(run: RunView) -> str:
    """Say whether a run is of the task itself or of one of its subtasks."""
    return "subtask" if run.is_subtask else "task"


def run_table(runs: Sequence[RunView], *, idle: Sequence[tuple[str, str]] = ()) -> "Group":
    """Give the runs as a table, with a row for each *idle* node and what it does."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("node", "run", "what", "status", "state", "code", "now"):
        table.add_column(column)
    for organization, now in idle:
        table.add_row(organization, "", "", "", "", "", now)
    for run in runs:
        words = (run.organization, run.run_id, what_of(run), run.status, run.state, run.code, run.now)
        table.add_row(*(Text(plain(word)) for word in words))
    started = sum(run.was_started for run in runs)
    return Group(Text(), table, Text(f"containers started: {started}", style="dim"))


# --- what came of it --------------------------------------------------------------------------------------------


def ended_text(ended: "Ended", *, verbose_log: int = _LONGEST_LOG) -> str:
    """Give what came of a task: every run with its result and its log, subtasks only where they failed."""
    failed = [run for run in ended.subtasks if not run.is_completed]
    parts = [_run_text(run, "run", verbose_log) for run in ended.runs]
    parts += [_run_text(run, "subtask run", verbose_log) for run in failed]
    verdict = "completed" if ended.is_completed else "did NOT complete"
    return "\n".join([*parts, f"Task {ended.task_id} {verdict} after {ended.seconds:.1f} s."])


def _run_text(run: "EndedRun", what: str, longest: int) -> str:
    code = "" if run.code is None else f" ({run.code})"
    lines = [f"{run.organization}, {what} {run.run_id}: {plain(run.status)}{code}"]
    if run.reason:
        lines.append(f"  {plain(run.reason)}")
    if run.result is not None:
        lines += ["  result:", *_indented(result_text(run.result))]
    if run.log:
        lines += ["  log:", *_indented(_end_of(run.log, longest))]
    return "\n".join(lines)


def result_text(result: Any) -> str:
    """Give a result as people read it."""
    text = result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)
    left_out = len(text) - _LONGEST_RESULT
    return (
        f"{text[:_LONGEST_RESULT]}… ({left_out} more characters; --json shows all)" if left_out > 0 else text
    )


def _end_of(log: str, longest: int) -> str:
    lines = log.strip().splitlines()
    left_out = len(lines) - longest
    return "\n".join(
        [f"… ({left_out} lines before; --json shows all)", *lines[left_out:]] if left_out > 0 else lines
    )


def _indented(text: str) -> list[str]:
    return [f"    {plain(line)}" for line in text.splitlines()]
