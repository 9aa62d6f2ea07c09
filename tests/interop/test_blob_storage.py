"""A server that keeps inputs and results in a blob store: whole tasks, plain and encrypted, small and large."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests

from node_agent.payload.envelope import seal_blob, unseal_blob
from node_agent.payload.keys import PrivateKey, create_private_key
from tests.interop.stage import MIB, Stage, SubmittedTask, eventually
from tests.lab.agents import AgentProcess
from tests.lab.blob_store import BlobStore, BlobStoreError
from tests.lab.client import ClientWorker
from tests.lab.images import ALGORITHMS, algorithm_image
from tests.lab.samples import write_cohorts
from tests.lab.vantage6 import RealServer
from tests.lab.venvs import VenvError

pytestmark = pytest.mark.interop

ORGANIZATIONS = ("alpha", "beta")
LARGE = 100 * MIB
ABOVE_IDLE = 60 * MIB
LIMITS = {"concurrent_runs": 2, "memory": "2GiB", "output_size": "256MiB", "run_time": "5m"}


@dataclass(frozen=True)
class Hospitals:
    """A collaboration whose server has a blob store: one agent for each organization, and alpha's researcher."""

    store: BlobStore
    server: RealServer
    agents: Mapping[str, AgentProcess]
    client: ClientWorker
    image: str

    def submit(self, method: str, *, image: str | None = None, **arguments: Any) -> SubmittedTask:
        """Ask alpha."""
        task = self.client.create_task(
            image=image or self.image,
            method=method,
            arguments=arguments,
            organizations=[self.server.organization_ids["alpha"]],
        )
        return SubmittedTask(task, self.client)

    def ended(self, task_id: int, *, within: float) -> dict[str, Any]:
        """Wait for the end of a task's run; the real client would fetch the input each time it is asked."""
        return eventually(
            lambda: run if (run := self._run(task_id))["finished_at"] else None,
            within=within,
            what=f"the end of task {task_id}",
        )

    def submit_blob(self, blob: str, image: str) -> int:
        """Ask alpha with an input that was stored before, and give the task's id."""
        body = {
            "name": "stored by hand",
            "image": image,
            "collaboration_id": self.server.collaboration_id,
            "organizations": [{"id": self.server.organization_ids["alpha"], "input": blob}],
            "databases": [],
        }
        return int(self._call("POST", "task", json=body)["id"])

    def user_token(self) -> str:
        """Log alpha's user in."""
        login = {"username": "alpha", "password": self.server.passwords["alpha"]}
        answer = requests.post(f"{self.server.url}/token/user", json=login, timeout=30)
        return str(answer.json()["access_token"])

    def _run(self, task_id: int) -> dict[str, Any]:
        (run,) = self._call("GET", f"run?task_id={task_id}")["data"]
        return dict(run)

    def _call(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.user_token()}"}
        answer = requests.request(method, f"{self.server.url}/{path}", headers=headers, timeout=30, **rest)
        assert answer.ok, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = write_cohorts(tmp_path_factory.mktemp("cohorts"))
    return {name: found[name] for name in ORGANIZATIONS}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    files = {name: folder / f"{name}.pem" for name in ORGANIZATIONS}
    for file in files.values():
        create_private_key(file)
    return files


@pytest.fixture(scope="module")
def plain(real: Stage, cohorts: dict[str, Path]) -> Iterator[Hospitals]:
    """One organization, which is enough where nobody has to read what is meant for another."""
    yield from hospitals(real, {"alpha": cohorts["alpha"]}, {})


@pytest.fixture(scope="module")
def sealed(real: Stage, cohorts: dict[str, Path], keys: dict[str, Path]) -> Iterator[Hospitals]:
    yield from hospitals(real, cohorts, keys)


def hospitals(real: Stage, cohorts: dict[str, Path], keys: dict[str, Path]) -> Iterator[Hospitals]:
    with ExitStack() as stack:
        store = stack.enter_context(started_store())
        server = stack.enter_context(RealServer(tuple(cohorts), encrypted=bool(keys), blob_store=store))
        agents = {name: agent(server, name, file, keys.get(name)) for name, file in cohorts.items()}
        for one in agents.values():
            stack.callback(one.clean_up)
            one.launch()
            stack.callback(one.stop)
        image = algorithm_image(real.docker, "cohort", ALGORITHMS / "cohort")
        for one in agents.values():
            one.wait_until_ready()
        client = stack.enter_context(ClientWorker(server, "alpha", private_key=keys.get("alpha")))
        yield Hospitals(store, server, agents, client, image)


@contextmanager
def started_store() -> Iterator[BlobStore]:
    with ExitStack() as stack:
        try:
            store = stack.enter_context(BlobStore())
        except (BlobStoreError, VenvError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: the blob store ({error})")
        yield store


def agent(server: RealServer, name: str, database: Path, key: Path | None) -> AgentProcess:
    encryption = {} if key is None else {"encryption": {"private_key": str(key)}}
    return AgentProcess(
        server_url=server.url,
        api_key=server.api_keys[name],
        databases={"default": database},
        settings={"limits": LIMITS, **encryption},
    )


@pytest.mark.parametrize("where", ["plain", "sealed"])
def test_a_central_part_gets_the_parts_of_all(
    request: pytest.FixtureRequest, where: str, cohorts: dict[str, Path]
) -> None:
    at: Hospitals = request.getfixturevalue(where)
    before = at.store.names()
    found = at.submit("cross_table", row="arm", column="stage").result(within=120)
    pooled = pd.concat(pd.read_csv(cohorts[name]) for name in at.agents)
    table = pd.crosstab(pooled["arm"], pooled["stage"])
    assert found["table"] == [
        [arm, stage, int(table.loc[arm, stage])] for arm in table.index for stage in table.columns
    ]
    # input and result of the central part and of each subtask
    assert len(at.store.names() - before) == 2 + 2 * len(at.agents)


def test_what_a_crashed_algorithm_wrote_is_stored_too(real: Stage, plain: Hospitals) -> None:
    task = plain.submit("script", image=real.script, script="write({'half': 1})\nsys.exit(3)")
    run = task.ended()
    assert (run["status"], task.raw_result()) == ("crashed", '{"half": 1}')
    assert "exit code 3" in run["log"]


def test_an_empty_result_needs_no_blob(real: Stage, plain: Hospitals) -> None:
    task = plain.submit("script", image=real.script, script="pass")
    assert task.ended()["status"] == "completed"
    assert task.raw_result() == ""


def test_large_inputs_and_results_take_little_memory(
    real: Stage, sealed: Hospitals, keys: dict[str, Path]
) -> None:
    """The algorithm writes what it reads, since it is no JSON."""
    process = Path("/proc") / str(sealed.agents["alpha"].pid)
    (process / "clear_refs").write_text("5")  # forgets the peak so far
    idle = memory(process, "VmRSS")
    key = PrivateKey.load(keys["alpha"])
    with requests.Session() as user:
        user.headers["Authorization"] = f"Bearer {sealed.user_token()}"
        stored = user.post(
            f"{sealed.server.url}/blobstream", data=seal_blob(large(), key.public), timeout=120
        )
        run = sealed.ended(sealed.submit_blob(stored.json()["uuid"], real.script), within=150)
        assert run["status"] == "completed", run["log"]
        assert memory(process, "VmHWM") - idle <= ABOVE_IDLE
        result = user.get(f"{sealed.server.url}/result/{run['id']}", timeout=30).json()["result"]
        with user.get(f"{sealed.server.url}/blobstream/{result}", stream=True, timeout=120) as answer:
            assert digest(unseal_blob(answer.iter_content(MIB), key)) == digest(large())


def large() -> Iterator[bytes]:
    return (b"%08x" % start + bytes(MIB - 8) for start in range(0, LARGE, MIB))


def digest(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def memory(process: Path, field: str) -> int:
    (line,) = (line for line in (process / "status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
