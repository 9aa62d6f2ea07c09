"""Policies at the real server and the real algorithm store: what a node believes, and whom it asks instead."""

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask
from tests.lab.agents import AgentProcess
from tests.lab.images import script_image
from tests.lab.registry import Pushed, registry
from tests.lab.store import RealStore, StoreError, algorithm
from tests.lab.venvs import VenvError
from tests.ports import free_port

pytestmark = pytest.mark.interop

WRITES = (
    "import base64, os; open(base64.b32decode(os.environ['OUTPUT_FILE'].replace('!', '=')), 'w').write('%s')"
)


@dataclass(frozen=True)
class Approved:
    """An agent that wants every image listed and confirmed, and the tasks it was sent."""

    agent: AgentProcess
    tasks: dict[str, SubmittedTask]
    pushed: dict[str, Pushed]

    def ended(self, name: str) -> dict[str, Any]:
        return self.tasks[name].ended(within=60)


@pytest.fixture(scope="module")
def approved(real: Stage) -> Iterator[Approved]:
    with registry() as images:
        good, other = (
            script_image(real.docker, f"policy-{word}", WRITES % word) for word in ("good", "other")
        )
        pushed = {
            name: images.push(real.docker, content, f"p/{name}:1")
            for name, content in {"good": good, "new": other, "stranger": other, "reviewed": other}.items()
        }
        aside = pushed["good"].pinned.replace("127.0.0.1", "localhost")
        algorithms = [
            algorithm(pushed["good"].reference, pushed["good"].digest),
            # the registry's tag has moved on since this was approved
            algorithm(pushed["new"].reference, pushed["good"].digest),
            algorithm(pushed["reviewed"].reference, pushed["reviewed"].digest, status="under review"),
            # the store cannot look this one up: nothing answers with TLS there
            algorithm(aside.partition("@")[0], pushed["good"].digest),
        ]
        with started(
            RealStore(server_url=real.server.url, registry=images.host, algorithms=algorithms)
        ) as store:
            down = f"http://127.0.0.1:{free_port()}/api"
            ids = enter_stores(real, store.url, down, f"{store.url}x")
            tasks = {
                "good": at_store(real, ids[0], pushed["good"].pinned),
                "good, found by the server": through_server(real, ids[0], pushed["good"].reference),
                "good by tag": at_store(real, ids[0], pushed["good"].reference),
                "good, store without registry": at_store(real, ids[0], aside),
                "another digest": at_store(real, ids[0], pushed["new"].pinned),
                "another digest by tag": at_store(real, ids[0], pushed["new"].reference),
                "not approved": at_store(real, ids[0], pushed["stranger"].pinned),
                "not approved yet": at_store(real, ids[0], pushed["reviewed"].pinned),
                "store down": at_store(real, ids[1], pushed["good"].pinned),
                "store not allowed": at_store(real, ids[2], pushed["good"].pinned),
                "no store": real.submit(image=pushed["good"].pinned),
            }
            agent = real.agent(
                settings={
                    "limits": SMALL_LIMITS | {"concurrent_runs": 10},
                    "policy": {
                        "algorithms": [
                            f"{images.host}/*",
                            f"{images.host.replace('127.0.0.1', 'localhost')}/*",
                        ],
                        "algorithm_stores": [f"{store.url}/", down],
                    },
                }
            )
            try:
                agent.launch()
                yield Approved(agent, tasks, pushed)
            finally:
                agent.stop()
                agent.clean_up()


@contextmanager
def started(store: RealStore) -> Iterator[RealStore]:
    with ExitStack() as stack:
        try:
            stack.enter_context(store)
        except (StoreError, VenvError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: the real store ({error})")
        yield store


def enter_stores(real: Stage, *urls: str) -> list[int]:
    """Write stores into the coordinating server's books, and give their numbers there."""
    numbers = [101 + number for number, _ in enumerate(urls)]
    for number, url in zip(numbers, urls, strict=True):
        real.falsify("INSERT INTO algorithmstore (id, name, url) VALUES (?, 'store', ?)", number, url)
    return numbers


def at_store(real: Stage, store_id: int, image: str) -> SubmittedTask:
    """Send a task that claims to be from a store, as a server may say of any task."""
    task = real.submit(image=image)
    real.falsify("UPDATE task SET algorithm_store_id = ? WHERE id = ?", store_id, task.id)
    return task


def through_server(real: Stage, store_id: int, image: str) -> SubmittedTask:
    """Send a task from a store the usual way: the server asks the store too, and adds the digest."""
    answer = ask(real, "alpha", "alpha", "write(1)", image=image, store_id=store_id)
    assert answer.status_code == 201, answer.text
    assert "@sha256:" in answer.json()["image"]
    return SubmittedTask(int(answer.json()["id"]), real.client)


@pytest.mark.parametrize(
    "name", ["good", "good, found by the server", "good by tag", "good, store without registry"]
)
def test_content_that_the_store_confirms_runs(approved: Approved, name: str) -> None:
    run = approved.ended(name)
    assert run["status"] == "completed", run["log"]
    assert approved.tasks[name].raw_result() == "good"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "another digest",
            r"does not confirm this content: it has no approved algorithm with the digest sha256:",
        ),
        ("another digest by tag", r"does not confirm this content: .*The image .* has digest"),
        ("not approved", r"does not confirm this content: it has no approved algorithm"),
        ("not approved yet", r"does not confirm this content: it has no approved algorithm"),
        ("store down", r"no usable answer .* this node kept asking for 10 seconds"),
        ("store not allowed", r"no entry names the store http://127\.0\.0\.1:\d+/apix"),
        ("no store", r"the task names no algorithm store"),
    ],
)
def test_everything_else_is_refused_by_name_of_the_rule(approved: Approved, name: str, reason: str) -> None:
    run = approved.ended(name)
    print(f"\n--- {name}: {run['log']}")
    assert run["status"] == "not allowed"
    assert re.search(r"for this task: policy\.algorithm_stores: .*" + reason, run["log"])
    assert (
        approved.agent.wait_for("run_refused", within=5, run_id=run["id"])["rule"]
        == "policy.algorithm_stores"
    )


# --- who asks -----------------------------------------------------------------------------------------------------

ASKS_BETA = """
with open(env("TOKEN_FILE")) as file:
    token = file.read()
inner = base64.b64encode(json.dumps({"method": "script", "kwargs": {"script": "write('beta took part')"}}).encode())
body = {"image": %r, "collaboration_id": %d, "organizations": [{"id": %d, "input": inner.decode()}]}
status, task = call("POST", "/task", token, body)
for _ in range(100):
    if call("GET", "/task/%%d/status" %% task["id"], token)[1]["status"] not in ("pending", "initializing", "active"):
        break
    time.sleep(0.1)
write([status, call("GET", "/run?task_id=%%d" %% task["id"], token)[1]["data"][0]["status"]])
"""


@pytest.fixture(scope="module")
def guests(real: Stage) -> Iterator[None]:
    """Beta takes part in what alpha asks; gamma leads whatever anybody asks."""
    settings = {"limits": SMALL_LIMITS}
    choosy = settings | {"policy": {"organizations": ["alpha"]}}
    with (
        real.agent(organization="beta", settings=choosy),
        real.agent(organization="gamma", settings=settings),
    ):
        yield


def ask(real: Stage, user: str, organization: str, script: str, **more: Any) -> requests.Response:
    login = {"username": user, "password": real.server.passwords[user]}
    tokens = requests.post(f"{real.server.url}/token/user", json=login, timeout=30).json()
    return requests.post(
        f"{real.server.url}/task",
        headers={"Authorization": f"Bearer {tokens['access_token']}"},
        json={
            "name": "t",
            "image": real.script,
            "collaboration_id": real.server.collaboration_id,
            "organizations": [{"id": real.server.organization_ids[organization], "input": input_of(script)}],
            "databases": [],
            **more,
        },
        timeout=30,
    )


def input_of(script: str) -> str:
    return base64.b64encode(json.dumps({"method": "script", "kwargs": {"script": script}}).encode()).decode()


def result_of(real: Stage, answer: requests.Response) -> Any:
    assert answer.status_code == 201, answer.text
    return SubmittedTask(int(answer.json()["id"]), real.client).result()


@pytest.mark.usefixtures("guests")
def test_the_server_refuses_others_itself_once_it_knows_whom_the_node_takes(real: Stage) -> None:
    assert result_of(real, ask(real, "alpha", "beta", "write(1)")) == 1
    refused = ask(real, "gamma", "beta", "write(1)")
    assert refused.status_code == 400
    assert "does not allow you to create tasks" in refused.json()["msg"]


@pytest.mark.usefixtures("guests")
@pytest.mark.parametrize(("user", "ending"), [("alpha", "completed"), ("gamma", "not allowed")])
def test_a_subtask_counts_for_whoever_asked_first_and_not_for_the_node_that_passes_it_on(
    real: Stage, user: str, ending: str
) -> None:
    ids = real.server.organization_ids
    script = ASKS_BETA % (real.script, real.server.collaboration_id, ids["beta"])
    assert result_of(real, ask(real, user, "gamma", script)) == [201, ending]
