"""What interop tests stand on: the real server, a researcher with the real client, and an algorithm that does as told.

Owns how a test says what an algorithm shall do and reads back what became of it. Must not know any single test.
"""

import base64
import contextlib
import json
import sqlite3
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests

from tests.lab.agents import AgentProcess
from tests.lab.client import ClientWorker
from tests.lab.engine import EngineError, engine
from tests.lab.images import ALGORITHMS, ImageError, algorithm_image, average_image, script_image
from tests.lab.vantage6 import RealServer, ServerError
from tests.lab.venvs import VenvError

__all__ = ["NOT_HERE", "Stage", "SubmittedTask", "eventually", "stage"]

NOT_HERE = (EngineError, ImageError, ServerError, VenvError)
"""What says that this machine cannot run these tests."""

RUN_SECONDS = 60
MIB = 1 << 20

SMALL_LIMITS = {
    "concurrent_runs": 4,
    "cpus": 1,
    "memory": "96MiB",
    "pids": 40,
    "tmp_size": "4MiB",
    "output_size": "256KiB",
    "log_size": "64KiB",
    "run_time": "60s",
}

ALGORITHM = """\
import base64, json, os, socket, sys, time, urllib.error, urllib.request

def env(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()

def write(value):
    with open(env("OUTPUT_FILE"), "w") as output:
        json.dump(value, output)

def count_start():
    with open("/mnt/tmp/starts", "a") as starts:
        starts.write("x")
    with open("/mnt/tmp/starts") as starts:
        return len(starts.read())

def call(method, path, token=None, body=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = "Bearer " + token
    content = None if body is None else json.dumps(body).encode()
    url = env("HOST") + ":" + env("PORT") + env("API_PATH") + path
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return [answer.status, json.loads(answer.read() or "null")]
    except urllib.error.HTTPError as error:
        return [error.code, json.loads(error.read() or "null")]

with open(env("INPUT_FILE"), "rb") as file:
    content = file.read()
try:
    script = json.loads(content)["kwargs"]["script"]
except ValueError:
    with open(env("OUTPUT_FILE"), "wb") as output:
        output.write(content)
else:
    exec(compile(script, "algorithm", "exec"))
"""

Value = TypeVar("Value")


def eventually(look: Callable[[], Value | None], *, within: float, what: str) -> Value:
    """Look until there is something to see."""
    deadline = time.monotonic() + within
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.1)


@dataclass(frozen=True)
class SubmittedTask:
    """A task for one organization, as its researcher sees it."""

    id: int
    client: ClientWorker
    organization_id: int | None = None
    """Whose run is meant, where there are several."""

    @property
    def run(self) -> dict[str, Any]:
        """The run of the task as the server shows it now."""
        (run,) = (
            run
            for run in self.client.runs(self.id)
            if self.organization_id in {None, run["organization"]["id"]}
        )
        return run

    def reached(self, status: str, *, within: float = RUN_SECONDS) -> dict[str, Any]:
        """Wait until the server shows the status."""
        return eventually(
            lambda: run if (run := self.run)["status"] == status else None,
            within=within,
            what=f"task {self.id} to be {status}",
        )

    def ended(self, *, within: float = RUN_SECONDS) -> dict[str, Any]:
        """Wait until the server has an end of the run."""
        return eventually(
            lambda: run if (run := self.run)["finished_at"] else None,
            within=within,
            what=f"the end of task {self.id}",
        )

    def result(self, *, within: float = RUN_SECONDS) -> Any:
        """Wait for the end, and read the result of a run that went well."""
        run = self.ended(within=within)
        assert run["status"] == "completed", f"{run['status']}: {run['log']}"
        return json.loads(self.raw_result())

    def raw_result(self) -> str:
        """Give the result as the real client decodes it."""
        answer = self.client.call("result.from_task", task_id=self.id)
        return str(answer["data"][0]["result"] or "")

    def kill(self) -> None:
        """Kill the task, as its researcher."""
        self.client.call("task.kill", id_=self.id)


@dataclass(frozen=True)
class Stage:
    """One real server with three organizations, and what runs for them."""

    server: RealServer
    client: ClientWorker
    docker: docker.DockerClient
    script: str
    average: str
    readers: str

    def submit(
        self,
        script: str = "",
        *,
        organization: str = "alpha",
        image: str | None = None,
        databases: tuple[str, ...] = (),
    ) -> SubmittedTask:
        """Send the algorithm that does as told, with what it is told."""
        task = self.client.create_task(
            image=image or self.script,
            method="script",
            arguments={"script": textwrap.dedent(script)},
            organizations=[self.server.organization_ids[organization]],
            databases=[{"label": label} for label in databases],
        )
        return SubmittedTask(task, self.client)

    def submit_method(
        self, image: str, method: str, *, databases: list[dict[str, Any]], **arguments: Any
    ) -> SubmittedTask:
        """Send an algorithm made with the official tools to alpha."""
        task = self.client.create_task(
            image=image,
            method=method,
            arguments=arguments,
            organizations=[self.server.organization_ids["alpha"]],
            databases=databases,
        )
        return SubmittedTask(task, self.client)

    def submit_raw(self, content: bytes) -> SubmittedTask:
        """Send any bytes as the input; the real client would insist on its own form."""
        organization = {
            "id": self.server.organization_ids["alpha"],
            "input": base64.b64encode(content).decode(),
        }
        answer = requests.post(
            f"{self.server.url}/task",
            headers={"Authorization": f"Bearer {self.user_token()}"},
            json={
                "name": "raw",
                "image": self.script,
                "collaboration_id": self.server.collaboration_id,
                "organizations": [organization],
                "databases": [],
            },
            timeout=30,
        )
        assert answer.status_code == 201, answer.text
        return SubmittedTask(int(answer.json()["id"]), self.client)

    def user_token(self) -> str:
        """Log alpha's user in."""
        answer = requests.post(
            f"{self.server.url}/token/user",
            json={"username": "alpha", "password": self.server.passwords["alpha"]},
            timeout=30,
        )
        return str(answer.json()["access_token"])

    def falsify(self, statement: str, *values: Any) -> None:
        """Change the server's database behind its back."""
        file = self.server.log.with_name("database.sqlite")
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as database, database:
            changed = database.execute(statement, values).rowcount
        assert changed == 1, statement

    def agent(
        self,
        *,
        organization: str = "alpha",
        databases: Mapping[str, Path] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> AgentProcess:
        """Prepare an agent of an organization, with small limits unless said otherwise; it is not started yet."""
        return AgentProcess(
            server_url=self.server.url,
            api_key=self.server.api_keys[organization],
            databases=databases,
            settings={"limits": SMALL_LIMITS} if settings is None else settings,
        )


@contextmanager
def stage() -> Iterator[Stage]:
    """Set the stage and take it down again."""
    with engine() as found, contextlib.closing(found.client()) as client:
        script = script_image(client, "interop", ALGORITHM)
        average = average_image(client)
        readers = algorithm_image(client, "readers", ALGORITHMS / "readers")
        with RealServer() as server, ClientWorker(server) as worker:
            yield Stage(server, worker, client, script, average, readers)
