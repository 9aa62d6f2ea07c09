"""The flow of the first clients, with nothing but `requests` and a Socket.IO client, and real containers at the nodes."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import requests
import socketio

from tests.interop.stage import NOT_HERE, eventually
from tests.lab.agents import agents_for
from tests.lab.engine import engine
from tests.lab.images import script_image
from tests.lab.sandbox import SandboxLab

pytestmark = pytest.mark.interop

TASK_SECONDS = 60
GREETER = """\
import base64, json, os

def path(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()

with open(path("INPUT_FILE")) as file:
    asked = json.load(file)
print("greeting", asked["name"])
with open(path("OUTPUT_FILE"), "w") as file:
    json.dump({"greeting": "hello " + asked["name"]}, file)
"""


@dataclass(frozen=True)
class Older:
    """A server with two hospitals at work; `delta` is in another collaboration."""

    server: SandboxLab
    image: str
    logins: dict[str, dict[str, str]] = field(default_factory=dict)

    def headers(self, user: str = "alpha") -> dict[str, str]:
        if user not in self.logins:
            login = {"username": user, "password": self.password(user)}
            answer = requests.post(f"{self.server.url}/token/user", json=login, timeout=30)
            assert answer.status_code == 200, answer.text
            self.logins[user] = answer.json()
        return {"Authorization": f"Bearer {self.logins[user]['access_token']}"}

    def password(self, user: str) -> str:
        return self.server.server.passwords[user].reveal()

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.server.url}/{path}", headers=self.headers(), timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post_task(self, *, user: str = "alpha", **more: Any) -> requests.Response:
        body = {
            "image": self.image,
            "input": json.dumps({"name": "world"}),
            "name": "greet",
            "description": "a word from everybody",
            "collaboration_id": self.server.collaboration_id,
        }
        return requests.post(
            f"{self.server.url}/task", json=body | more, headers=self.headers(user), timeout=30
        )

    def create(self, **more: Any) -> int:
        answer = self.post_task(**more)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def wait_for(self, task_id: int) -> None:
        eventually(
            lambda: self.get(f"task/{task_id}")["complete"], within=TASK_SECONDS, what=f"task {task_id}"
        )


@pytest.fixture(scope="module", params=["/api", ""], ids=["below a path", "at the root"])
def older(request: pytest.FixtureRequest) -> Iterator[Older]:
    with contextlib.ExitStack() as stack:
        try:
            docker = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
            image = script_image(docker, "greeter", GREETER)
        except NOT_HERE as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: {error}")
        lab = SandboxLab(("alpha", "beta"), outsiders=("delta",), api_path=request.param)
        server = stack.enter_context(lab)
        stack.enter_context(agents_for(server, {"alpha": {}, "beta": {}}))
        yield Older(server, image)


# --- tokens ---------------------------------------------------------------------------------------------------


def test_a_login_gives_both_tokens_and_the_refresh_token_gives_new_ones(older: Older) -> None:
    older.headers("beta")
    given = older.logins["beta"]
    bearer = {"Authorization": f"Bearer {given['refresh_token']}"}
    answer = requests.post(f"{older.server.url}/token/refresh", headers=bearer, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["access_token"] not in {given["access_token"], given["refresh_token"]}


@pytest.mark.parametrize(
    "login", [{"username": "alpha", "password": "wrong"}, {"username": "nobody", "password": "x"}, {}, []]
)
def test_a_wrong_login_is_refused_with_a_text(older: Older, login: object) -> None:
    answer = requests.post(f"{older.server.url}/token/user", json=login, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["msg"]


# --- polling --------------------------------------------------------------------------------------------------


def test_a_task_without_organizations_goes_to_everybody_in_the_collaboration(older: Older) -> None:
    task_id = older.create()
    assert older.get(f"task/{task_id}")["complete"] in {True, False}
    older.wait_for(task_id)
    results = older.get(f"task/{task_id}/result")
    assert [json.loads(row["result"]) for row in results] == [{"greeting": "hello world"}] * 2
    assert {row["organization"]["id"] for row in results} == {
        older.server.organization_ids[name] for name in ("alpha", "beta")
    }
    assert all("greeting world" in row["log"] for row in results)


def test_a_task_may_name_its_organizations(older: Older) -> None:
    beta = older.server.organization_ids["beta"]
    task_id = older.create(organization_ids=[beta], input={"name": "beta"})
    older.wait_for(task_id)
    (only,) = older.get(f"task/{task_id}/result")
    assert only["organization"]["id"] == beta
    assert json.loads(only["result"]) == {"greeting": "hello beta"}


def test_a_task_that_fails_is_complete_too_and_has_a_log(older: Older) -> None:
    task_id = older.create(input="no JSON at all")
    older.wait_for(task_id)
    results = older.get(f"task/{task_id}/result")
    assert {row["status"] for row in results} <= {"crashed", "failed"}
    assert any("JSONDecodeError" in (row["log"] or "") for row in results)


def test_only_members_of_the_collaboration_may_post(older: Older) -> None:
    answer = older.post_task(user="delta")
    assert answer.status_code == 401
    assert "participating" in answer.json()["msg"]


def test_a_task_for_a_stranger_is_refused(older: Older) -> None:
    delta = older.server.organization_ids["delta"]
    answer = older.post_task(organization_ids=[delta])
    assert answer.status_code == 400
    assert answer.json()["msg"]


# --- websocket ------------------------------------------------------------------------------------------------


class Ear:
    """A Socket.IO client that remembers what it is told."""

    def __init__(self, older: Older, transports: Sequence[str]) -> None:
        self._changed = threading.Condition()
        self.updates: list[dict[str, Any]] = []
        self._client = socketio.Client(reconnection=False, handle_sigint=False)
        self._client.on("status_update", self._note, namespace="/tasks")
        self._client.connect(
            older.server.root, headers=older.headers(), namespaces=["/tasks"], transports=list(transports)
        )
        self._client.emit("join_room", f"collaboration_{older.server.collaboration_id}", namespace="/tasks")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()

    def _note(self, content: dict[str, Any]) -> None:
        with self._changed:
            self.updates.append(content)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=TASK_SECONDS), self.updates


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_whoever_joins_the_room_hears_when_results_come_in(older: Older, transport: str) -> None:
    with Ear(older, [transport]) as ear:
        task_id = older.create()
        wanted = {row["id"] for row in older.get(f"task/{task_id}/result")}

        def all_in() -> bool:
            told = {update["result_id"] for update in ear.updates}
            return wanted <= told and older.get(f"task/{task_id}")["complete"]

        ear.wait_until(all_in)
    results = [requests_result(older, number) for number in wanted]
    assert [json.loads(row["result"]) for row in results] == [{"greeting": "hello world"}] * 2


def requests_result(older: Older, result_id: int) -> dict[str, Any]:
    """Find the result an event named."""
    run = older.get(f"run/{result_id}")
    rows: list[dict[str, Any]] = older.get(f"task/{run['task']['id']}/result")
    return next(row for row in rows if row["id"] == result_id)


def test_a_stranger_hears_nothing_of_the_collaboration(older: Older) -> None:
    heard: list[object] = []
    stranger = socketio.Client(reconnection=False, handle_sigint=False)
    stranger.on("status_update", heard.append, namespace="/tasks")
    stranger.connect(older.server.root, headers=older.headers("delta"), namespaces=["/tasks"])
    stranger.emit("join_room", f"collaboration_{older.server.collaboration_id}", namespace="/tasks")
    with Ear(older, ["websocket"]) as ear:
        task_id = older.create()
        ear.wait_until(lambda: bool(ear.updates))
        older.wait_for(task_id)
    stranger.disconnect()
    assert heard == []
