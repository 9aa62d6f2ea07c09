"""What was found, as tables: for a person on a terminal, and for the documentation.

Owns headings and cells. Must not know how anything is measured.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as ShownTable

from tests.bench.goals import rows_of

MB = 1_000_000
WIDTH = 132
TITLES = {
    "agent": "our agent",
    "vantage6_node": "vantage6's own node",
    "engine": "bare engine, through its API",
    "engine_joining": "bare engine, in a network namespace that is there",
    "docker_run": "`docker run`",
    "by_hand": "the same containers by hand",
}
DRAWN = frozenset({"empty", "burst", "average", "result", "input", "queue", "proxy"})
"""Parts that have a chart; tests/bench/charts.py draws them."""
MET = {True: "yes", False: "no", None: "-"}
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, a header, and rows of as many cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_markdown(self) -> str:
        """Write it as the documentation shows it."""
        ruler = ("---", *("---:" for _ in self.header[1:]))
        lines = [self.header, ruler, *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"**{self.title}**\n\n{body}"


def tables_of(result: Found) -> list[Table]:
    """Make a table of the goals, and one for each part that was measured."""
    parts = result["parts"]
    return [_goals(result), *(_TABLES[name](found) for name, found in parts.items())]


def as_markdown(result: Found) -> str:
    """Write everything as one section."""
    facts = result["machine"]
    machine = (
        f"Measured at commit {facts['commit']}: {facts['cores']} cores ({facts['cpu']}), "
        f"{facts['memory_gib']} GiB, {facts['system']}, Linux {facts['kernel']}, Docker {facts['engine']}, "
        f"Python {facts['python']}; load average before: {facts['load_before']}. Scale: {result['scale']}."
    )
    goals, *tables = (table.as_markdown() for table in tables_of(result))
    shown = zip(result["parts"], tables, strict=True)
    failed = [f"Not measured, since it failed: {', '.join(result['failed'])}."] if result["failed"] else []
    return "\n\n".join([machine, goals, *(_with_chart(name, table) for name, table in shown), *failed])


def _with_chart(name: str, table: str) -> str:
    return f"{table}\n\n![{name}](performance/{name}.png)" if name in DRAWN else table


def show(result: Found) -> None:
    """Print everything for a person."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for table in filter(lambda table: table.rows, tables_of(result)):
        shown = ShownTable(title=table.title)
        for number, cell in enumerate(table.header):
            shown.add_column(cell, justify="right" if number else "left")
        for cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)
    for name, text in result["failed"].items():
        console.print(f"{name}: failed: {text}", markup=False)


def _goals(result: Found) -> Table:
    """Hold what was found against the goals of all parts that were asked for."""
    asked = {*result["parts"], *result["failed"]}
    rows = [
        (f"{row.number} {row.what}", row.wanted, row.measured, MET[row.is_met])
        for row in rows_of(result["parts"])
        if row.part in asked
    ]
    return Table("Goals", ("goal", "wanted", "measured", "met"), tuple(rows))


def _seconds(title: str) -> Callable[[Found], Table]:
    def made(found: Found) -> Table:
        ways = found["seconds"]
        ours = ways["agent"]["median"]
        rows = [
            (
                TITLES[name],
                f"{way['median']:.2f} s",
                f"{way['p95']:.2f} s",
                f"{ours / way['median']:.2f}",
                str(len(way["samples"])),
            )
            for name, way in ways.items()
        ]
        return Table(title, ("", "median", "p95", "ours / this", "samples"), tuple(rows))

    return made


def _empty(found: Found) -> Table:
    whole = _seconds("Empty run, from posting the task until the researcher sees its end")(found)
    own, calls = found["own"], found["server_calls"]
    above = found["seconds"]["agent"]["median"] - found["seconds"]["engine_joining"]["median"]
    samples = str(len(own["samples"]))
    more = [
        ("ours above the bare engine there, the server's calls with it", f"{above:.2f} s", "", "", samples),
        ("the agent's own part", f"{own['median']:.2f} s", f"{own['p95']:.2f} s", "", samples),
        (
            "calls to the server until the report",
            f"{calls['median']:.0f}",
            f"{calls['p95']:.0f}",
            "",
            samples,
        ),
        *((f"phase: {name}", f"{took:.3f} s", "", "", samples) for name, took in found["phases"].items()),
    ]
    return Table(whole.title, whole.header, (*whole.rows, *more))


def _burst(found: Found) -> Table:
    ours = found["ways"]["agent"]["per_second"]["median"]
    rows = [
        (
            TITLES[name],
            f"{way['seconds']['median']:.1f} s",
            f"{way['per_second']['median']:.2f}",
            f"{ours / way['per_second']['median']:.2f}",
            f"{way['wait_p95']['median']:.1f} s",
            str(len(way["seconds"]["samples"])),
        )
        for name, way in found["ways"].items()
    ]
    title = f"Burst of {found['runs']} empty runs, {found['parallel']} at once (vantage6's own node knows no such bound)"
    header = ("", "all done", "runs / s", "ours / this", "p95 wait for the start", "samples")
    return Table(title, header, tuple(rows))


def _calls(found: Found) -> Table:
    rows = [
        (f"{name}: {call}", str(count))
        for name in ("engine", "server")
        for call, count in found[name]["calls"].items()
    ]
    sums = [(f"{name}, together", f"{found[name]['median']:.0f}") for name in ("engine", "server")]
    return Table("Calls for one empty run, cleaning included", ("", "times"), (*rows, *sums))


def _results(found: Found) -> Table:
    rows = [
        (
            f"{row['size'] / MB:g} MB {kind}",
            f"{row['seconds']['median']:.2f} s",
            f"{_by_hand(row):.2f} s",
            f"{row['seconds']['median'] / _by_hand(row):.2f}",
            f"{max(row['memory']['samples']):.1f} MB",
        )
        for kind in ("plain", "encrypted")
        for row in found[kind]
    ]
    header = ("", "end of the container to report", "plain client and library", "ratio", "memory above idle")
    return Table("Results", header, tuple(rows))


def _by_hand(row: Found) -> float:
    return float(row["plain_send"]["median"] + row["plain_encrypt"]["median"])


def _inputs(found: Found) -> Table:
    rows = [
        (
            f"{row['size'] / MB:g} MB {kind}",
            f"{row['seconds']['median']:.2f} s",
            f"{row['plain_fetch']['median']:.2f} s",
            f"{row['seconds']['median'] / row['plain_fetch']['median']:.2f}",
            f"{max(row['memory']['samples']):.1f} MB",
        )
        for kind in ("plain", "encrypted")
        for row in found[kind]
    ]
    header = ("", "task taken to container", "plain client gets the run", "ratio", "memory above idle")
    return Table("Inputs", header, tuple(rows))


def _idle(found: Found) -> Table:
    rows = [
        (
            TITLES[name],
            f"{held['rss']:.0f} MB",
            f"{held['pss']:.0f} MB",
            f"{held['cpu_percent']:.2f} %",
            str(held["files"]),
            str(held["threads"]),
            f"{found['online']['median']:.2f} s" if name == "agent" else "",
            f"{found['ready']['median' if name == 'agent' else 'peer']:.2f} s",
        )
        for name, held in found["idle"].items()
    ]
    header = ("", "RSS", "PSS", "of a core", "open files", "threads", "start to online", "start to ready")
    return Table(f"Idle for {found['seconds']:g} s", header, tuple(rows))


def _queue(found: Found) -> Table:
    few, many, memory = found["few"], found["many"], found["memory"]
    last = many["tenths"][-1] / many["tenths"][0] if many["tenths"] and many["tenths"][0] else 0
    rows = (
        (f"time per run, {few['runs']} queued", f"{few['per_run']['median']:.3f} s"),
        (f"time per run, {many['runs']:,} queued", f"{many['per_run']:.3f} s"),
        (f"the agent's CPU per run, {few['runs']} queued", f"{few['cpu_per_run']['median']:.3f} s"),
        (f"the agent's CPU per run, {many['runs']:,} queued", f"{many['cpu_per_run']:.3f} s"),
        ("the last tenth of them / the first", f"{last:.2f}"),
        ("memory before", f"{memory['idle']:.1f} MB"),
        ("highest while they run", f"{memory['highest']:.1f} MB"),
        ("memory afterwards", f"{memory['after']:.1f} MB"),
        ("threads before and afterwards", f"{found['threads']['idle']}, {found['threads']['after']}"),
    )
    return Table("Queued runs", ("", "measured"), rows)


def _journal(found: Found) -> Table:
    names = {
        "start": "start",
        "proof": "of it the proof of isolation",
        "process": "process to ready",
        "runs": "`runs`",
        "runs_1000": "`runs --limit 1000`",
        "status": "`status`",
    }
    rows = [
        (title, f"{found['empty'][name]:.2f} s", f"{found['large'][name]:.2f} s")
        for name, title in names.items()
    ]
    size = ("size", f"{found['empty']['megabytes']:.1f} MB", f"{found['large']['megabytes']:.1f} MB")
    return Table("Journal", ("", "empty", f"{found['runs']:,} runs"), (*rows, size))


def _proxy(found: Found) -> Table:
    rows = [
        (
            str(row["containers"]),
            f"{row['containers'] / row['pause']:g}",
            f"{1000 * row['direct']['median']:.1f} / {1000 * row['direct']['p95']:.1f} ms",
            f"{1000 * row['proxy']['median']:.1f} / {1000 * row['proxy']['p95']:.1f} ms",
            f"{1000 * (row['proxy']['median'] - row['direct']['median']):.1f} ms",
            f"{row['direct']['per_second']:.0f}",
            f"{row['proxy']['per_second']:.0f}",
        )
        for row in found["rows"]
    ]
    header = (
        "containers",
        "steady calls / s",
        "direct, median / p95",
        "proxy, median / p95",
        "added",
        "direct, most calls / s",
        "proxy, most calls / s",
    )
    title = "Proxy: calls at a steady pace, then as many as the containers can"
    return Table(title, header, tuple(rows))


def _log(found: Found) -> Table:
    rows = (
        ("the bare engine, its log read", f"{found['by_hand']:.2f} s"),
        ("our agent, whole task", f"{found['agent']:.2f} s"),
        ("of it after the container's end", f"{found['after_end']:.2f} s"),
        ("memory above idle", f"{found['memory']:.1f} MB"),
    )
    return Table(f"A log of {found['size'] / MB:g} MB", ("", "measured"), rows)


_TABLES: Mapping[str, Callable[[Found], Table]] = {
    "empty": _empty,
    "burst": _burst,
    "calls": _calls,
    "average": _seconds("Central average over three nodes"),
    "result": _results,
    "input": _inputs,
    "idle": _idle,
    "queue": _queue,
    "journal": _journal,
    "proxy": _proxy,
    "log": _log,
}
