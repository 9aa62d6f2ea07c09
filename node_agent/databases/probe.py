"""What the node shares about its databases: labels, types, and the column names of tabular files.

Owns the program that reads column names, its limits, and the shape the server expects. Loads no data and
imports no library that could: files are opened by a short-lived program, so that the agent stays small.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from node_agent.databases.columns import READERS
from node_agent.domain.contract import shown_type
from node_agent.domain.database import Database

log = structlog.get_logger()

SECONDS = 30
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """What was found out: columns by label, and for the others why not."""

    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def read_columns(databases: Iterable[Database], *, seconds: float = SECONDS) -> ColumnNames:
    """Read the column names of every tabular file; a file that cannot be read has none."""
    requests = [
        {"label": database.label, "type": database.type.value, "path": str(database.path)}
        for database in databases
        if database.type.value in READERS
    ]
    if not requests:
        return ColumnNames()
    output, ending = _run_reader(json.dumps(requests).encode(), seconds=seconds)
    names = _parse(output, [request["label"] for request in requests], ending=ending)
    for label, reason in names.failed.items():
        log.warning("database_columns_unknown", label=label, reason=reason)
    return names


def _run_reader(requests: bytes, *, seconds: float) -> tuple[bytes, str]:
    """Give what the program wrote and how it ended."""
    command = [sys.executable, "-P", "-m", "node_agent.databases.columns"]
    # the agent's environment may hold secrets, and a file format library has no use for them
    variables = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | _ONE_THREAD
    try:
        done = subprocess.run(
            command, input=requests, capture_output=True, timeout=seconds, check=False, env=variables
        )
    except subprocess.TimeoutExpired as late:
        return late.stdout or b"", f"not read within {seconds:g} s"
    except OSError as error:
        return b"", f"the reader could not be started: {error}"
    return done.stdout, f"the reader ended with code {done.returncode}"


def _parse(output: bytes, labels: Sequence[str], *, ending: str) -> ColumnNames:
    """Sort the lines of the program; a label without a line shares the fate of the program."""
    found: dict[str, tuple[str, ...]] = {}
    failed = dict.fromkeys(labels, ending)
    for line in output.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # cut off when the program was stopped
        told = json.loads(line)
        if "columns" in told:
            found[told["label"]] = tuple(told["columns"])
            del failed[told["label"]]
        else:
            failed[told["label"]] = told["error"]
    return ColumnNames(found=found, failed=failed)


def node_facts(
    databases: Sequence[Database],
    columns: Mapping[str, Sequence[str]],
    *,
    policy: Mapping[str, object],
    encrypted: bool,
) -> dict[str, object]:
    """Put together what `node_info_update` tells the server and its users."""
    return {
        "encryption": encrypted,
        **policy,
        "database_labels": [database.label for database in databases],
        "database_types": {f"db_type_{database.label}": shown_type(database) for database in databases},
        "database_columns": {f"columns_{label}": list(names) for label, names in columns.items()},
    }
