"""The real vantage6 server in a process of its own.

Started by tests/lab/vantage6.py with the Python of the server's environment and one argument: a folder with
`server.yaml`, `entities.json` and `listen.json`. Writes `ids.json` there before it listens. Runs by itself, as developers
run the server, or loaded by uWSGI, as it is run elsewhere. Knows nothing of the project: only vantage6 is installed where
it runs.
"""

# Checked with the project's tools, which do not see that environment.
# mypy: disable-error-code="import-not-found"

import contextlib
import enum
import json
import os
import sys
from pathlib import Path
from typing import Any


def restore_enum_formatting() -> None:
    """Let `f"{member}"` of a str-enum be its value, as before Python 3.11: the server's permission rules need it."""
    plain_format = enum.Enum.__format__

    def format_as_value(member: enum.Enum, spec: str) -> str:
        return format(member.value, spec) if isinstance(member, str) else plain_format(member, spec)

    enum.Enum.__format__ = format_as_value  # type: ignore[method-assign, assignment]


def load_entities(entities: dict[str, Any]) -> None:
    """Fill a new database; at a restart everything is there already."""
    from vantage6.server import db
    from vantage6.server.controller import fixture

    if not db.Collaboration.get():
        fixture.load(entities)


def ids() -> dict[str, dict[str, int]]:
    """Return the ids the server gave, by name."""
    from vantage6.server import db

    return {
        "organizations": {entity.name: entity.id for entity in db.Organization.get()},
        "collaborations": {entity.name: entity.id for entity in db.Collaboration.get()},
        "nodes": {entity.organization.name: entity.id for entity in db.Node.get()},
    }


def make_blob_container(config: dict[str, Any]) -> None:
    """Make the place in the blob store, which the server expects to find there."""
    from azure.core.exceptions import ResourceExistsError
    from azure.storage.blob import BlobServiceClient

    with (
        BlobServiceClient.from_connection_string(config["connection_string"]) as store,
        contextlib.suppress(ResourceExistsError),
    ):
        store.create_container(config["container_name"])


def prepare(folder: Path) -> Any:
    """Return the server, ready to serve its database."""
    restore_enum_formatting()
    # The server makes log and configuration folders under the home directory; they belong with the rest.
    os.environ["HOME"] = str(folder)
    from vantage6.cli.context.server import ServerContext
    from vantage6.common import context as folders
    from vantage6.server import ServerApp
    from vantage6.server.model.base import Database

    # Some machines have /.dockerenv without being a container; the server would then write below /mnt.
    folders.running_in_docker = lambda: False
    context = ServerContext.from_external_config_file(str(folder / "server.yaml"), False)
    Database().connect(uri=context.get_database_uri(), allow_drop_all=False)
    if "large_result_store" in context.config:
        make_blob_container(context.config["large_result_store"])
    app = ServerApp(context).start()
    load_entities(json.loads((folder / "entities.json").read_text()))
    (folder / "ids.json").write_text(json.dumps(ids()))
    return app


def serve(folder: Path) -> None:
    """Run the server until the process ends."""
    app = prepare(folder)
    from vantage6.server import run_dev_server

    listen = json.loads((folder / "listen.json").read_text())
    run_dev_server(app, host=listen["host"], port=listen["port"])


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
elif __name__.startswith("uwsgi_file_"):
    app = prepare(Path(sys.argv[1])).app
