"""The same hostile program on vantage6's own node and on ours, side by side: `make hostile-peer`.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.hostile.peer

Alice sends a task with a secret in its input to a node. While it runs, bob sends a task to the same node whose program
lists every file of other runs that it can see, and reads their inputs. On vantage6's node all runs share one folder
(CVE-2026-54533, before 5.0.0). Owns the demonstration.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import docker

from tests.bench.stage import bridge_address
from tests.hostile.faces import hostile_image
from tests.interop.stage import NOT_HERE, SubmittedTask
from tests.lab.agents import agents_for
from tests.lab.client import ClientWorker
from tests.lab.engine import engine
from tests.lab.registry import registry
from tests.lab.vantage6 import RealServer
from tests.lab.vantage6_node import VANTAGE6_VERSION, NodeError, PeerNode, command_line, node_image

SECRET = "the diagnosis of patient 4711, asked for by alice"
VICTIM_SECONDS = 60


def main() -> int:
    """Run both and print what bob's program saw; 1 when our node is not closed."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
        node_image(client)
        command_line()
        offered = stack.enter_context(registry()).push(client, hostile_image(client), "hostile/faces:latest")
        server = stack.enter_context(RealServer(("alpha", "beta"), host=bridge_address(client)))
        theirs = _seen(server, offered.reference, lambda: PeerNode(client, server, "alpha"))
        ours = _seen(server, offered.reference, lambda: _our_node(server, offered.reference))
    _show(f"vantage6's own node {VANTAGE6_VERSION}", theirs)
    _show("node-agent", ours)
    return 1 if ours["inputs"] or ours["other runs' files"] else 0


def _our_node(server: RealServer, image: str) -> AbstractContextManager[Any]:
    settings = {"policy": {"algorithms": [image.rpartition(":")[0]]}}
    return agents_for(server, {"alpha": {}}, settings)


def _seen(server: RealServer, image: str, node: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
    with node(), ClientWorker(server, "alpha") as alice, ClientWorker(server, "beta") as bob:
        victim = _sent(server, alice, image, face="wait", seconds=VICTIM_SECONDS, secret=SECRET)
        victim.reached("active")
        seen: dict[str, Any] = _sent(server, bob, image, face="neighbours").result()
        victim.kill()
        return seen


def _sent(server: RealServer, who: ClientWorker, image: str, **arguments: Any) -> SubmittedTask:
    task = who.create_task(
        image=image,
        method="face",
        arguments=arguments,
        organizations=[server.organization_ids["alpha"]],
        databases=[],
    )
    return SubmittedTask(task, who)


def _show(title: str, seen: dict[str, Any]) -> None:
    files = seen["other runs' files"]
    print(f"\n{title}")
    print(f"  files of other runs that bob's program sees: {', '.join(files) or 'none'}")
    for content in seen["inputs"]:
        print(f"  the input of alice's task: {json.dumps(json.loads(content)['kwargs'])}")
    if not seen["inputs"]:
        print("  the input of alice's task: not to be seen")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (*NOT_HERE, NodeError, docker.errors.DockerException) as error:
        sys.exit(f"lab: {error}")
