"""A server that keeps inputs and results in a blob store: whole tasks, plain and encrypted, small, large and lost."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from node_agent.payload.keys import create_private_key
from tests.interop.stage import MIB, Stage, SubmittedTask
from tests.lab.agents import AgentProcess
from tests.lab.blob_store import BlobStore
from tests.lab.client import ClientWorker
from tests.lab.images import ALGORITHMS, algorithm_image
from tests.lab.samples import write_cohorts
from tests.lab.vantage6 import RealServer

pytestmark = pytest.mark.interop

ORGANIZATIONS = ("alpha", "beta")
LARGE = 200 * MIB
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
    yield from hospitals(real, cohorts, {})


@pytest.fixture(scope="module")
def sealed(real: Stage, cohorts: dict[str, Path], keys: dict[str, Path]) -> Iterator[Hospitals]:
    yield from hospitals(real, cohorts, keys)


def hospitals(real: Stage, cohorts: dict[str, Path], keys: dict[str, Path]) -> Iterator[Hospitals]:
    with ExitStack() as stack:
        store = stack.enter_context(BlobStore())
        server = stack.enter_context(RealServer(ORGANIZATIONS, encrypted=bool(keys), blob_store=store))
        agents = {name: agent(server, name, cohorts[name], keys.get(name)) for name in ORGANIZATIONS}
        for one in agents.values():
            stack.callback(one.clean_up)
            one.launch()
            stack.callback(one.stop)
        image = algorithm_image(real.docker, "cohort", ALGORITHMS / "cohort")
        for one in agents.values():
            one.wait_until_ready()
        client = stack.enter_context(ClientWorker(server, "alpha", private_key=keys.get("alpha")))
        yield Hospitals(store, server, agents, client, image)


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
    pooled = pd.concat(pd.read_csv(path) for path in cohorts.values())
    table = pd.crosstab(pooled["arm"], pooled["stage"])
    assert found["table"] == [
        [arm, stage, int(table.loc[arm, stage])] for arm in table.index for stage in table.columns
    ]
    # input and result of the central part and of two subtasks
    assert len(at.store.names() - before) == 6


def test_what_a_crashed_algorithm_wrote_is_stored_too(real: Stage, plain: Hospitals) -> None:
    task = plain.submit("script", image=real.script, script="write({'half': 1})\nsys.exit(3)")
    run = task.ended()
    assert (run["status"], task.raw_result()) == ("crashed", '{"half": 1}')
    assert "exit code 3" in run["log"]


def test_an_empty_result_needs_no_blob(real: Stage, plain: Hospitals) -> None:
    task = plain.submit("script", image=real.script, script="pass")
    assert task.ended()["status"] == "completed"
    assert task.raw_result() == ""


def test_an_input_that_vanished_fails_the_run_and_says_so(real: Stage, plain: Hospitals) -> None:
    plain.agents["alpha"].stop()
    before = plain.store.names()
    task = plain.submit("script", image=real.script, script="write(1)")
    (lost,) = plain.store.names() - before
    plain.store.delete(lost)
    plain.agents["alpha"].start()
    run = task.ended(within=90)
    assert run["status"] == "failed"
    assert "The input of this run cannot be had" in run["log"]


CREATE = """
task = client.task.create(
    collaboration=parameters["collaboration"],
    organizations=[parameters["organization"]],
    name="large",
    description="",
    image=parameters["image"],
    input_={"method": "script", "kwargs": {"script": parameters["script"], "padding": "x" * parameters["size"]}},
    databases=[],
)
result = task["id"]
"""
TURN_AROUND = """
padding = json.loads(content)["kwargs"]["padding"]
with open(env("OUTPUT_FILE"), "w") as output:
    output.write('"')
    for start in range(0, len(padding), 1 << 20):
        output.write(("%08x" % start) + padding[start + 8 : start + (1 << 20)])
    output.write('"')
"""
DIGEST = """
import hashlib
text = client.result.from_task(task_id=parameters["task"])["data"][0]["result"]
result = hashlib.sha256(text.encode()).hexdigest()
"""


def test_large_inputs_and_results_take_little_memory(real: Stage, sealed: Hospitals) -> None:
    process = Path("/proc") / str(sealed.agents["alpha"].pid)
    (process / "clear_refs").write_text("5")  # forgets the peak so far
    idle = memory(process, "VmRSS")
    task = sealed.client.run(
        CREATE,
        collaboration=sealed.server.collaboration_id,
        organization=sealed.server.organization_ids["alpha"],
        image=real.script,
        script=TURN_AROUND,
        size=LARGE,
        within=120,
    )
    run = SubmittedTask(task, sealed.client).run
    SubmittedTask(task, sealed.client).reached("completed", within=150)
    assert memory(process, "VmHWM") - idle <= ABOVE_IDLE
    assert sealed.client.run(DIGEST, task=task, within=120) == expected_digest()
    assert run["blob_storage_used"] is True


def memory(process: Path, field: str) -> int:
    (line,) = (line for line in (process / "status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def expected_digest() -> str:
    digest = hashlib.sha256(b'"')
    for start in range(0, LARGE, MIB):
        digest.update(b"%08x" % start + b"x" * (MIB - 8))
    digest.update(b'"')
    return digest.hexdigest()
