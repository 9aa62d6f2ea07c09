"""The real vantage6 user client in a process of its own, driven by JSON lines.

Started by tests/lab/client.py with the Python of the client's environment. The first line on standard input says
where the server is and who logs in; every further line is one request, answered by one line. Knows nothing of the
project: only the vantage6 client is installed where it runs.
"""

# Checked with the project's tools, which do not see that environment.
# mypy: disable-error-code="import-not-found"

import json
import os
import sys
from typing import Any, TextIO

from vantage6.client import UserClient


def logged_in(greeting: dict[str, Any]) -> UserClient:
    """Return a client that has logged in and is ready to create tasks."""
    client = UserClient(greeting["host"], greeting["port"], greeting["path"], log_level="warn")
    client.authenticate(greeting["username"], greeting["password"])
    client.setup_encryption(greeting["private_key"])
    return client


def call(client: UserClient, name: str, arguments: dict[str, Any]) -> Any:
    """Call one method of the client, named with dots, such as `task.create`."""
    method = client
    for part in name.split("."):
        method = getattr(method, part)
    return method(**arguments)


def run(client: UserClient, script: str, parameters: dict[str, Any]) -> Any:
    """Run a script that sees `client` and `parameters`, and return what it leaves in `result`."""
    names: dict[str, Any] = {"client": client, "parameters": parameters, "result": None}
    exec(compile(script, "script", "exec"), names)  # noqa: S102 - the scripts are our own tests
    return names["result"]


def answer(client: UserClient, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request; a failure is an answer too."""
    try:
        if "script" in request:
            return {"result": run(client, request["script"], request["arguments"])}
        return {"result": call(client, request["call"], request["arguments"])}
    except Exception as error:  # noqa: BLE001 - it is told to the test that asked
        return {"error": f"{type(error).__name__}: {error}"}


def own_output() -> TextIO:
    """Keep standard output for answers: whatever the client prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Log in, then answer until the input ends."""
    answers = own_output()
    client = logged_in(json.loads(sys.stdin.readline()))
    print(json.dumps({"result": "ready"}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(client, json.loads(line)), default=str), file=answers)


if __name__ == "__main__":
    main()
