"""Reads the column names of tabular files; a program of its own, because what it imports is heavy.

`python -m node_agent.databases.columns` reads a JSON list of `{label, type, path}` and writes one JSON line
`{label, columns}` per file, as soon as it is known: what was written before a limit struck still counts.
"""

import json
import os
import re
import resource
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
CPU_SECONDS = 30
MAX_COLUMNS = 10_000
MAX_NAME = 256
_NUMBER = re.compile(
    r"[-+]?[$€£]?\s?[0-9]*[.,]?[0-9]+(?:[.,][0-9]+)*(?:[eE][-+]?[0-9]+)?\s?[%€$£]?|nan|inf", re.IGNORECASE
)
_DATE = re.compile(r"[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}|[0-9]{1,2}:[0-9]{2}")
_TABLES = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite@_%' ESCAPE '@' LIMIT 2"


def _csv(path: str) -> list[object]:
    import pandas as pd

    first = pd.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False)
    if len(first):
        require_header(list(first.iloc[0]))
    return list(pd.read_csv(path, nrows=0).columns)


def require_header(cells: Sequence[str]) -> None:
    """Check whether the first line of a file may be names and not a patient's values. Raises NoHeader."""
    names = [cell.strip() for cell in cells]
    # the first column of an exported table often has no name
    named = names[1:] if len(names) > 1 and not names[0] else names
    if not all(named) or len(set(names)) < len(names) or any(map(_is_value, named)):
        raise NoHeader


def _is_value(cell: str) -> bool:
    """Tell whether a cell is a number, a date, or a time."""
    return _NUMBER.fullmatch(cell) is not None or _DATE.search(cell) is not None


class NoHeader(Exception):
    """The first line of a file does not look like the names of its columns."""


def _excel(path: str) -> list[object]:
    import pandas as pd

    return list(pd.read_excel(path, nrows=0).columns)


def _parquet(path: str) -> list[object]:
    from pyarrow import parquet

    return list(parquet.read_schema(path).names)


def _sqlite(path: str) -> list[object]:
    """Give the columns of the one table there is; of several, nobody knows which is meant."""
    # immutable: nothing is locked, and no file appears beside it
    with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        tables = database.execute(_TABLES).fetchall()
        if len(tables) != 1:
            raise NotOneTable
        return [name for (name,) in database.execute("SELECT name FROM pragma_table_info(?)", tables[0])]


class NotOneTable(Exception):
    """An SQLite file has no table, or more than one."""


READERS: Mapping[str, Callable[[str], list[object]]] = {
    "csv": _csv,
    "excel": _excel,
    "parquet": _parquet,
    "sqlite": _sqlite,
}


def columns_of(kind: str, path: str) -> list[str]:
    """Give the column names of one file, as many and as long as the server is to be bothered with."""
    return [str(name)[:MAX_NAME] for name in READERS[kind](path)[:MAX_COLUMNS]]


def answer(request: Mapping[str, Any]) -> dict[str, object]:
    """Give one file's columns, or the kind of failure; never a text that could quote the file."""
    try:
        return {"label": request["label"], "columns": columns_of(request["type"], request["path"])}
    except Exception as error:  # noqa: BLE001 - whatever a file format library raises, the next file is tried
        return {"label": request["label"], "error": type(error).__name__}


def main() -> None:
    """Answer the requests on standard input, gently and within limits."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    for request in json.load(sys.stdin):
        sys.stdout.write(json.dumps(answer(request)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
