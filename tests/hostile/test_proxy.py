"""What an algorithm may learn through the proxy: two organizations, an encrypted collaboration, the real server.

bob@beta sends algorithms to alpha's node, which holds alpha's private key. They ask for what belongs to alice@alpha.
"""

import contextlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node_agent.payload.keys import create_private_key
from tests.interop.stage import SMALL_LIMITS, SubmittedTask, eventually
from tests.lab.agents import AgentProcess
from tests.lab.client import ClientWorker
from tests.lab.vantage6 import RealServer

pytestmark = pytest.mark.interop

SECRET = "of-alice-alone"
ORGANIZATIONS = ("alpha", "beta")


@dataclass(frozen=True)
class Scene:
    """Two nodes, and what alice asked beta before bob comes."""

    server: RealServer
    agents: dict[str, AgentProcess]
    clients: dict[str, ClientWorker]
    script: str

    def ask(self, user: str, organization: str, script: str) -> SubmittedTask:
        """Send the script as a task of *user* to the node of *organization*."""
        client = self.clients[user]
        task = client.create_task(
            image=self.script,
            method="script",
            arguments={"script": textwrap.dedent(script)},
            organizations=[self.server.organization_ids[organization]],
            databases=[],
        )
        return SubmittedTask(task, client)

    def told(self, task: SubmittedTask) -> Any:
        """Wait for the end of a task of one run and return what its algorithm wrote."""
        return task.result(within=120)


@pytest.fixture(scope="module")
def scene(script: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Start the server, one agent for each organization, and one researcher of each."""
    folder = tmp_path_factory.mktemp("keys")
    keys = {name: folder / f"{name}.pem" for name in ORGANIZATIONS}
    for file in keys.values():
        create_private_key(file)
    with ExitStack() as stack:
        server = stack.enter_context(RealServer(ORGANIZATIONS, encrypted=True))
        agents = {name: agent_of(server, name, keys[name]) for name in ORGANIZATIONS}
        for agent in agents.values():
            stack.callback(agent.clean_up)
            agent.launch()
            stack.callback(agent.stop)
        for agent in agents.values():
            agent.wait_until_ready()
        clients = {
            name: stack.enter_context(ClientWorker(server, name, private_key=keys[name]))
            for name in ORGANIZATIONS
        }
        yield Scene(server, agents, clients, script)


def agent_of(server: RealServer, name: str, key: Path) -> AgentProcess:
    return AgentProcess(
        server_url=server.url,
        api_key=server.api_keys[name],
        settings={"encryption": {"private_key": str(key)}, "limits": SMALL_LIMITS},
    )


@pytest.fixture(scope="module")
def alices(scene: Scene) -> SubmittedTask:
    """Return a task of alice that ran at beta: its result is sealed for alpha."""
    task = scene.ask("alpha", "beta", f"write('{SECRET}')")
    assert scene.told(task) == SECRET
    return task


TOKEN = 'token = open(env("TOKEN_FILE")).read().strip()\n'


def asking(*paths: str) -> str:
    """Write a script that asks for each path and returns status and text of every answer."""
    return TOKEN + f"write([call('GET', path, token) for path in {list(paths)!r}])"


def holds_secret(answer: Any) -> bool:
    """Check whether an answer holds what alice's algorithm wrote, plain or in the proxy's base64."""
    text = json.dumps(answer)
    return SECRET in text or "b2YtYWxpY2UtYWxvbmU" in text


def test_a_result_of_another_researcher_is_refused_and_never_opened(
    scene: Scene, alices: SubmittedTask
) -> None:
    number = alices.id
    run = alices.run["id"]
    paths = (
        f"/result?task_id={number}",
        f"/result?task_id={number}&page=1",
        f"/result/{run}",
        f"/run?task_id={number}",
        f"/run/{run}",
        f"/run/{run}?include=task",
        f"/task/{number}",
        f"/task/{number}/status",
        f"/task?parent_id={number}",
        f"/task?job_id={number}",
    )
    answers = scene.told(scene.ask("beta", "alpha", asking(*paths)))
    assert not holds_secret(answers)
    assert [status for status, _ in answers] == [403] * len(paths), answers
    assert all(list(text) == ["msg"] for _, text in answers)
    refused = scene.agents["alpha"].wait_for("proxy_access_refused", within=5)
    assert refused["run_id"]


def test_own_task_with_anothers_named_beside_it_is_refused(scene: Scene, alices: SubmittedTask) -> None:
    number = alices.id
    script = TOKEN + textwrap.dedent(
        f"""
        own = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["sub"]["task_id"]
        queries = [
            f"task_id={{own}}&task_id={number}", f"task_id={number}&task_id={{own}}",
            f"task_id={{own}}&task%5fid={number}", f"task_id={{own}},{number}", f"task_id={{own}}&collaboration_id=1",
            f"task_id={{own}}%20OR%201", f"task_id={{own}}&organization_id=1", f"task_id[]={number}", f"task_id=+{number}",
        ]
        write([call("GET", f"/{{kind}}?{{query}}", token) for kind in ("run", "result") for query in queries])
        """
    )
    answers = scene.told(scene.ask("beta", "alpha", script))
    assert not holds_secret(answers)
    assert {status for status, _ in answers} <= {400, 403}, answers


def test_lists_without_a_task_show_nothing(scene: Scene, alices: SubmittedTask) -> None:
    paths = ("/run", "/run?per_page=50", "/run?state=open", "/run?collaboration_id=1", "/result", "/task")
    answers = scene.told(scene.ask("beta", "alpha", asking(*paths)))
    assert [status for status, _ in answers] == [400] * len(paths), answers
    assert all("data" not in text for _, text in answers)


def test_a_hundred_guessed_numbers_win_nothing(scene: Scene, alices: SubmittedTask) -> None:
    script = TOKEN + textwrap.dedent(
        """
        own = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["sub"]["task_id"]
        found = []
        for number in range(1, 101):
            for path in (f"/result?task_id={number}", f"/task/{number}"):
                status, text = call("GET", path, token)
                if status == 200 and number != own:
                    found.append([path, text])
        write(found)
        """
    )
    assert scene.told(scene.ask("beta", "alpha", script)) == []


CENTRAL = (
    TOKEN
    + """
def part(script, organization):
    inner = json.dumps({{"method": "script", "kwargs": {{"script": script}}}}).encode()
    body = {{"image": own["image"], "name": "part", "collaboration_id": own["collaboration_id"], "databases": [],
            "organizations": [{{"id": organization, "input": base64.b64encode(inner).decode()}}]}}
    status, task = call("POST", "/task", token, body)
    assert status == 201, task
    deadline = time.monotonic() + 60
    while call("GET", f"/task/{{task['id']}}/status", token)[1]["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return task

own = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["sub"]
task = part("write('part')", {organization})
runs = call("GET", f"/run?task_id={{task['id']}}&page=1", token)[1]["data"]
write({{
    "list": call("GET", f"/result?task_id={{task['id']}}&page=1", token)[1]["data"],
    "one": call("GET", f"/result/{{runs[0]['id']}}", token)[1],
    "children": call("GET", f"/task?parent_id={{own['task_id']}}", token)[1]["data"],
    "itself": call("GET", f"/task/{{own['task_id']}}", token)[1]["id"],
}})
"""
)


WAITS_WITH_PART = (
    CENTRAL[: CENTRAL.index("runs = ")]
    + """
open("/mnt/tmp/made", "w").close()
while not os.path.exists("/mnt/tmp/leave"):
    time.sleep(0.1)
write(call("GET", f"/result?task_id={{task['id']}}&page=1", token)[1]["data"][0]["result"])
"""
)
LENDS_TOKEN = (
    CENTRAL[: CENTRAL.index("task = part")]
    + """
open("/mnt/tmp/lent", "w").write(token)
theirs = '''
lent = open("/mnt/tmp/lent").read()
number = json.loads(base64.urlsafe_b64decode(lent.split(".")[1] + "=="))["sub"]["task_id"]
write([call("GET", f"/task/{{number}}", lent), call("GET", f"/task/{{number}}", open(env("TOKEN_FILE")).read())])
'''
task = part(theirs, {organization})
write(json.loads(base64.b64decode(call("GET", f"/result?task_id={{task['id']}}", token)[1]["data"][0]["result"])))
"""
)


def test_an_algorithm_still_reads_the_results_of_its_own_subtasks(scene: Scene) -> None:
    script = CENTRAL.format(organization=scene.server.organization_ids["beta"])
    task = scene.ask("beta", "alpha", script)
    told = scene.told(task)
    assert told["itself"] == task.id
    assert [row["result"] for row in told["list"]] == ["InBhcnQi"]
    assert told["one"]["result"] == "InBhcnQi"
    assert len(told["children"]) == 1


def test_a_restart_of_the_agent_does_not_cut_an_algorithm_off_from_its_subtasks(scene: Scene) -> None:
    agent = scene.agents["alpha"]
    task = scene.ask(
        "beta", "alpha", WAITS_WITH_PART.format(organization=scene.server.organization_ids["beta"])
    )
    made = eventually(
        lambda: list((agent.state_dir / "jobs").glob("*/made")), within=60, what="the end of the subtask"
    )
    agent.stop()
    agent.start()
    made[0].with_name("leave").touch()
    assert scene.told(task) == "InBhcnQi"


def test_a_token_that_was_handed_on_is_refused_in_another_container(scene: Scene) -> None:
    script = LENDS_TOKEN.format(organization=scene.server.organization_ids["alpha"])
    lent, own = scene.told(scene.ask("beta", "alpha", script))
    assert lent == [403, {"msg": "This token belongs to another container."}]
    assert own[0] == 200


ASKS_FROM_OUTSIDE = """
import socket
try:
    with socket.create_connection(("{address}", {port}), timeout=10) as line:
        line.sendall(b"GET /version HTTP/1.0\\r\\n\\r\\n")
        print(line.recv(100))
except OSError:
    print(b"")
"""


def test_ordinary_containers_and_users_of_the_machine_get_no_answer(scene: Scene) -> None:
    agent = scene.agents["alpha"]
    facts = agent.wait_for("proxy_listening", within=5)
    code = ASKS_FROM_OUTSIDE.format(address=facts["address"], port=facts["port"])
    user = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert user.stdout == "b''\n"
    with contextlib.closing(agent.engine()) as engine:
        said = engine.containers.run(
            scene.script, ["-c", code], entrypoint="python3", remove=True, labels={"node-agent-lab": "1"}
        )
    assert said == b"b''\n"
