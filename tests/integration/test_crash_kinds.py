"""The agent dies with runs that are not plain: killed, failing, pulled, with subtasks, encrypted.

It dies at every place the plain run does not come to, and at some of the others; `make crash-matrix` is the same with all
of them.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import docker
import pytest

from node_agent.payload.keys import PrivateKey, create_private_key
from tests.lab.counting import ALGORITHM, counted, counting_image
from tests.lab.crash_points import ALL_PLACES, Kind, Node, beyond
from tests.lab.images import script_image, shell_image
from tests.lab.nesting import CALLS
from tests.lab.registry import Registry, registry
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600 if ALL_PLACES else 240)]

FAILING = f"{ALGORITHM}exit 3\n"

PARENT = f"""\
{CALLS}
def call(*words):
    # the proxy goes away with its agent
    give_up = time.monotonic() + 80
    while True:
        try:
            return once(*words)
        except (OSError, http.client.HTTPException):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)

folder = os.path.basename(os.path.dirname(env("INPUT_FILE")))
with open("/mnt/tmp/starts-" + folder, "a") as starts:
    starts.write("x")
asked = json.load(open(env("INPUT_FILE")))["kwargs"]
if asked["depth"]:
    done_below(asked)
json.dump("done", open(env("OUTPUT_FILE"), "w"))
"""
"""Asks for a subtask and waits for it, and does not mind that its agent dies meanwhile."""


@dataclass(frozen=True)
class Bench:
    """What images are made with, and where the parts of a test are closed."""

    client: docker.DockerClient
    stack: contextlib.ExitStack
    plain: Kind
    folder: Path

    def node(self, settings: dict[str, object], *, encrypted: bool = False) -> tuple[Node, SandboxLab]:
        """Make a node at a server of its own, so that the next number is known."""
        lab = counted(self.stack.enter_context(SandboxLab(("alpha",), encrypted=encrypted)))
        node = Node(lab, "alpha", settings)
        self.stack.enter_context(node.agent)
        return node, lab


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        plain = Kind(name="plain", image=counting_image(client))
        yield Bench(client, stack, plain, tmp_path_factory.mktemp("kinds"))


def ended_by_others(bench: Bench) -> Node:
    """Runs that the researcher kills: while they work, and while the agent is dead."""
    node, _ = bench.node({})
    usual = node.undisturbed(bench.plain)
    away = replace(bench.plain, name="killed while away", ends=("killed by user", "completed"), kill="away")
    # who dies after the report is killed too late
    node.die_at(away, beyond(usual, usual, every=6))
    at_work = replace(bench.plain, name="killed", ends=("killed by user",), kill="at work", seconds=300)
    places = node.undisturbed(at_work)
    # the others would come before the kill
    node.die_at(at_work, [place for place in places if place not in usual])
    return node


def failing_and_pulled(bench: Bench) -> Node:
    """Runs whose algorithm fails, and runs whose image a registry has."""
    shop = bench.stack.enter_context(registry())
    allowed = {"algorithms": ["node-agent-lab/*", f"{shop.host}/*"]}
    node, _ = bench.node({"policy": allowed, "images": {"pull": "missing"}})
    usual = node.undisturbed(bench.plain)
    failing = Kind(
        name="failing", image=shell_image(bench.client, "counting-failing", FAILING), ends=("crashed",)
    )
    node.die_at(failing, beyond(node.undisturbed(failing), usual, every=12))
    places = beyond(node.undisturbed(_pulled(bench, shop, 0)), usual, every=12)
    for number, place in enumerate(places, start=1):
        node.die_at(_pulled(bench, shop, number), [place])
    return node


def _pulled(bench: Bench, shop: Registry, number: int) -> Kind:
    """Offer the image under a name that no earlier run had: theirs may still be in use, so it cannot be removed."""
    pushed = shop.push(bench.client, bench.plain.image, f"crash-{os.getpid()}:{number}")
    bench.stack.callback(_forget, bench.client, pushed.reference)
    return Kind(name="pulled", image=pushed.reference)


def _forget(client: docker.DockerClient, reference: str) -> None:
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.remove(reference, force=True)


def with_subtasks(bench: Bench) -> Node:
    """Runs that ask for another one and wait for it."""
    node, lab = bench.node({"limits": {"memory": "96MiB"}})
    usual = node.undisturbed(bench.plain)
    image = script_image(bench.client, "nesting-patiently", PARENT)
    asked = {
        "depth": 1,
        "image": image,
        "collaboration": lab.collaboration_id,
        "organization": lab.organization_ids["alpha"],
    }
    parent = Kind(name="with subtasks", image=image, kwargs=asked)
    passed = node.undisturbed(parent)
    own = [place for place in passed if place[0] == 0]
    of_subtask = [place for place in passed if place[0] == 1]
    node.die_at(parent, beyond(own, usual, every=20) + of_subtask[:: 1 if ALL_PLACES else 8])
    return node


def encrypted(bench: Bench) -> Node:
    """Runs whose input and result travel sealed."""
    key_file = bench.folder / "key.pem"
    key: PrivateKey = create_private_key(key_file)
    node, _ = bench.node({"encryption": {"private_key": str(key_file)}}, encrypted=True)
    # the plain run of this collaboration is a sealed one: there is nothing to compare it with
    sealed = replace(bench.plain, name="encrypted", key=key.public)
    places = node.undisturbed(sealed)
    sealing = [place for place in places if "folders.seal_result" in place[1]]
    assert {"rename result.sealed", "remove result"} <= {name.rpartition(": ")[2] for _, name in sealing}
    node.die_at(sealed, list(dict.fromkeys(places[:: 1 if ALL_PLACES else 7] + sealing)))
    return node


def test_whatever_kind_of_run_the_process_dies_with_it_is_started_and_reported_once_and_nothing_is_left(
    bench: Bench,
) -> None:
    started = time.monotonic()
    stories = (ended_by_others, failing_and_pulled, with_subtasks, encrypted)
    with ThreadPoolExecutor(len(stories)) as together:
        nodes = list(together.map(lambda story: story(bench), stories))
        for story, node in zip(stories, nodes, strict=True):
            print(f"\n{story.__name__}: {node.deaths} deaths")
        deaths = sum(node.deaths for node in nodes)
        print(f"\n{deaths} deaths in {time.monotonic() - started:.0f} s")
        list(together.map(Node.live_until_all_is_over, nodes))
    print(f"over after {time.monotonic() - started:.0f} s")
    for node in nodes:
        node.assert_each_run_came_to_its_one_end()
    assert sum(len(node.sent) for node in nodes) > deaths
