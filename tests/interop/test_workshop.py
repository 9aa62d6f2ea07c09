"""What a researcher learns in a workshop, typed into the real client, works the same on either server."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.interop.stage import NOT_HERE, eventually
from tests.lab.agents import agents_for
from tests.lab.client import ClientError, ClientWorker
from tests.lab.engine import engine
from tests.lab.images import average_image, script_image
from tests.lab.samples import write_hospitals
from tests.lab.sandbox import SandboxLab
from tests.lab.vantage6 import RealServer

pytestmark = pytest.mark.interop

TASK_SECONDS = 120
PATIENT = "import time\nprint('busy', flush=True)\ntime.sleep(120)\n"


@dataclass(frozen=True)
class Workshop:
    """A server with three hospitals at work, and a researcher at alpha."""

    server: Any
    client: ClientWorker
    files: dict[str, Path]
    average: str
    patient: str

    def ask(self, name: str, /, **arguments: Any) -> Any:
        return self.client.call(name, **arguments)

    def create(self, image: str, method: str, organizations: list[int], **arguments: Any) -> int:
        task = self.ask(
            "task.create",
            collaboration=self.server.collaboration_id,
            organizations=organizations,
            name="workshop",
            description="what everybody tries first",
            image=image,
            input_={"method": method, "kwargs": arguments},
            databases=[{"label": "default"}],
        )
        return int(task["id"])

    @property
    def everybody(self) -> list[int]:
        return list(self.server.organization_ids.values())

    @property
    def alpha(self) -> int:
        return int(self.server.organization_ids["alpha"])


@pytest.fixture(scope="module", params=["sandbox", "real"])
def workshop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with contextlib.ExitStack() as stack:
        try:
            yield set_up(stack, request.param, tmp_path_factory.mktemp("hospitals"))
        except NOT_HERE as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: {error}")


def set_up(stack: contextlib.ExitStack, kind: str, folder: Path) -> Workshop:
    docker = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
    average, patient = average_image(docker), script_image(docker, "patient", PATIENT)
    server: Any = stack.enter_context(SandboxLab() if kind == "sandbox" else RealServer())
    folder.chmod(0o755)
    files = write_hospitals(folder)
    databases = {name: {"default": path} for name, path in files.items()}
    stack.enter_context(agents_for(server, databases))
    client = stack.enter_context(ClientWorker(server))
    return Workshop(server, client, files, average, patient)


# --- looking around -------------------------------------------------------------------------------------------


def test_the_researcher_sees_who_they_are(workshop: Workshop) -> None:
    user = workshop.ask("user.get")
    assert user["username"] == "alpha"
    assert user["organization"]["id"] == workshop.alpha


def test_the_collaboration_is_listed_with_the_fields_asked_for(workshop: Workshop) -> None:
    found = workshop.ask("collaboration.list", fields=["id", "name"])
    assert found == [{"id": workshop.server.collaboration_id, "name": "hospitals"}]


def test_the_organizations_of_the_collaboration_are_listed(workshop: Workshop) -> None:
    found = workshop.ask(
        "organization.list", collaboration=workshop.server.collaboration_id, fields=["id", "name"]
    )
    assert {row["name"]: row["id"] for row in found} == workshop.server.organization_ids


def test_every_node_is_shown_as_online(workshop: Workshop) -> None:
    found = workshop.ask("node.list", collaboration=workshop.server.collaboration_id)["data"]
    assert {row["id"]: row["status"] for row in found} == dict.fromkeys(
        workshop.server.node_ids.values(), "online"
    )
    assert len(workshop.ask("node.list", is_online=True)["data"]) == 3
    assert workshop.ask("node.list", is_online=False)["data"] == []


def test_a_node_tells_which_databases_it_has(workshop: Workshop) -> None:
    # The columns are read beside the start, so that the node is online before they are known.
    eventually(
        lambda: (
            {"key": "database_labels", "value": "default"}
            in workshop.ask("node.get", id_=workshop.server.node_ids["beta"])["config"]
        ),
        within=20,
        what="the server to be told of the database",
    )


def test_a_wrong_password_does_not_log_in(workshop: Workshop) -> None:
    server = workshop.server
    wrong: Any = SimpleNamespace(
        root=server.root, organizations=server.organizations, passwords={"alpha": "not the password"}
    )
    with pytest.raises(ClientError, match="the client ended"), ClientWorker(wrong):
        pass


# --- asking ---------------------------------------------------------------------------------------------------


def test_each_hospital_gives_its_part(workshop: Workshop) -> None:
    task_id = workshop.create(workshop.average, "partial_average", workshop.everybody, column="age")
    waited = workshop.ask("wait_for_results", task_id=task_id, interval=0.5, within=TASK_SECONDS)
    later = workshop.ask("result.from_task", task_id=task_id)
    parts = [json.loads(row["result"]) for row in later["data"]]
    ages = [pd.read_csv(path)["age"] for path in workshop.files.values()]
    assert later == waited
    assert sorted(part["count"] for part in parts) == sorted(len(column) for column in ages)
    assert sorted(part["sum"] for part in parts) == sorted(float(column.sum()) for column in ages)


def test_the_federated_average_is_that_of_all_rows_together(workshop: Workshop) -> None:
    task_id = workshop.create(workshop.average, "central_average", [workshop.alpha], column="age")
    waited = workshop.ask("wait_for_results", task_id=task_id, interval=0.5, within=TASK_SECONDS)
    answer = json.loads(waited["data"][0]["result"])
    together = pd.concat(pd.read_csv(path) for path in workshop.files.values())["age"]
    assert answer["average"] == pytest.approx(together.mean(), rel=1e-12)
    subtasks = workshop.ask("task.list", parent=task_id)["data"]
    assert [subtask["status"] for subtask in subtasks] == ["completed"]
    assert subtasks[0]["job_id"] == workshop.ask("task.get", id_=task_id)["job_id"]


def test_the_runs_of_a_task_show_status_and_log(workshop: Workshop) -> None:
    task_id = workshop.create(workshop.average, "partial_average", [workshop.alpha], column="age")
    workshop.ask("wait_for_results", task_id=task_id, interval=0.5, within=TASK_SECONDS)
    (run,) = workshop.ask("run.from_task", task_id=task_id)["data"]
    assert run["status"] == "completed"
    assert run["log"]
    assert run["started_at"] < run["finished_at"]
    assert json.loads(run["input"])["method"] == "partial_average"
    assert workshop.ask("task.list", name="workshop")["data"][0]["id"] == task_id


def test_a_failing_task_says_in_its_log_what_is_wrong(workshop: Workshop) -> None:
    task_id = workshop.create(workshop.average, "partial_average", [workshop.alpha], column="shoe_size")
    workshop.ask("wait_for_results", task_id=task_id, interval=0.5, within=TASK_SECONDS)
    (run,) = workshop.ask("run.from_task", task_id=task_id)["data"]
    assert run["status"] == "crashed"
    assert "there is no column 'shoe_size' here" in run["log"]
    assert workshop.ask("task.get", id_=task_id)["status"] == "crashed"


def test_a_task_can_be_killed_while_it_runs(workshop: Workshop) -> None:
    task_id = workshop.create(workshop.patient, "m", [workshop.alpha])
    eventually(
        lambda: workshop.ask("task.get", id_=task_id)["status"] == "active",
        within=TASK_SECONDS,
        what="the task to run",
    )
    began = time.monotonic()
    workshop.ask("task.kill", id_=task_id)
    waited = workshop.ask("wait_for_results", task_id=task_id, interval=0.5, within=TASK_SECONDS)
    assert time.monotonic() - began < TASK_SECONDS
    assert not waited["data"][0]["result"]
    (run,) = workshop.ask("run.from_task", task_id=task_id)["data"]
    assert run["status"] == "killed by user"
    assert run["finished_at"]
