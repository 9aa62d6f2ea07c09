"""What an algorithm container of vantage6 version 4 finds: files, mounts, variables, by name and encoding.

Owns the names and shapes existing images rely on. Knows nothing of an engine, of directories on this machine
beyond the two it is given, nor of how the databases came to be configured. What a container is not meant to
see is simply absent: a database that the task does not ask for has no mount, no variable and no label.
"""

import json
import re
from base64 import b32encode
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from node_agent.domain.container import Mount
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.task import DatabaseRequest

DATA_FOLDER = "/mnt/data"
TEMPORARY_FOLDER = "/mnt/tmp"
PROXY_NAME = "proxyserver"
"""Name under which a container finds the proxy."""
RUN_CONTEXT_NAME = "run_context.json"
OWN_VARIABLES = frozenset(
    """
    INPUT_FILE OUTPUT_FILE TOKEN_FILE TEMPORARY_FOLDER HOST PORT API_PATH PKG_NAME RUN_CONTEXT_FILE
    DB_LABELS USER_REQUESTED_DATABASE_LABELS HOME PATH HOSTNAME
    HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
    """.split()  # noqa: SIM905 - a list would take a page
)
"""Variables an image or this contract sets; nobody else may."""
_OF_DATABASES = re.compile(r".+_(DATABASE_URI|DATABASE_TYPE|DB_PARAM_.*|QUERY|SHEET_NAME|PREPROCESSING)\Z")


def task_folder(run_id: RunId) -> str:
    """Name the folder of a run inside its data folder."""
    return f"task-{run_id:09d}"


def input_path(run_id: RunId) -> str:
    """Give the path a container reads its input from."""
    return f"{DATA_FOLDER}/{task_folder(run_id)}/input"


def output_path(run_id: RunId) -> str:
    """Give the path a container writes its result to."""
    return f"{DATA_FOLDER}/{task_folder(run_id)}/output"


def token_path(run_id: RunId) -> str:
    """Give the path a container reads its token from."""
    return f"{DATA_FOLDER}/{task_folder(run_id)}/token"


def run_context_path(run_id: RunId) -> str:
    """Give the path of a run's description, where the node makes one."""
    return f"{DATA_FOLDER}/{task_folder(run_id)}/{RUN_CONTEXT_NAME}"


def encode(value: str) -> str:
    """Write a value so that no shell or engine can misread it; `=` is not allowed everywhere, hence `!`."""
    # JSON can hold half a surrogate pair, UTF-8 cannot; a query with one must not stop the agent
    return b32encode(value.encode(errors="replace")).decode("ascii").replace("=", "!")


def mounts(folders: Folders, databases: Sequence[Database]) -> tuple[Mount, ...]:
    """List what a container sees of this machine; *databases* are the ones its task asks for."""
    own = (
        Mount(str(folders.private), DATA_FOLDER, read_only=False),
        Mount(str(folders.temporary), TEMPORARY_FOLDER, read_only=False),
    )
    return own + tuple(
        Mount(str(database.path), database.target, read_only=True)
        for database in databases
        if database.target is not None
    )


def is_taken(name: str) -> bool:
    """Tell whether a variable of this name is the contract's or the image's, in whatever case."""
    return name.upper() in OWN_VARIABLES or bool(_OF_DATABASES.match(name.upper()))


def environment(
    run_id: RunId,
    *,
    requests: Sequence[DatabaseRequest],
    databases: Sequence[Database],
    proxy_port: int,
) -> dict[str, str]:
    """Give a container's encoded variables; see `variables`."""
    plain = variables(run_id, requests=requests, databases=databases, proxy_port=proxy_port)
    return encoded(plain)


def encoded(plain: Mapping[str, str]) -> dict[str, str]:
    """Give variables the form in which a container gets them."""
    return {name: encode(value) for name, value in plain.items()}


def variables(
    run_id: RunId,
    *,
    requests: Sequence[DatabaseRequest],
    databases: Sequence[Database],
    proxy_port: int,
) -> dict[str, str]:
    """Give a container's variables as they are meant.

    *requests* are in the researcher's order, repeats included; *databases* are the configured ones behind
    them, each once.
    """
    plain = _files(run_id) | _proxy(proxy_port)
    plain["USER_REQUESTED_DATABASE_LABELS"] = ",".join(request.label for request in requests)
    plain["DB_LABELS"] = ",".join(database.label for database in databases)
    for database in databases:
        plain |= _source(database)
    for request in requests:
        plain |= _wishes(request)
    return plain


def way_out(*, egress_port: int | None, inside: Sequence[str] = ()) -> dict[str, str]:
    """Give the variables by which ordinary tools find the way outside, as these tools read them: not encoded.

    *inside* are names that are reached without it, beside the proxy for the server.
    """
    if egress_port is None:
        return {}
    by_name = f"http://{PROXY_NAME}:{egress_port}"
    directly = ",".join(("localhost", "127.0.0.1", PROXY_NAME, *inside))
    return {
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), by_name),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), directly),
    }


def shown_type(database: Database) -> str:
    """Give the type an algorithm and the server know; the tools read an SQLite file as `sql`."""
    return DatabaseType.SQL.value if database.type is DatabaseType.SQLITE else database.type.value


def shown_uri(database: Database) -> str:
    """Give the URI a container reads the database at."""
    if database.target is None:
        return database.uri
    if database.type is DatabaseType.SQLITE and PurePosixPath(database.target).suffix != ".sqlite":
        # the tools recognise a bare path by this one suffix only; anything else has to be a complete URI
        return f"sqlite:///{database.target}"
    return database.target


def _files(run_id: RunId) -> dict[str, str]:
    return {
        "INPUT_FILE": input_path(run_id),
        "OUTPUT_FILE": output_path(run_id),
        "TOKEN_FILE": token_path(run_id),
        "TEMPORARY_FOLDER": TEMPORARY_FOLDER,
    }


def _proxy(port: int) -> dict[str, str]:
    return {"HOST": f"http://{PROXY_NAME}", "PORT": str(port), "API_PATH": ""}


def _source(database: Database) -> dict[str, str]:
    prefix = database.label.upper()
    parameters = {f"{prefix}_DB_PARAM_{key.upper()}": value for key, value in database.env.items()}
    return {
        f"{prefix}_DATABASE_URI": shown_uri(database),
        f"{prefix}_DATABASE_TYPE": shown_type(database),
    } | parameters


def _wishes(request: DatabaseRequest) -> dict[str, str]:
    """Give the variables of one request; a later request for the same label overrides what it says itself."""
    prefix = request.label.upper()
    wishes: Mapping[str, str | None] = {
        f"{prefix}_QUERY": request.query,
        f"{prefix}_SHEET_NAME": request.sheet_name,
        f"{prefix}_PREPROCESSING": json.dumps(request.preprocessing) if request.preprocessing else None,
    }
    return {name: value for name, value in wishes.items() if value is not None}
