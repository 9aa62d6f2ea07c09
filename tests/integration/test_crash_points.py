"""The agent as a process dies at every call it makes for a run, and inside each of them; every run ends once all the same.

A first run shows which places there are: the moment before each call to the server, the engine, the folders, the journal
and the channel, and, below each call, the moment before each request, rename, new folder and removal. (The moment after a
call is the one before the next: between two of them nothing changes that outlives the process.) Then a run is sent for
each place, and the process that takes it up dies there; while later lives go on with what earlier ones left.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.counting import counted, counting_image, reckon
from tests.lab.crash_points import OF_NO_RUN, Kind, Node
from tests.lab.sandbox import SandboxLab
from tests.parts import engine_client

pytestmark = [pytest.mark.engine, pytest.mark.timeout(200)]

ORGANIZATIONS = ("alpha", "beta")
"""Each has a node, and each node dies at every second place: the machine has two processors."""

Places = tuple[tuple[int, str], ...]


@pytest.fixture(scope="module")
def kind() -> Iterator[Kind]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        yield Kind(name="plain", image=counting_image(client))


@pytest.fixture(scope="module")
def nodes(kind: Kind) -> Iterator[tuple[Node, ...]]:
    with contextlib.ExitStack() as stack:
        lab = counted(stack.enter_context(SandboxLab(ORGANIZATIONS)))
        made = tuple(Node(lab, name, {}) for name in ORGANIZATIONS)
        for node in made:
            stack.enter_context(node.agent)
        yield made


@pytest.fixture(scope="module")
def places(nodes: tuple[Node, ...], kind: Kind) -> Places:
    """Every place one undisturbed run passes, in order."""
    passed = nodes[0].undisturbed(kind)
    of_the_run = [(run, place) for run, place in nodes[0].agent.places() if run is not None]
    last = (0, of_the_run[-1][1])
    return (*((0, place) for place in OF_NO_RUN), *passed, last)


def test_there_is_a_place_at_every_step_and_inside_of_it(places: Places) -> None:
    print(f"\n{len(places)} places:", *(place for _, place in places), sep="\n")
    assert {place for _, place in places} >= {
        "before folders.store_input",
        "within folders.store_input: rename input",
        "before journal.insert",
        "within server.claim: PATCH /api/run/N",
        "before journal.update RECEIVED to ADMITTED",
        "within server.container_token: POST /api/token/container",
        "within folders.prepare: rename token",
        "within engine.ensure_container: POST /containers/create",
        "before journal.update PULLED to CREATED",
        "within engine.ensure_started: POST /containers/ID/start",
        "before journal.update CREATED to RUNNING",
        "before channel.tell_status active",
        "within folders.capture_output: rename result",
        "before journal.update RUNNING to CAPTURED",
        "within folders.final_log: rename log.final",
        "within server.report: PATCH /api/run/N",
        "before journal.update FINISHED to REPORTED",
        "within engine.remove: DELETE /containers/ID",
        "before folders.retire",
        "after journal.update REPORTED to REMOVED",
    }


def test_wherever_the_process_dies_every_run_is_started_and_reported_once_and_nothing_is_left(
    nodes: tuple[Node, ...], kind: Kind, places: Places
) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(len(nodes)) as both:
        shares = [places[at :: len(nodes)] for at in range(len(nodes))]
        list(both.map(Node.die_at, nodes, [kind] * len(nodes), shares))
        print(f"\n{len(places)} deaths in {time.monotonic() - started:.0f} s")
        list(both.map(Node.live_until_all_is_over, nodes))
    print(f"over after {time.monotonic() - started:.0f} s")
    for node in nodes:
        reckoning = reckon(node.agent, node.rows())
        assert reckoning.is_clean, reckoning
    assert sum(len(node.rows()) for node in nodes) == len(places) + 1
