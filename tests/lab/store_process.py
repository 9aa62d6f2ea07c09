"""The real algorithm store of vantage6 in a process of its own.

Started by tests/lab/store.py with the Python of the server's environment and two arguments: the folder its packages are
in, and a folder with `store.yaml`, `algorithms.json` and `listen.json`. Knows nothing of the project: only vantage6 is
installed where it runs.
"""

# Checked with the project's tools, which do not see that environment.
# mypy: disable-error-code="import-not-found"

import enum
import json
import os
import sys
from pathlib import Path
from typing import Any


def restore_enum_formatting() -> None:
    """Let `f"{member}"` of a str-enum be its value, as before Python 3.11: permission rules need it."""
    plain_format = enum.Enum.__format__

    def format_as_value(member: enum.Enum, spec: str) -> str:
        return format(member.value, spec) if isinstance(member, str) else plain_format(member, spec)

    enum.Enum.__format__ = format_as_value  # type: ignore[method-assign, assignment]


def reach_registry_without_tls(host: str) -> None:
    """Let the store look digests up in the lab's registry, which has no certificate."""
    from vantage6.common.docker import addons

    get = addons.requests.get

    def plain_get(url: str, *args: Any, **kwargs: Any) -> Any:
        return get(url.replace(f"https://{host}/", f"http://{host}/"), *args, **kwargs)

    addons.requests.get = plain_get


def load_algorithms(wanted: dict[str, Any]) -> None:
    """Enter what the store shall know: the coordinating server, and algorithms in any state of review."""
    from vantage6.algorithm.store import db

    if not db.Vantage6Server.get_by_url(wanted["server"]):
        db.Vantage6Server(url=wanted["server"]).save()
    for algorithm in wanted["algorithms"]:
        db.Algorithm(**algorithm).save()


def serve(folder: Path) -> None:
    """Run the store until the process ends."""
    from vantage6.cli.context.algorithm_store import AlgorithmStoreContext
    from vantage6.common import context as folders

    # Some machines have /.dockerenv without being a container; the store would then write below /mnt.
    folders.running_in_docker = lambda: False
    from vantage6.algorithm.store import AlgorithmStoreApp
    from vantage6.algorithm.store.model.base import Database

    context = AlgorithmStoreContext.from_external_config_file(str(folder / "store.yaml"), False)
    Database().connect(uri=context.get_database_uri(), allow_drop_all=False)
    app = AlgorithmStoreApp(context).start()
    wanted = json.loads((folder / "algorithms.json").read_text())
    load_algorithms(wanted)
    reach_registry_without_tls(wanted["registry"])
    listen = json.loads((folder / "listen.json").read_text())
    app.app.run(host=listen["host"], port=listen["port"], threaded=True)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    restore_enum_formatting()
    # The store makes log and configuration folders under the home directory; they belong with the rest.
    os.environ["HOME"] = sys.argv[2]
    serve(Path(sys.argv[2]))
