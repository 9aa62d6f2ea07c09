"""What an algorithm finds where it runs: files, variables, the way to the server, and what it cannot reach."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.decorators import algorithm_client
from vantage6.algorithm.tools.util import get_env_var

from cohort.parts import parts

NOTE = "note.txt"
OUTSIDE = ("192.0.2.1", 443)
PATIENCE = 3


@algorithm_client
def look_around(client: AlgorithmClient) -> dict[str, Any]:
    """Report what there is; whatever goes wrong is part of the report."""
    note = Path(get_env_var("TEMPORARY_FOLDER"), NOTE)
    note.write_text("from the parent")
    looks: dict[str, Callable[[], Any]] = {
        "method": lambda: json.loads(_file("INPUT_FILE").read_text())["method"],
        "output_is_there": lambda: _file("OUTPUT_FILE").read_bytes() == b"",
        "output_can_be_written_twice": lambda: _written(_file("OUTPUT_FILE")),
        "beside_the_input": lambda: _written(_file("INPUT_FILE").with_name("own")),
        "token_is_a_jwt": lambda: _file("TOKEN_FILE").read_text().count("."),
        "databases": _databases,
        "home": lambda: _written(Path.home() / "own"),
        "cache": lambda: _written(Path(tempfile.mkdtemp()) / "own"),
        "shared_memory": _semaphore,
        "version": _version,
        "addresses": lambda: client.vpn.get_addresses(include_children=True, include_parent=True),
        "own_part": lambda: parts(client, "shared_note", [client.organization_id]),
        "outside": lambda: socket.create_connection(OUTSIDE, PATIENCE),
        "names": lambda: socket.gethostbyname("www.example.org"),
    }
    return {name: _answer(look) for name, look in looks.items()}


def shared_note() -> str:
    """Return what the parent left in the temporary folder of the job."""
    return Path(get_env_var("TEMPORARY_FOLDER"), NOTE).read_text()


def _answer(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - what goes wrong is what is asked for
        return f"{type(error).__name__}: {error}"


def _file(variable: str) -> Path:
    return Path(get_env_var(variable))


def _written(path: Path) -> bool:
    path.write_text("something")
    return path.read_text() == "something"


def _databases() -> dict[str, bool]:
    labels = [label for label in get_env_var("DB_LABELS").split(",") if label]
    return {label: os.access(get_env_var(f"{label.upper()}_DATABASE_URI"), os.R_OK) for label in labels}


def _semaphore() -> bool:
    with multiprocessing.Lock():
        return True


def _version() -> int:
    address = f"{get_env_var('HOST')}:{get_env_var('PORT')}{get_env_var('API_PATH')}"
    return requests.get(f"{address}/version", timeout=10).status_code
