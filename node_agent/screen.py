"""What commands show: tables on a terminal, plain columns in a pipe, JSON when asked.

Owns the looks. Must not know where the values come from. Image names and reasons come from outside, so nothing in
them may steer the terminal.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import click

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TIMES = (
    "received_at",
    "claimed_at",
    "started_at",
    "finished_at",
    "since",
    "written_at",
    "oldest_owed_at",
    "next_report_at",
)
_COLUMNS: Mapping[str, str] = {
    "run_id": "run",
    "task_id": "task",
    "image": "image",
    "databases": "databases",
    "user_id": "user",
    "organization_id": "org",
    "status": "status",
    "status_code": "code",
    "received_at": "received",
    "finished_at": "finished",
    "reason": "reason",
}
_LONGEST_CELL = 100


class _Seen(Protocol):
    """How an agent looks from outside (see the store's sighting)."""

    @property
    def running(self) -> bool: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def presence(self) -> Any: ...
    @property
    def disk_free(self) -> int | None: ...
    @property
    def disk_read_only(self) -> bool: ...
    @property
    def silent_for(self) -> float: ...
    @property
    def is_silent(self) -> bool: ...


def plain(text: object) -> str:
    """Give a text without characters that could steer a terminal."""
    return _CONTROL.sub(" ", str(text))


def moment(seconds: float | None) -> str:
    """Write epoch seconds as UTC; empty when there is no such moment."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def as_json(value: object) -> str:
    """Write a value as JSON for another program."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def with_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row with its moments in ISO 8601."""
    return {key: iso(value) if key in _TIMES else value for key, value in row.items()}


def iso(seconds: float | None) -> str | None:
    """Write epoch seconds in ISO 8601; None when there is no such moment."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def with_queue(history: Iterable[Mapping[str, Any]], seen: _Seen) -> list[dict[str, Any]]:
    """Give the rows with the place and the reason of every run that waits, as the running agent sees it."""
    said = seen.presence
    current = seen.running and said is not None and said.pid == seen.pid
    places = {run: place for place, run in enumerate(said.queue, start=1)} if current else {}
    why = said.waiting_for if current else "the agent is not running"
    return [
        {**row, "place": places.get(row["run_id"]), "waiting_for": why}
        if row["state"] == "received"
        else {**row}
        for row in history
    ]


def run_rows(history: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Give the cells of the table of runs, its heading first."""
    rows = [list(_COLUMNS.values())]
    rows += [[_cell(key, {**run, "reason": _why(run)}.get(key)) for key in _COLUMNS] for run in history]
    return rows


def _why(run: Mapping[str, Any]) -> str:
    """Say why a run ended as it did, or why it waits."""
    if not run.get("waiting_for"):
        refusal = f"The server took no report: {run['refusal']}" if run.get("refusal") else ""
        return " ".join(text for text in (run.get("reason"), refusal) if text)
    place = f" (place {run['place']})" if run.get("place") else ""
    return f"waits{place}: {run['waiting_for']}"


def _cell(key: str, value: Any) -> str:
    text = moment(value) if key in _TIMES else plain(_in_words(value))
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Show rows, the heading first."""
    if sys.stdout.isatty():
        _draw_rich(rows)
    else:
        _draw_plain(rows)


def _draw_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw_rich(rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in zip(*rows, strict=True):
        table.add_column(column[0], overflow="fold", min_width=_least_width(column))
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _least_width(column: Sequence[str]) -> int | None:
    # on a narrow terminal the long texts are folded, not the numbers and times
    if column[0] in {"image", "databases", "reason"}:
        return None
    return max(len(word) for cell in column for word in cell.split())


def status_facts(seen: _Seen, api: Any = None) -> dict[str, Any]:
    """Give how the agent is, and its compute API where it has one, for another program."""
    said = seen.presence
    facts = {} if said is None else {name: getattr(said, name) for name in said.__dataclass_fields__}
    current = seen.running and said is not None and said.pid == seen.pid
    return {
        **with_times(facts),
        "running": seen.running,
        "pid": seen.pid,
        "online": current and said.online,
        "busy": current and said.working > 0,
        "disk_free": seen.disk_free,
        "disk_read_only": seen.disk_read_only,
        "silent_for": round(seen.silent_for, 1),
        "silent": seen.is_silent,
        "compute_api": None if api is None else {name: getattr(api, name) for name in _API_FACTS},
    }


_API_FACTS = ("listen", "secured", "listening", "open_jobs")


def api_lines(api: Any) -> list[str]:
    """Say how the compute API is; nothing when it is off."""
    if api is None:
        return []
    jobs = "jobs unknown: the books cannot be read" if api.open_jobs is None else f"{api.open_jobs} jobs open"
    way = "listens" if api.listening else "does not listen"
    return [f"compute {way} on {'https' if api.secured else 'http'}://{plain(api.listen)}, {jobs}"]


def status_lines(seen: _Seen) -> list[str]:
    """Say how the agent is, a line for each thing."""
    said = seen.presence
    if not seen.running:
        return [
            "agent   not running",
            *([] if said is None else [f"last    seen {moment(said.written_at)}", _owed(said)]),
        ]
    if said is None or said.pid != seen.pid:
        return [f"agent   running (process {seen.pid}), still starting", *_disk(seen, "")]
    return [
        f"agent   running (process {seen.pid}, version {plain(said.version)}, since {moment(said.since)})"
        + (", draining" if said.draining else ""),
        *_silence(seen),
        f"node    {plain(said.node) or 'not known yet'}",
        f"server  {'online' if said.online else 'offline'}{_because(said.server_problem)}",
        *([f"beware  {plain(said.company_problem)}"] if said.company_problem else []),
        f"engine  {'away' if said.engine_problem else 'fine'}{_because(said.engine_problem)}",
        *_disk(seen, said.disk_problem),
        f"runs    {said.waiting} waiting, {said.working} working, {said.finished} ended since the start",
        *([f"waits   because {plain(said.waiting_for)}"] if said.waiting_for else []),
        *(f"stuck   {plain(step)}" for step in said.stuck_steps),
        _owed(said),
    ]


def _because(problem: str) -> str:
    return f": {plain(problem)}" if problem else ""


def _owed(said: Any) -> str:
    if not said.owed:
        return "owed    nothing: the server has every final report"
    oldest = f"the oldest since {moment(said.oldest_owed_at)}"
    last = f"; last try: {plain(said.owed_problem)}" if said.owed_problem else ""
    following = f"; next try {moment(said.next_report_at)}" if said.next_report_at else ""
    return f"owed    {said.owed} final reports, {oldest}, {_in_mebibytes(said.owed_bytes)}{last}{following}"


def _silence(seen: _Seen) -> list[str]:
    if not seen.is_silent:
        return []
    minutes = f"{seen.silent_for / 60:.0f} min" if seen.silent_for >= _MINUTE else f"{seen.silent_for:.0f} s"
    stuck = "its state directory is read-only" if seen.disk_read_only else "the agent may be stuck"
    return [f"silent  its last word came {minutes} ago: {stuck}; what follows is as old"]


_MINUTE = 60


def _disk(seen: _Seen, problem: str) -> list[str]:
    """Say how the disk is: as the agent met it, and as it looks now."""
    if seen.disk_free is None:
        return []
    now = "read-only" if seen.disk_read_only else f"{_in_mebibytes(seen.disk_free)} free"
    if problem:
        return [f"disk    cannot be written to ({now} now){_because(problem)}"]
    return [f"disk    {'fine, ' if not seen.disk_read_only else ''}{now}"]


def _in_mebibytes(size: int) -> str:
    return f"{size / 1024 / 1024:,.1f} MiB"


_SIGNS: Mapping[str, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "fail": ("✗", "red"),
}


def mark(verdict: str) -> str:
    """Give the sign of a verdict, in colour where there is colour."""
    sign, colour = _SIGNS[verdict]
    return click.style(sign, fg=colour)


# --- keys -----------------------------------------------------------------------------------------------------


def key_facts(found: Any) -> dict[str, str]:
    """Give the public part of a key for another program."""
    return {
        "file": str(found.file),
        "fingerprint": found.public.fingerprint,
        "public_key": found.public.wire,
    }


def key_lines(found: Any) -> list[str]:
    """Show the public part of a key, as the server keeps it."""
    return [
        f"private key  {plain(found.file)}",
        f"fingerprint  {found.public.fingerprint}",
        "public key, as the server keeps it:",
        found.public.wire,
    ]


def new_key_lines(made: Any) -> list[str]:
    """Show a key that was just made, and say what to do with it."""
    line = f"→ Name it in the configuration: encryption.private_key: {plain(made.file)}"
    name_it = [] if made.in_configuration else [line]
    return [
        f"A new private key is in {plain(made.file)}; only its owner may read it.",
        f"fingerprint  {made.public.fingerprint}",
        *name_it,
        "→ Let the agent's user own the file, and keep a copy in a safe place: without it, results cannot be read.",
        "→ Give the same file to all nodes and users of the organization.",
        "→ The agent uploads the public part at its next start; `node-agent key upload` does it now.",
    ]


def upload_lines(done: Any) -> list[str]:
    """Show what the server has now."""
    if done.before.key == done.own:
        return [f"The server has this public key already: {done.own.fingerprint}"]
    if str(done.before) == "none":
        return [f"The server has the public key now: {done.own.fingerprint}"]
    return [
        f"The server has the public key now: {done.own.fingerprint}",
        f"It replaces:                        {plain(done.before)}",
    ]


def pin_facts(pin: Any) -> dict[str, Any]:
    """Return a pinned key for another program; `offered` is null unless the server shows another key."""
    return {
        "organization": pin.organization,
        "fingerprint": _fingerprint(pin.key),
        "offered": None if pin.offered is None else _fingerprint(pin.offered),
    }


def pin_lines(pins: Any) -> list[str]:
    """Show the pinned keys, a line for each organization."""
    return [_pin_line(**pin_facts(pin)) for pin in pins] or ["No key of an organization is pinned yet."]


def _pin_line(*, organization: int, fingerprint: str, offered: str | None) -> str:
    line = f"organization {organization}: {fingerprint}"
    if offered is None:
        return line
    return f"{line}; the server shows {offered} (node-agent key accept -c FILE {organization})"


def accepted_facts(done: Any) -> dict[str, Any]:
    """Return for another program which key took the place of which."""
    return {
        "organization": done.organization,
        "old_fingerprint": _fingerprint(done.key),
        "new_fingerprint": _fingerprint(done.offered),
    }


def accepted_lines(done: Any) -> list[str]:
    """Show which key took the place of which."""
    return [
        f"Accepted for organization {done.organization}: {_fingerprint(done.offered)}",
        f"It replaces:                 {_fingerprint(done.key)}",
    ]


def _fingerprint(key: str) -> str:
    from node_agent.payload.keys import PublicKey

    return PublicKey.from_wire(key).fingerprint


# --- prune ----------------------------------------------------------------------------------------------------


def pruned_facts(pruned: Any) -> dict[str, Any]:
    """Give what went, or would go, for another program."""
    return {
        "removed": [
            {"kind": stray.kind, "name": stray.name, "why": str(stray.why)} for stray in pruned.strays
        ],
        "runs": pruned.runs,
        "left": pruned.left,
    }


def pruned_lines(pruned: Any, *, future: bool) -> list[str]:
    """Say what went, or would go, a line for each thing."""
    verb = "would remove" if future else "removed"
    lines = [f"{verb} {stray.kind} {plain(stray.name)}: {stray.why}" for stray in pruned.strays]
    if pruned.runs:
        lines.append(f"{verb} {pruned.runs} runs from the journal: {_OLD_RUNS}")
    if pruned.left:
        lines.append(plain(pruned.left))
    return lines or ["There is nothing to remove."]


_OLD_RUNS = "kept long enough"
