"""What algorithms get beyond the contract and what researchers see of their logs, on the real server.

Three nodes with different owners: alpha shares everything live, beta describes runs and shares no logs, gamma takes its
images from a registry with a login and shares logs on errors.
"""

import base64
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import socketio

from tests.interop.stage import SMALL_LIMITS, Stage, SubmittedTask, eventually
from tests.lab.agents import AgentProcess
from tests.lab.registry import Login, registry

pytestmark = pytest.mark.interop

PASSWORD = "s3cret-of-the-study"
KEY = "k-7b1e-of-the-owner"
TALK = """
    print('half way')
    print('address', env('STUDY_DATABASE_URI'), os.environ['STUDY_DATABASE_URI'])
    print('key', env('API_KEY'), os.environ['API_KEY'])
    print('token', open(env('TOKEN_FILE')).read())
    open('/mnt/tmp/talking', 'w').close()
    while not os.path.exists('/mnt/tmp/further'):
        time.sleep(0.05)
    print('further on')
    while not os.path.exists('/mnt/tmp/end'):
        time.sleep(0.05)
    print('the end')
    write({'threshold': env('THRESHOLD')})
"""


def write_helper(folder: Path, host: str, login: Login) -> Path:
    answer = json.dumps({"ServerURL": host, "Username": login.username, "Secret": login.password})
    helper = folder / "docker-credential-lab"
    helper.write_text(f"#!/bin/sh\nread -r host\n[ \"$host\" = {host} ] || exit 1\necho '{answer}'\n")
    helper.chmod(0o700)
    config = folder / "config.json"
    config.write_text(json.dumps({"credHelpers": {host: "lab"}}))
    config.chmod(0o600)
    return config


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sources")
    folder.chmod(0o755)
    pd.DataFrame({"age": [30, 40]}).to_csv(folder / "default.csv", index=False)
    pd.DataFrame({"weight": [60.5]}).to_excel(folder / "book.xlsx", sheet_name="weights", index=False)
    with closing(sqlite3.connect(folder / "clinic.db")) as database:
        database.execute("CREATE TABLE visits (day INTEGER, ward TEXT)")
    return [
        {"label": "default", "type": "csv", "uri": str(folder / "default.csv")},
        {"label": "book", "type": "excel", "uri": str(folder / "book.xlsx")},
        {"label": "clinic", "type": "sqlite", "uri": str(folder / "clinic.db")},
        {
            "label": "study",
            "type": "sql",
            "uri": f"postgresql://reader:{PASSWORD}@127.0.0.1:9/study",
        },
    ]


@pytest.fixture(scope="module")
def owners(real: Stage, files: list[dict[str, Any]]) -> Iterator[dict[str, AgentProcess]]:
    settings: dict[str, dict[str, Any]] = {
        "alpha": {
            "databases": files,
            "share": {"live_logs": True},
            "algorithm_env": {"THRESHOLD": "5", "API_KEY": KEY},
            "algorithm_hosts": {"db.example.org": "192.0.2.7"},
        },
        "beta": {
            "databases": files,
            "run_context_file": True,
            "share": {"algorithm_logs": False, "columns": False},
            "policy": {"gpu": [real.average.partition(":")[0]]},
        },
    }
    with ExitStack() as stack:
        agents = {}
        for name, chosen in settings.items():
            agents[name] = real.agent(organization=name, settings={"limits": SMALL_LIMITS} | chosen)
            stack.callback(agents[name].clean_up)
            agents[name].launch()
            stack.callback(agents[name].stop)
        for agent in agents.values():
            agent.wait_until_ready()
        yield agents


# --- logs -----------------------------------------------------------------------------------------------------


@contextmanager
def listening(real: Stage) -> Iterator[list[dict[str, Any]]]:
    """Hear what the server tells a researcher's screen."""
    heard: list[dict[str, Any]] = []
    client = socketio.Client(reconnection=False, handle_sigint=False)
    client.on("algorithm_log", heard.append, namespace="/tasks")
    client.connect(
        real.server.root,
        headers={"Authorization": f"Bearer {real.user_token()}"},
        namespaces=["/tasks"],
        wait_timeout=10,
    )
    try:
        yield heard
    finally:
        client.disconnect()


def place_of(agent: AgentProcess, marker: str) -> Path:
    """Find the temporary folder of the job whose algorithm made *marker* in it."""
    return eventually(
        lambda: next(iter((agent.state_dir / "jobs").glob(f"*/{marker}")), None),
        within=30,
        what="the algorithm to begin",
    ).parent


def test_a_log_is_seen_while_the_run_goes_on_also_across_a_restart_and_is_whole_at_the_end(
    real: Stage, owners: dict[str, AgentProcess]
) -> None:
    alpha = owners["alpha"]
    with listening(real) as heard:
        task = real.submit(TALK, databases=("default", "study"))
        place = place_of(alpha, "talking")
        eventually(lambda: "token" in (task.run["log"] or ""), within=20, what="the first lines")
        eventually(lambda: heard, within=10, what="a word to the researcher's screen")
        assert task.run["status"] == "active"
        alpha.kill()
        (place / "further").touch()
        alpha.start()
        eventually(lambda: "further on" in task.run["log"], within=20, what="the lines after the restart")
        live = task.run["log"]
        (place / "end").touch()
        assert task.result() == {"threshold": "5"}
    final = task.run["log"]
    assert live.count("half way") == live.count("further on") == 1
    assert final.startswith("half way\n")
    assert final.endswith("further on\nthe end\n")
    for log in (live, final, json.dumps(heard)):
        assert not leaks(log)
    assert final.splitlines()[1].startswith("address postgresql://reader:***@")
    assert final.splitlines()[2:4] == ["key *** ***", "token ***"]


def leaks(text: str) -> list[str]:
    """List what of the secrets stands in a text, in whatever form."""
    encoded = base64.b32encode(KEY.encode()).decode().rstrip("=")
    return [form for form in (PASSWORD, KEY, encoded, "eyJ") if form in text]


def test_a_flood_is_cut_while_the_run_goes_on_and_whole_in_head_and_tail_at_the_end(
    real: Stage, owners: dict[str, AgentProcess]
) -> None:
    task = real.submit(
        """
        for number in range(30_000):
            print('line', number, 'x' * 90)
        open('/mnt/tmp/flooding', 'w').close()
        while not os.path.exists('/mnt/tmp/end'):
            time.sleep(0.05)
        write(1)
        """
    )
    place = place_of(owners["alpha"], "flooding")
    eventually(lambda: "[node]" in (task.run["log"] or ""), within=20, what="the mark")
    live = task.run["log"]
    assert live.startswith("line 0 x")
    assert len(live) < 70_000
    (place / "end").touch()
    assert task.result() == 1
    final = task.run["log"]
    assert final.startswith("line 0 x")
    assert final.rstrip().endswith("line 29999 " + "x" * 90)
    assert len(final) <= 64 * 1024


def test_a_log_that_is_not_shared_is_neither_seen_before_nor_after_the_end(
    real: Stage, owners: dict[str, AgentProcess]
) -> None:
    task = real.submit("print('what patients said'); 1 / 0", organization="beta")
    run = task.ended()
    assert run["status"] == "crashed"
    assert run["log"] == (
        "[node] The algorithm ended with exit code 1.\n"
        "[node] This node does not share the logs of algorithms.\n"
    )


# --- what containers get --------------------------------------------------------------------------------------


def test_the_owners_variables_and_hosts_are_there_and_asking_twice_for_a_database_is_fine(
    real: Stage, owners: dict[str, AgentProcess]
) -> None:
    task = real.client.create_task(
        image=real.script,
        method="script",
        arguments={
            "script": "write([env('THRESHOLD'), socket.gethostbyname('db.example.org'), env('BOOK_QUERY'),"
            " env('BOOK_SHEET_NAME'), env('USER_REQUESTED_DATABASE_LABELS'), env('DB_LABELS'),"
            " os.path.exists(env('BOOK_DATABASE_URI'))])"
        },
        organizations=[real.server.organization_ids["alpha"]],
        databases=[
            {"label": "book", "sheet_name": "weights"},
            {"label": "default"},
            {"label": "book", "query": "SELECT 1"},
        ],
    )
    assert SubmittedTask(task, real.client).result() == [
        "5",
        "192.0.2.7",
        "SELECT 1",
        "weights",
        "book,default,book",
        "book,default",
        True,
    ]


def test_a_run_is_described_where_the_owner_wants_it(real: Stage, owners: dict[str, AgentProcess]) -> None:
    task = real.submit(
        "write(json.load(open(os.environ['RUN_CONTEXT_FILE'])))", organization="beta", databases=("default",)
    )
    described = task.result()
    assert described["schema_version"] == "0.1"
    assert described["entrypoint"]["name"] == "script"
    assert list(described["arguments"]["named"]) == ["script"]
    assert described["inputs"] == [{"id": "default", "uri": "/mnt/default.csv", "type": "csv"}]
    assert described["x-vantage6"]["task_id"] == task.id
    assert described["x-vantage6"]["run_id"] == task.run["id"]
    refused = real.submit("write(1)", organization="beta", databases=("study",)).ended()
    assert refused["status"] == "start failed"
    assert "'study' is none" in refused["log"]


def test_a_gpu_the_machine_does_not_have_ends_the_run_in_plain_words(
    real: Stage, owners: dict[str, AgentProcess]
) -> None:
    task = real.client.create_task(
        image=real.average,
        method="partial_average",
        arguments={"column": "age"},
        organizations=[real.server.organization_ids["beta"]],
    )
    run = SubmittedTask(task, real.client).ended()
    assert run["status"] == "start failed"
    assert "gives the image a GPU (policy.gpu), and its engine has none" in run["log"]


# --- what the server is told ----------------------------------------------------------------------------------


def test_column_names_are_shared_unless_the_owner_says_otherwise(
    real: Stage, owners: dict[str, AgentProcess]
) -> None:
    def told(organization: str) -> list[dict[str, str]]:
        nodes = real.client.call("node.list", is_online=True)["data"]
        ids = [node["id"] for node in nodes if node["name"].startswith(organization)]
        return [] if not ids else list(real.client.call("node.get", id_=ids[0])["config"])

    eventually(
        lambda: [fact for fact in told("alpha") if fact["key"] == "columns_clinic"],
        within=30,
        what="columns",
    )
    alpha, beta = told("alpha"), told("beta")
    assert [fact["value"] for fact in alpha if fact["key"] == "columns_clinic"] == ["day", "ward"]
    assert [fact["value"] for fact in alpha if fact["key"] == "columns_book"] == ["weight"]
    assert [fact["value"] for fact in beta if fact["key"] == "database_labels"]
    assert not [fact for fact in beta if fact["key"].startswith("columns_")]


# --- registries -----------------------------------------------------------------------------------------------


def test_an_image_comes_by_a_credential_helper_and_runs_by_its_digest_when_the_registry_is_down(
    real: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    login = Login.random()
    with ExitStack() as stack:
        shop_open = stack.enter_context(ExitStack())
        shop = shop_open.enter_context(registry(login))
        private = shop.push(real.docker, real.script, f"private-{os.getpid()}:1")
        settings = {
            "limits": SMALL_LIMITS,
            "policy": {"algorithms": [f"{shop.host}/*"]},
            "images": {"pull": "always", "docker_config": str(write_helper(tmp_path, shop.host, login))},
            "share": {"algorithm_logs": "errors"},
        }
        agent = stack.enter_context(real.agent(organization="gamma", settings=settings))
        checked = agent.command("check", "--json").stdout
        assert "accepts the login (images.docker_config, by docker-credential-lab)" in checked
        assert login.password not in checked
        pinned = [private.pinned, f"{private.reference}@{private.digest}"]
        for image in (private.reference, pinned[1]):
            assert real.submit("write(1)", organization="gamma", image=image).result() == 1
        shop_open.close()
        for image in pinned:
            assert real.submit("print('x'); write(2)", organization="gamma", image=image).result() == 2
        down = real.submit("write(3)", organization="gamma", image=private.reference).ended()
        assert down["status"] == "non-existing Docker image"
        assert "does not answer" in down["log"]
        assert login.password not in agent.log_file.read_text()
        # the name with the tag was the last one that held the digest
        real.docker.images.remove(private.reference)
