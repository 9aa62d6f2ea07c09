"""The embedded server's rules, called without a socket."""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
from werkzeug.security import generate_password_hash
from werkzeug.test import Client, TestResponse

from node_agent.sandbox.server import CollaborationPlan, Credentials, Fault, Faults, Plan
from node_agent.sandbox.server.call import Backend
from node_agent.sandbox.server.database import Database
from node_agent.sandbox.server.links import Links
from node_agent.sandbox.server.population import populate
from node_agent.sandbox.server.tokens import Mint
from node_agent.sandbox.server.web import WebApp

IMAGE = "registry.example.org/some/image:1"
START = "2026-01-31T12:00:00.000000+00:00"
END = "2026-01-31T12:00:05.500000+00:00"
PLAN = Plan(
    organizations=("alpha", "beta", "gamma", "delta"),
    collaborations=(
        CollaborationPlan(name="open", organizations=("alpha", "beta", "gamma")),
        CollaborationPlan(name="secret", organizations=("alpha", "beta"), encrypted=True),
        CollaborationPlan(name="elsewhere", organizations=("delta",)),
    ),
)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def quick_hash(password: str) -> str:
    return generate_password_hash(password, method="pbkdf2:sha256:1")


def cut(_environ: object) -> NoReturn:
    raise ConnectionAbortedError


@dataclass
class Desk:
    """The server's REST side, and what it told its rooms."""

    database: Database
    mint: Mint
    credentials: Credentials
    faults: Faults = field(default_factory=Faults)
    told: list[tuple[str, Any, str]] = field(default_factory=list)
    listening: Callable[[str, Any], None] = lambda _event, _content: None

    def __post_init__(self) -> None:
        backend = Backend(database=self.database, mint=self.mint, links=Links("/api"), tell=self.tell)
        self.web = Client(WebApp(backend, api_path="/api", faults=self.faults, cut=cut))

    def tell(self, event: str, content: object, room: str) -> None:
        self.told.append((event, content, room))
        self.listening(event, content)

    def ask(self, who: str, method: str, path: str, **more: Any) -> TestResponse:
        return self.web.open(f"/api/{path}", method=method, headers=self.headers(who), **more)

    def get(self, who: str, path: str) -> Any:
        answer = self.ask(who, "GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json

    def headers(self, who: str) -> dict[str, str]:
        kind, _, name = who.partition(":")
        if kind == "container":
            return {"Authorization": f"Bearer {name}"}
        return {"Authorization": f"Bearer {self.mint.pair(kind, self.id_of(kind, name))['access_token']}"}  # type: ignore[arg-type]

    def id_of(self, kind: str, name: str) -> int:
        column = "username" if kind == "user" else "name"
        wanted = f"{name} - open Node" if kind == "node" else name
        return int(self.database.value(f"SELECT id FROM {kind} WHERE {column} = ?", wanted))  # noqa: S608

    def org(self, name: str) -> int:
        return self.id_of("organization", name)

    def task(self, *names: str, collaboration: int = 1, **more: Any) -> int:
        answer = self.post_task(*names, collaboration=collaboration, **more)
        assert answer.status_code == 201, answer.text
        assert answer.json is not None
        return int(answer.json["id"])

    def post_task(
        self, *names: str, who: str = "user:alpha", collaboration: int = 1, text: str = b64("{}"), **more: Any
    ) -> TestResponse:
        body = {
            "name": "t",
            "image": IMAGE,
            "collaboration_id": collaboration,
            "organizations": [{"id": self.org(name), "input": text} for name in names or ("alpha",)],
        }
        return self.ask(who, "POST", "task", json=body | more)

    def runs(self, task_id: int) -> dict[str, dict[str, Any]]:
        names = {self.org(name): name for name in PLAN.organizations}
        rows = self.get("user:alpha", f"run?task_id={task_id}")["data"]
        return {names[row["organization"]["id"]]: row for row in rows}

    def run(self, task_id: int, name: str = "alpha") -> dict[str, Any]:
        return self.runs(task_id)[name]

    def patch(self, task_id: int, name: str = "alpha", **fields: object) -> TestResponse:
        run_id = self.run(task_id, name)["id"]
        return self.ask(f"node:{name}", "PATCH", f"run/{run_id}", json=fields)

    def token(self, task_id: int, name: str = "alpha", image: str = IMAGE) -> TestResponse:
        body = {"task_id": task_id, "image": image}
        return self.ask(f"node:{name}", "POST", "token/container", json=body)

    def container(self, task_id: int, name: str = "alpha") -> str:
        answer = self.token(task_id, name)
        assert answer.json is not None
        return f"container:{answer.json['container_token']}"


@pytest.fixture
def desk() -> Iterator[Desk]:
    with contextlib.closing(Database()) as database:
        yield Desk(database, Mint(), populate(database, PLAN, hash_password=quick_hash))


def message(answer: TestResponse) -> str:
    assert answer.json is not None
    return str(answer.json["msg"])


# --- tokens ---------------------------------------------------------------------------------------------------


def test_a_user_logs_in_with_the_password_made_for_them(desk: Desk) -> None:
    login = {"username": "beta", "password": desk.credentials.passwords["beta"].reveal()}
    answer = desk.web.post("/api/token/user", json=login)
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["refresh_url"] == "/api/token/refresh"
    assert answer.json["user_url"] == f"/api/user/{desk.id_of('user', 'beta')}"


@pytest.mark.parametrize("password", ["wrong", "", "x" * 1000])
def test_a_wrong_password_is_refused_with_a_text(desk: Desk, password: str) -> None:
    answer = desk.web.post("/api/token/user", json={"username": "beta", "password": password})
    assert answer.status_code == 400
    assert message(answer) == "Invalid username or password!"


def test_a_node_logs_in_with_its_key(desk: Desk) -> None:
    key = desk.credentials.api_keys["secret", "beta"].reveal()
    answer = desk.web.post("/api/token/node", json={"api_key": key})
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["node_url"].startswith("/api/node/")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "Request body is incorrect"),
        ({"api_key": "no uuid"}, 400, "Request body is incorrect"),
        ({"api_key": "2d1c1ba4-6a0e-4d39-a4f7-6c2f2b1f0d11"}, 401, "Api key is not recognized!"),
    ],
)
def test_a_node_with_a_wrong_key_is_refused_in_known_words(
    desk: Desk, body: object, status: int, text: str
) -> None:
    answer = desk.web.post("/api/token/node", json=body)
    assert (answer.status_code, message(answer)) == (status, text)


def test_each_trouble_with_a_token_has_its_own_answer(desk: Desk) -> None:
    pair = desk.mint.pair("user", 1)

    def answered(header: str | None, path: str = "task", method: str = "GET") -> tuple[int, str]:
        headers = {} if header is None else {"Authorization": header}
        answer = desk.web.open(f"/api/{path}", method=method, headers=headers)
        return answer.status_code, message(answer)

    assert answered(None) == (401, "Missing Authorization Header")
    assert answered("Bearer nonsense") == (422, "Not enough segments")
    assert answered(f"Bearer {pair['refresh_token']}") == (422, "Only non-refresh tokens are allowed")
    assert answered(f"Bearer {pair['access_token']}", "token/refresh", "POST") == (
        422,
        "Only refresh tokens are allowed",
    )
    desk.mint.expire("access")
    assert answered(f"Bearer {pair['access_token']}") == (401, "Token has expired")
    desk.mint.change_secret()
    assert answered(f"Bearer {pair['access_token']}") == (422, "Signature verification failed")


def test_a_refresh_token_gives_two_new_tokens(desk: Desk) -> None:
    pair = desk.mint.pair("node", desk.id_of("node", "alpha"))
    headers = {"Authorization": f"Bearer {pair['refresh_token']}"}
    answer = desk.web.post("/api/token/refresh", headers=headers)
    assert answer.json is not None
    new = {answer.json["access_token"], answer.json["refresh_token"]}
    assert len(new | set(pair.values())) == 4


def test_a_node_may_not_do_what_is_for_users(desk: Desk) -> None:
    assert desk.post_task(who="node:alpha").status_code == 403


# --- updates of runs ------------------------------------------------------------------------------------------


def test_what_an_update_does_not_say_is_kept_for_status_and_start_and_erased_for_the_rest(desk: Desk) -> None:
    task = desk.task()
    desk.patch(task, status="initializing", started_at=START, log="a line", result="AA==")
    desk.patch(task, status="active")
    run = desk.run(task)
    assert (run["status"], run["started_at"]) == ("active", "2026-01-31T12:00:00.000000")
    assert (run["log"], run["finished_at"]) == (None, None)
    assert desk.get("user:alpha", f"result/{run['id']}")["result"] is None


def test_a_finished_run_refuses_updates(desk: Desk) -> None:
    task = desk.task()
    assert desk.patch(task, status="completed", finished_at=END, result="", log="").status_code == 200
    answer = desk.patch(task, status="crashed")
    assert answer.status_code == 400
    assert message(answer) == "Cannot update an already finished algorithm run!"
    assert desk.run(task)["status"] == "completed"


def test_a_run_of_another_organization_cannot_be_changed(desk: Desk) -> None:
    run_id = desk.run(desk.task())["id"]
    answer = desk.ask("node:beta", "PATCH", f"run/{run_id}", json={"status": "active"})
    assert (answer.status_code, message(answer)) == (401, "This is not your algorithm run to PATCH!")


@pytest.mark.parametrize(
    "change",
    [
        {"status": "splendid"},
        {"unknown": "x"},
        {"result": None},
        {"log": 3},
        {"log": "\ud800"},
        {"started_at": "yesterday"},
        {"started_at": "2026-01-31T12:00:00.000000+02:00"},
        {"finished_at": "2026-01-31 12:00:00.000000"},
    ],
)
def test_an_update_that_makes_no_sense_is_refused_and_changes_nothing(
    desk: Desk, change: dict[str, Any]
) -> None:
    task = desk.task()
    assert desk.patch(task, **change).status_code == 400
    assert desk.run(task)["status"] == "pending"


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5"])
def test_times_in_utc_are_read_in_every_usual_form(desk: Desk, text: str) -> None:
    task = desk.task()
    assert desk.patch(task, started_at=text).status_code == 200
    assert desk.run(task)["started_at"].startswith("2026-01-31T12:00:00.")


def test_an_update_is_told_to_the_collaboration(desk: Desk) -> None:
    task = desk.task()
    run_id = desk.run(task)["id"]
    desk.patch(task, status="active")
    assert desk.told[-1] == ("status_update", {"run_id": run_id, "result_id": run_id}, "collaboration_1")


def test_a_failure_ends_the_siblings_that_nobody_has_begun(desk: Desk) -> None:
    task = desk.task("alpha", "beta", "gamma")
    desk.patch(task, "beta", started_at=START)
    desk.patch(task, "alpha", status="crashed", finished_at=END)
    runs = desk.runs(task)
    assert (runs["beta"]["status"], runs["beta"]["finished_at"]) == ("pending", None)
    assert runs["gamma"]["status"] == "failed"
    assert runs["gamma"]["finished_at"]
    assert f"sibling run id={runs['alpha']['id']} failed with status 'crashed'" in runs["gamma"]["log"]


# --- the status of a task -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("pending", "pending"), "pending"),
        (("initializing", "pending"), "initializing"),
        (("active", "initializing"), "active"),
        (("completed", "active"), "active"),
        (("completed", "completed"), "completed"),
        (("crashed", "active"), "crashed"),
        (("crashed", "crashed"), "crashed"),
        (("crashed", "not allowed"), "failed"),
    ],
)
def test_the_status_of_a_task_follows_from_its_runs(
    desk: Desk, statuses: tuple[str, str], expected: str
) -> None:
    task = desk.task("alpha", "beta")
    for name in ("alpha", "beta"):
        desk.patch(task, name, started_at=START)
    for name, status in zip(("alpha", "beta"), statuses, strict=True):
        desk.patch(task, name, status=status)
    assert desk.get("user:alpha", f"task/{task}/status") == {"status": expected}
    assert desk.get("user:alpha", f"task/{task}")["status"] == expected


def test_a_task_is_complete_when_every_run_has_its_end(desk: Desk) -> None:
    task = desk.task("alpha", "beta")
    desk.patch(task, "alpha", status="completed", finished_at=END)
    assert desk.get("user:alpha", f"task/{task}")["complete"] is False
    desk.patch(task, "beta", status="completed", finished_at=END)
    shown = desk.get("user:alpha", f"task/{task}")
    assert (shown["complete"], shown["finished_at"]) == (True, "2026-01-31T12:00:05.500000")


# --- kill and delete ------------------------------------------------------------------------------------------


def test_a_kill_is_told_before_it_stands_in_the_books(desk: Desk) -> None:
    task = desk.task("alpha", "beta")
    desk.patch(task, "alpha", status="completed", finished_at=END)
    beta = desk.run(task, "beta")["id"]
    seen: list[str] = []

    def listening(event: str, _content: Any) -> None:
        seen.append(desk.database.value("SELECT status FROM run WHERE id = ?", beta))

    desk.listening = listening
    assert desk.ask("user:beta", "POST", "kill/task", json={"id": task}).status_code == 200
    assert seen == ["pending"]
    kills = [{"task_id": task, "run_id": beta, "organization_id": desk.org("beta")}]
    assert desk.told[-1] == (
        "kill_containers",
        {"kill_list": kills, "collaboration_id": 1},
        "collaboration_1",
    )
    assert desk.run(task, "alpha")["status"] == "completed"
    assert desk.run(task, "beta")["status"] == "killed by user"
    assert desk.run(task, "beta")["finished_at"]


def test_a_kill_reaches_subtasks(desk: Desk) -> None:
    parent = desk.task()
    child = desk.task("beta", who=desk.container(parent))
    desk.ask("user:alpha", "POST", "kill/task", json={"id": parent})
    assert desk.run(child, "beta")["status"] == "killed by user"


def test_a_finished_or_foreign_task_cannot_be_killed(desk: Desk) -> None:
    task = desk.task()
    assert desk.ask("user:delta", "POST", "kill/task", json={"id": task}).status_code == 401
    desk.patch(task, status="completed", finished_at=END)
    answer = desk.ask("user:alpha", "POST", "kill/task", json={"id": task})
    assert answer.status_code == 400
    assert "already finished with status 'completed'" in message(answer)
    assert desk.ask("user:alpha", "POST", "kill/task", json={"id": 999}).status_code == 404


def test_a_deleted_task_is_gone_with_its_runs_and_its_number_is_not_given_again(desk: Desk) -> None:
    task = desk.task()
    run_id = desk.run(task)["id"]
    assert desk.ask("user:alpha", "DELETE", f"task/{task}").status_code == 200
    assert desk.told[-1][0] == "kill_containers"
    answer = desk.ask("node:alpha", "PATCH", f"run/{run_id}", json={"status": "active"})
    assert (answer.status_code, message(answer)) == (404, f"Run id={run_id} not found!")
    later = desk.task()
    assert later > task
    assert desk.run(later)["id"] > run_id


# --- creating tasks -------------------------------------------------------------------------------------------


def test_a_new_task_is_told_to_its_collaboration(desk: Desk) -> None:
    task = desk.task()
    assert desk.told == [("new_task", {"id": task, "parent_id": None}, "collaboration_1")]


def test_databases_travel_in_order_with_their_parameters_as_text(desk: Desk) -> None:
    wanted = [{"label": "b", "query": "select 1", "arguments": {"x": [1]}}, {"label": "a"}, {"label": "b"}]
    task = desk.task(databases=wanted)
    shown = desk.get("user:alpha", f"task/{task}")["databases"]
    assert [json.loads(row["parameters"]) | {"label": row["label"]} for row in shown] == wanted


@pytest.mark.parametrize(
    "more",
    [
        {"organizations": []},
        {"organizations": [{"id": 1}]},
        {"organizations": [{"id": 4, "input": b64("{}")}]},
        {"organizations": [{"id": 1, "input": b64("{}")}] * 2},
        {"organizations": [{"id": 1, "input": {"method": "m"}}]},
        {"organizations": "everybody"},
        {"organizations": None},
        {"image": ""},
        {"image": 3},
        {"description": "x" * 1025},
        {"databases": [{"query": "select 1"}]},
        {"databases": [{"label": "a", "colour": "red"}]},
        {"databases": ["a"]},
        {"collaboration_id": "1"},
        {"collaboration_id": 2**70},
    ],
)
def test_a_task_that_makes_no_sense_is_refused_and_nobody_hears_of_it(
    desk: Desk, more: dict[str, Any]
) -> None:
    answer = desk.post_task(**more)
    assert answer.status_code == 400
    assert message(answer)
    assert desk.told == []
    assert desk.get("user:alpha", "task")["data"] == []


def test_a_collaboration_that_is_not_there_is_not_found(desk: Desk) -> None:
    assert desk.post_task(collaboration=99).status_code == 404


def test_only_members_create_tasks(desk: Desk) -> None:
    answer = desk.post_task("delta", who="user:alpha", collaboration=3)
    assert answer.status_code == 401
    assert "participating" in message(answer)


def test_inputs_are_readable_in_an_open_collaboration_and_only_there(desk: Desk) -> None:
    sealed = "RUJD$SVY=$c2VjcmV0"
    assert desk.post_task(text=sealed).status_code == 400
    assert desk.post_task(text=b64("{}"), collaboration=2).status_code == 400
    assert desk.post_task(text=sealed, collaboration=2).status_code == 201


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("allowed_users", "1", 201),
        ("allowed_users", "2", 400),
        ("allowed_orgs", "1", 201),
        ("allowed_orgs", "alpha", 201),
        ("allowed_orgs", "beta", 400),
    ],
)
def test_a_node_that_takes_no_tasks_from_this_user_is_not_sent_any(
    desk: Desk, key: str, value: str, expected: int
) -> None:
    desk.database.change(
        "INSERT INTO node_config (node_id, key, value) VALUES (?, ?, ?)",
        desk.id_of("node", "beta"),
        key,
        value,
    )
    assert desk.post_task("beta").status_code == expected


# --- the older form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ['{"method": "m"}', {"method": "m"}, "a word", "word", 3])
def test_an_older_input_is_put_into_base64_and_goes_to_everybody(desk: Desk, given: object) -> None:
    task = desk.task(organizations=None, input=given)
    expected = given if isinstance(given, str) else json.dumps(given)
    assert {name: base64.b64decode(run["input"]).decode() for name, run in desk.runs(task).items()} == {
        "alpha": expected,
        "beta": expected,
        "gamma": expected,
    }


def test_an_older_task_may_name_its_organizations(desk: Desk) -> None:
    task = desk.task(organizations=None, input="{}", organization_ids=[desk.org("beta")])
    assert list(desk.runs(task)) == ["beta"]
    assert desk.post_task(organizations=None, input="{}", organization_ids=["beta"]).status_code == 400
    assert desk.post_task(organizations=None, input="{}", organization_ids=[]).status_code == 400


@pytest.mark.parametrize(("given", "expected"), [("{}", "päng"), (b64("{}"), b64("päng"))])
def test_older_results_come_in_the_form_of_the_input(desk: Desk, given: str, expected: str) -> None:
    task = desk.task(organizations=None, input=given, organization_ids=[desk.org("alpha")])
    assert [row["result"] for row in desk.get("user:beta", f"task/{task}/result")] == [None]
    desk.patch(task, result=b64("päng"), log="", status="completed", finished_at=END)
    assert [row["result"] for row in desk.get("user:beta", f"task/{task}/result")] == [expected]


def test_an_older_result_that_is_no_text_stays_as_it_is(desk: Desk) -> None:
    task = desk.task(organizations=None, input="{}", organization_ids=[desk.org("alpha")])
    binary = base64.b64encode(b"\xff\xfe").decode()
    desk.patch(task, result=binary, log="", status="completed", finished_at=END)
    assert desk.get("user:beta", f"task/{task}/result")[0]["result"] == binary


# --- containers -----------------------------------------------------------------------------------------------


def test_a_container_token_says_what_the_algorithm_works_for(desk: Desk) -> None:
    task = desk.task(databases=[{"label": "default", "query": "select 1"}])
    claims = desk.mint.check(f"Bearer {desk.container(task).partition(':')[2]}")
    assert "exp" not in claims
    assert claims["sub"] == {
        "client_type": "container",
        "node_id": desk.id_of("node", "alpha"),
        "organization_id": desk.org("alpha"),
        "collaboration_id": 1,
        "study_id": None,
        "store_id": None,
        "task_id": task,
        "image": IMAGE,
        "databases": [{"label": "default", "query": "select 1"}],
    }


def test_a_container_token_is_refused_in_known_words(desk: Desk) -> None:
    task = desk.task()
    assert message(desk.token(task, image="other")) == "Image and task do no match"
    assert message(desk.token(999)) == "Parent task does not exist!"
    answer = desk.ask(
        "node:alpha", "POST", "token/container", json={"task_id": desk_of_delta(desk), "image": IMAGE}
    )
    assert (answer.status_code, message(answer)) == (401, "You are not within the collaboration")
    desk.patch(task, status="completed", finished_at=END)
    answer = desk.token(task)
    assert (answer.status_code, message(answer)) == (400, "Task is already finished!")


def desk_of_delta(desk: Desk) -> int:
    return desk.task("delta", who="user:delta", collaboration=3)


def test_a_subtask_belongs_to_the_job_and_its_results_to_the_node_that_asked(desk: Desk) -> None:
    parent = desk.task("beta", databases=[{"label": "default"}])
    child = desk.task("alpha", "gamma", who=desk.container(parent, "beta"), image=f"x/{IMAGE}")
    shown = desk.get("user:alpha", f"task/{child}")
    assert (shown["parent"]["id"], shown["job_id"]) == (parent, parent)
    assert shown["init_org"]["id"] == desk.org("beta")
    assert shown["init_user"]["id"] == desk.id_of("user", "alpha")
    assert shown["image"] == IMAGE
    assert [row["label"] for row in shown["databases"]] == ["default"]
    assert desk.told[-1] == ("new_task", {"id": child, "parent_id": parent}, "collaboration_1")


@pytest.mark.parametrize("more", [{"image": "evil/image:1"}, {"collaboration": 2}, {"collaboration": 3}])
def test_a_container_creates_no_other_tasks(desk: Desk, more: dict[str, Any]) -> None:
    token = desk.container(desk.task())
    answer = desk.post_task(who=token, **more)
    assert (answer.status_code, message(answer)) == (401, "Container-token is not valid")


def test_a_container_of_a_finished_task_creates_nothing(desk: Desk) -> None:
    task = desk.task()
    token = desk.container(task)
    desk.patch(task, status="completed", finished_at=END)
    assert desk.post_task(who=token).status_code == 401


# --- listings -------------------------------------------------------------------------------------------------


def test_a_listing_gives_ten_of_all_newest_first_and_says_how_to_go_on(desk: Desk) -> None:
    made = [desk.task() for _ in range(23)]
    answer = desk.ask("user:alpha", "GET", "task?name=t&page=2")
    assert answer.json is not None
    assert [row["id"] for row in answer.json["data"]] == made[::-1][10:20]
    assert answer.headers["total-count"] == "23"
    assert answer.json["links"] == {
        "first": "/api/task?name=t&page=1",
        "self": "/api/task?name=t&page=2",
        "last": "/api/task?name=t&page=3",
        "previous": "/api/task?name=t&page=1",
        "next": "/api/task?name=t&page=3",
    }


def test_an_empty_listing_has_no_last_page(desk: Desk) -> None:
    assert set(desk.get("user:alpha", "task")["links"]) == {"first", "self"}


def test_open_runs_of_a_node_are_found_with_their_task(desk: Desk) -> None:
    first, second = desk.task("alpha", "beta"), desk.task("alpha")
    desk.patch(first, status="completed", finished_at=END)
    node = desk.id_of("node", "alpha")
    rows = desk.get("node:alpha", f"run?state=open&node_id={node}&include=task&sort=id")["data"]
    assert [row["task"]["id"] for row in rows] == [second]
    assert rows[0]["task"]["image"] == IMAGE
    assert "runs" not in rows[0]["task"]


def test_a_task_can_be_shown_with_its_runs_and_results(desk: Desk) -> None:
    task = desk.task("alpha", "beta")
    shown = desk.get("user:alpha", f"task/{task}?include=runs,results")
    assert len(shown["runs"]) == len(shown["results"]) == 2
    assert isinstance(desk.get("user:alpha", f"task/{task}?include=runs")["results"], str)


@pytest.mark.parametrize(
    "query",
    [
        "task?page=0",
        "task?per_page=x",
        "task?sort=input",
        "task?sort=id;drop",
        "task?collaboration_id=one",
        f"task?job_id={2**70}",
        "run?task_id=999",
        "run?node_id=999",
        "run?started_from=yesterday",
    ],
)
def test_a_query_that_makes_no_sense_is_refused(desk: Desk, query: str) -> None:
    answer = desk.ask("user:alpha", "GET", query)
    assert answer.status_code == 400
    assert message(answer)


def test_filters_are_values_and_never_sql(desk: Desk) -> None:
    desk.task()
    assert desk.get("user:alpha", "task?name=x' OR '1'='1")["data"] == []


def test_tasks_are_filtered_by_what_they_are(desk: Desk) -> None:
    parent = desk.task(databases=[{"label": "default"}])
    child = desk.task("beta", who=desk.container(parent), databases=[{"label": "other"}])

    def found(query: str) -> list[int]:
        return [row["id"] for row in desk.get("user:alpha", f"task?{query}")["data"]]

    assert found(f"parent_id={parent}") == [child]
    assert found("is_user_created=1") == [parent]
    assert found("is_user_created=0") == [child]
    assert found("database=default") == [parent]
    assert found("status=pend%25") == [child, parent]
    assert found(f"run_id={desk.run(child, 'beta')['id']}") == [child]


# --- who sees what --------------------------------------------------------------------------------------------


def test_nobody_sees_into_a_foreign_collaboration(desk: Desk) -> None:
    task = desk.task()
    run_id = desk.run(task)["id"]
    node = desk.id_of("node", "alpha")
    assert desk.get("user:delta", "task")["data"] == []
    assert desk.get("user:delta", "run")["data"] == []
    for path in (f"task/{task}", f"run/{run_id}", f"result/{run_id}", "collaboration/1", f"node/{node}"):
        assert desk.ask("user:delta", "GET", path).status_code == 401
    assert desk.ask("user:delta", "GET", f"organization/{desk.org('alpha')}").status_code == 401
    assert desk.ask("user:delta", "GET", f"user/{desk.id_of('user', 'alpha')}").status_code == 401
    assert desk.ask("user:delta", "GET", f"run?task_id={task}").status_code == 401
    assert desk.ask("user:delta", "DELETE", f"task/{task}").status_code == 401


def test_a_user_sees_collaborations_partners_and_their_nodes(desk: Desk) -> None:
    def names(path: str) -> list[str]:
        return [row["name"] for row in desk.get("user:alpha", path)["data"]]

    assert names("collaboration") == ["open", "secret"]
    assert names("organization") == ["alpha", "beta", "gamma"]
    assert names("organization?collaboration_id=2") == ["alpha", "beta"]
    assert names("node?collaboration_id=2") == ["alpha - secret Node", "beta - secret Node"]
    members = desk.get("user:alpha", "collaboration/2?include=organizations")["organizations"]
    assert [row["name"] for row in members] == ["alpha", "beta"]


def test_an_organization_publishes_its_own_key_only(desk: Desk) -> None:
    alpha, beta = desk.org("alpha"), desk.org("beta")
    body = {"public_key": b64("a key")}
    assert desk.ask("node:alpha", "PATCH", f"organization/{alpha}", json=body).status_code == 200
    assert desk.get("user:beta", f"organization/{alpha}")["public_key"] == b64("a key")
    assert desk.ask("node:alpha", "PATCH", f"organization/{beta}", json=body).status_code == 401
    wrong = {"public_key": "no base64!"}
    assert desk.ask("node:alpha", "PATCH", f"organization/{alpha}", json=wrong).status_code == 400


def test_everybody_with_a_token_is_seen(desk: Desk) -> None:
    node = desk.id_of("node", "alpha")
    assert desk.get("user:alpha", f"node/{node}")["last_seen"] is None
    desk.get("node:alpha", f"node/{node}")
    assert desk.get("user:alpha", f"node/{node}")["last_seen"]


def test_a_node_keeps_ports_and_an_address(desk: Desk) -> None:
    run_id = desk.run(desk.task())["id"]
    body = {"run_id": run_id, "port": 49200, "label": "x"}
    assert desk.ask("node:alpha", "POST", "port", json=body).status_code == 201
    assert desk.ask("node:beta", "POST", "port", json=body).status_code == 401
    assert [port["port"] for port in desk.get("user:alpha", f"run/{run_id}")["ports"]] == [49200]
    assert desk.ask("node:alpha", "DELETE", f"port?run_id={run_id}").status_code == 200
    assert desk.get("user:alpha", f"run/{run_id}")["ports"] == []
    path = f"node/{desk.id_of('node', 'alpha')}"
    assert desk.ask("node:alpha", "PATCH", path, json={"ip": "10.0.0.3"}).json["ip"] == "10.0.0.3"  # type: ignore[index]
    assert desk.ask("node:alpha", "PATCH", path, json={"ip": "10.0.0.300"}).status_code == 400
    assert desk.ask("node:alpha", "PATCH", path, json={"clear_ip": True}).json["ip"] is None  # type: ignore[index]


# --- paths and faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/version", "/apis/version", "/api", "/api/nowhere", f"/api/task/{2**70}"])
def test_a_path_that_is_none_is_not_found(desk: Desk, path: str) -> None:
    assert desk.web.get(path, headers=desk.headers("user:alpha")).status_code == 404


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(desk: Desk, content: bytes) -> None:
    answer = desk.ask("user:alpha", "POST", "task", data=content, content_type="application/json")
    assert (answer.status_code, message(answer)) == (400, "Request body is incorrect")


def test_a_fault_hits_the_next_calls_to_its_path_and_no_others(desk: Desk) -> None:
    desk.faults.add("GET", "/version", Fault(status=503, body="away"), times=2)
    answers = [desk.web.get(f"/api/{path}").status_code for path in ("health", *["version"] * 3)]
    assert answers == [200, 503, 503, 200]


def test_a_call_can_be_cut_before_or_after_it_is_carried_out(desk: Desk) -> None:
    task = desk.task()
    run_id = desk.run(task)["id"]

    def patch(status: str) -> None:
        with pytest.raises(ConnectionAbortedError):
            desk.ask("node:alpha", "PATCH", f"run/{run_id}", json={"status": status})

    desk.faults.add("PATCH", "/run", Fault(drop=True))
    patch("initializing")
    assert desk.run(task)["status"] == "pending"
    desk.faults.add("PATCH", "/run", Fault(lose_answer=True))
    patch("active")
    assert desk.run(task)["status"] == "active"


def test_an_answer_may_come_byte_by_byte_and_is_whole_in_the_end(desk: Desk) -> None:
    desk.faults.add("GET", "/version", Fault(byte_seconds=0.000_1))
    slow = desk.web.get("/api/version")
    assert slow.data == desk.web.get("/api/version").data
    assert int(slow.headers["Content-Length"]) == len(slow.data)


def test_a_refusal_on_purpose_may_have_headers_of_its_own(desk: Desk) -> None:
    desk.faults.add("GET", "/version", Fault(status=503, headers={"Retry-After": "7"}))
    answer = desk.web.get("/api/version")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")


def test_half_an_answer_announces_the_whole(desk: Desk) -> None:
    desk.faults.add("GET", "/version", Fault(truncate=True))
    answer = desk.web.get("/api/version")
    assert int(answer.headers["Content-Length"]) > len(answer.data)
