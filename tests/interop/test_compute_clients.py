"""The compute API through the clients researchers have, as their registries have them: ocean.py and ocean.js.

Their jobs run in real containers, some of them made with `ocean-runner`. No chain is anywhere near.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.domain.assets import derived_did
from tests.interop.stage import NOT_HERE, SMALL_LIMITS, eventually
from tests.lab.agents import AgentProcess
from tests.lab.engine import engine
from tests.lab.images import POOLED, python_base, runner_image
from tests.lab.ocean import OceanClient, OceanError, ocean_js_command, ocean_py_command
from tests.lab.registry import Registry, RegistryError, registry
from tests.lab.samples import HOSPITALS, write_hospitals
from tests.lab.sandbox import SandboxLab
from tests.parts import or_missing
from tests.ports import free_port

pytestmark = pytest.mark.interop

END_SECONDS = 60
SHAMEFUL = {"compute_request_bug", "compute_request_failed"}
PUBLISHER, STRANGER = "0x" + "b" * 40, "0x" + "d" * 40

COUNTING = """\
import json, os, time

with open("/data/inputs/algoCustomData.json") as file:
    asked = json.load(file)
print("counting begins", flush=True)
while asked.get("for_ever"):
    time.sleep(0.05)
(did,) = json.loads(os.environ["DIDS"])
with open(f"/data/inputs/{did}/0") as file:
    rows = len(file.readlines()) - 1
with open("/data/outputs/rows.txt", "w") as output:
    output.write(str(rows))
"""
ENDLESS = "import time\nprint('running', flush=True)\nwhile True:\n    time.sleep(0.05)\n"
DETAILS = """\
from oceanprotocol_job_details import load_job_details
from pydantic import BaseModel

class Parameters(BaseModel):
    column: str

details = load_job_details(Parameters, {"base_dir": "/data"}).read()
(details.paths.outputs / "details.txt").write_text(
    f"{details.input_parameters.column} of {len(list(details.inputs()))} files"
)
"""


@dataclass(frozen=True)
class Node:
    """An agent that offers data to whoever has its owner's grant, and the images of its algorithms."""

    agent: AgentProcess
    url: str
    files: dict[str, Path]
    """What the data sets are read from, by hospital."""
    python: dict[str, str]
    runner: dict[str, str]

    def ended(self, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return eventually(
            lambda: job if (job := look())["dateFinished"] else None,
            within=END_SECONDS,
            what=f"the end of a job\n{self.agent.log_tail()}",
        )

    def grant(self, client: OceanClient, data_set: str, *limits: str) -> str:
        """Let a client use a data set, as the owner does it."""
        consumer = client.call("address")
        done = self.agent.command(
            *("grant", "create", "--json", "--consumer", consumer, "--dataset", data_set), *limits
        )
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["id"])

    def ages(self, hospital: str) -> list[float]:
        with self.files[hospital].open(newline="") as table:
            return [float(row["age"]) for row in csv.DictReader(table)]


def did(name: str) -> str:
    return str(derived_did("clients", name))


def trusting(*algorithms: str) -> dict[str, Any]:
    return {"trusted_algorithms": [{"did": did(name)} for name in algorithms], "share_log": True}


DATA_SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "open": ("alpha", {**trusting("counting", "pooled"), "raw_algorithms": True}),
    "second": ("beta", {**trusting("pooled"), "raw_algorithms": True}),
    "closed": ("gamma", trusting("pooled")),
    "published": ("gamma", {"trusted_publishers": [STRANGER]}),
}
"""Whose patients each data set has, and whom it trusts."""


def settings(
    files: dict[str, Path], algorithms: dict[str, dict[str, str]], *, host: str, port: int
) -> dict[str, Any]:
    return {
        "limits": {**SMALL_LIMITS, "memory": "128MiB"},
        "databases": [
            {"label": label, "type": "csv", "uri": str(files[whose])}
            for label, (whose, _) in DATA_SETS.items()
        ],
        "policy": {"algorithms": [f"{host}/*"]},
        "compute_api": {
            "listen": f"127.0.0.1:{port}",
            "access": "grants",
            # a test looks more often than a person would, and the clients ask three things for each look
            "requests_per_second": 200,
            "data_sets": [
                {"label": label, "did": did(label), **trust} for label, (_, trust) in DATA_SETS.items()
            ],
            "algorithms": [
                {"did": did(name), "owner": PUBLISHER, **entry} for name, entry in algorithms.items()
            ],
        },
    }


def pushed(shop: Registry, client: docker.DockerClient, tag: str, name: str) -> dict[str, str]:
    found = shop.push(client, tag, f"clients/{name}:1")
    return {"image": found.reference.rpartition(":")[0], "checksum": found.digest}


def forget(client: docker.DockerClient, container: dict[str, str]) -> None:
    """Take away what the agent pulled: the registry will have another port next time."""
    with suppress(docker.errors.ImageNotFound):
        client.images.remove(f"{container['image']}@{container['checksum']}")


def catalogued(container: dict[str, str], entrypoint: str, **more: str) -> dict[str, str]:
    return {"image": container["image"], "digest": container["checksum"], "entrypoint": entrypoint, **more}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    code = folder / "counting.py"
    code.write_text(COUNTING)
    files = write_hospitals(folder)
    port = free_port()
    with ExitStack() as stack:
        with or_missing(*NOT_HERE, RegistryError):
            client = stack.enter_context(closing(stack.enter_context(engine()).client()))
            shop = stack.enter_context(registry())
            python = pushed(shop, client, python_base(client), "python")
            runner = pushed(shop, client, runner_image(client), "pooled")
        for image in (python, runner):
            stack.callback(forget, client, image)
        lab = stack.enter_context(SandboxLab(("alpha",)))
        algorithms = {
            "counting": catalogued(python, "python3 -S $ALGO", code=str(code)),
            "pooled": catalogued(runner, f"python3 {POOLED}"),
        }
        agent = AgentProcess(
            server_url=lab.url,
            api_key=lab.api_keys["alpha"],
            settings=settings(files, algorithms, host=shop.host, port=port),
        )
        stack.enter_context(agent)
        yield Node(agent, f"http://127.0.0.1:{port}", files, python, runner)
        assert not [line for line in agent.log_lines() if line.get("event") in SHAMEFUL]


@pytest.fixture(scope="module")
def ocean_py(node: Node) -> Iterator[OceanClient]:
    with or_missing(*NOT_HERE):
        command = ocean_py_command()
    with OceanClient(command, node.url) as client:
        for data_set in ("open", "second"):
            node.grant(client, data_set)
        yield client


@pytest.fixture(scope="module")
def ocean_js(node: Node) -> Iterator[OceanClient]:
    with or_missing(*NOT_HERE):
        command = ocean_js_command()
    with OceanClient(command, node.url) as client:
        for data_set in ("open", "second"):
            node.grant(client, data_set)
        yield client


def own_code(container: dict[str, str], code: str, *, entrypoint: str = "python3 $ALGO") -> dict[str, Any]:
    section = {"entrypoint": entrypoint, "tag": "", **container}
    return {"rawcode": code, "language": "python", "version": "1", "container": section}


def started(client: OceanClient, **wanted: Any) -> dict[str, str]:
    """Start a job with ocean.py as its documentation does: first paying, which takes a grant here."""
    named = {name: value for name, value in wanted.items() if name != "custom"}
    order, algorithm_order = client.call("pay", environment="default", **named)
    assert order
    assert bool(algorithm_order) is ("algorithm" in wanted)
    job = client.call("start", environment="default", order=order, **wanted)
    return {"data_set": wanted["data_set"], "job": job}


# --- ocean.py ----------------------------------------------------------------------------------------------------


def test_ocean_py_takes_the_node_for_a_provider_and_finds_its_free_environment(
    ocean_py: OceanClient,
) -> None:
    assert ocean_py.call("is_valid")
    (environment,) = ocean_py.call("environments")
    assert ocean_py.call("free_environment") == environment["id"] == "default"


def test_ocean_py_runs_an_algorithm_of_the_catalogue_and_reads_result_and_log(
    node: Node, ocean_py: OceanClient
) -> None:
    named = started(ocean_py, data_set=did("open"), algorithm=did("counting"), custom={"for_ever": False})
    ended = node.ended(lambda: ocean_py.call("status", **named))
    assert (ended["status"], ended["statusText"], ended["ok"]) == (70, "Job finished", True), ended
    assert [(entry["filename"], entry["type"]) for entry in ended["results"]] == [
        ("rows.txt", "output"),
        ("algorithm.log", "algorithmLog"),
    ]
    assert ocean_py.call("result", **named, index=0) == str(HOSPITALS["alpha"])
    assert ocean_py.call("logs", **named) == ["counting begins\n"]


def test_ocean_py_brings_its_own_code_and_stops_and_deletes_it(node: Node, ocean_py: OceanClient) -> None:
    named = started(ocean_py, data_set=did("open"), code=own_code(node.python, ENDLESS))
    eventually(
        lambda: ocean_py.call("status", **named)["status"] == 40, within=END_SECONDS, what="a running job"
    )
    assert ocean_py.call("stop", **named)["stopreq"] == 1
    stopped = node.ended(lambda: ocean_py.call("status", **named))
    assert (stopped["status"], stopped["statusText"], stopped["stopreq"]) == (70, "Job stopped", 1)
    assert ocean_py.call("delete", **named)["removed"] == 1
    with pytest.raises(OceanError, match="IndexError"):
        ocean_py.call("status", **named)


def test_what_ocean_py_pays_with_is_a_grant_of_the_owner_and_can_be_used_up(
    node: Node, ocean_py: OceanClient
) -> None:
    asked = {"data_set": did("closed"), "environment": "default", "algorithm": did("pooled")}
    with pytest.raises(OceanError, match=r"'dataset\.serviceId': 'order_invalid'"):
        ocean_py.call("pay", **asked)
    grant = node.grant(ocean_py, "closed", "--uses", "1")
    assert ocean_py.call("pay", **asked) == [grant, grant]
    job = ocean_py.call("start", **asked, order=grant)
    assert ocean_py.call("status", data_set=did("closed"), job=job)["agreementId"] == grant
    for call in (("pay", {}), ("start", {"order": grant})):
        with pytest.raises(OceanError, match=r"'dataset\.serviceId': 'order_invalid'"):
            ocean_py.call(call[0], **asked, **call[1])


@pytest.mark.parametrize(
    ("data_set", "resource"),
    [("second", "not_trusted_algo"), ("published", "not_trusted_algo_publisher")],
)
def test_ocean_py_is_told_why_an_algorithm_is_not_trusted(
    ocean_py: OceanClient, data_set: str, resource: str
) -> None:
    asked = {"data_set": did(data_set), "environment": "default", "algorithm": did("counting")}
    for call in ("pay", "start"):
        with pytest.raises(OceanError, match=rf"DataProviderException: .*'dataset': '{resource}'"):
            ocean_py.call(call, **asked)


def test_ocean_py_is_told_that_a_data_set_takes_no_code_of_consumers(
    node: Node, ocean_py: OceanClient
) -> None:
    asked = {"data_set": did("closed"), "environment": "default", "code": own_code(node.python, ENDLESS)}
    for call in ("pay", "start"):
        with pytest.raises(OceanError, match=r"DataProviderException: .*'dataset': 'no_raw_algo_allowed'"):
            ocean_py.call(call, **asked)


# --- ocean.js ----------------------------------------------------------------------------------------------------


def test_ocean_js_finds_an_environment_that_is_free(ocean_js: OceanClient) -> None:
    assert ocean_js.call("is_valid")
    (environment,) = ocean_js.call("environments")
    assert environment["id"] == "default"
    assert environment["free"]["maxJobDuration"] > 0


def test_ocean_js_follows_the_log_of_a_running_job_and_stops_it(node: Node, ocean_js: OceanClient) -> None:
    job = ocean_js.call(
        "start",
        environment="default",
        data_sets=[did("open")],
        algorithm=did("counting"),
        custom={"for_ever": True},
    )["jobId"]
    eventually(
        lambda: ocean_js.call("status", job=job)["status"] == 40, within=END_SECONDS, what="a running job"
    )
    assert ocean_js.call("log", job=job, until="\n") == "counting begins\n"
    assert ocean_js.call("status", job=job)["dateFinished"] is None
    assert ocean_js.call("stop", job=job)["jobId"] == job
    stopped = node.ended(lambda: ocean_js.call("status", job=job))
    assert (stopped["status"], stopped["statusText"]) == (70, "Job stopped")


def test_a_token_of_ocean_js_stands_for_its_signature_until_it_is_taken_back(
    node: Node, ocean_js: OceanClient
) -> None:
    token = ocean_js.call("create_token")
    start = {"environment": "default", "data_sets": [did("open")], "code": own_code(node.python, ENDLESS)}
    job = ocean_js.call("start", **start, token=token)["jobId"]
    assert ocean_js.call("status", job=job, token=token)["jobId"] == job
    ocean_js.call("stop", job=job, token=token)
    assert node.ended(lambda: ocean_js.call("status", job=job, token=token))["status"] == 70
    assert ocean_js.call("invalidate_token", token=token) == {"success": True}
    with pytest.raises(OceanError, match="Token is deleted"):
        ocean_js.call("start", **start, token=token)


# --- algorithms made with the packages for this contract -----------------------------------------------------------


def test_an_algorithm_made_with_ocean_runner_reads_two_data_sets_and_its_parameters(
    node: Node, ocean_js: OceanClient
) -> None:
    job = ocean_js.call(
        "start",
        environment="default",
        data_sets=[did("open"), did("second")],
        algorithm=did("pooled"),
        custom={"column": "age", "digits": 3},
    )["jobId"]
    ended = node.ended(lambda: ocean_js.call("status", job=job))
    assert ended["status"] == 70, node.agent.log_tail()
    result = ocean_js.call("result", job=job, index=0)
    ages = [*node.ages("alpha"), *node.ages("beta")]
    assert json.loads(result) == {
        "data_sets": sorted(name.removeprefix("did:op:") for name in (did("open"), did("second"))),
        "names": ["open", "second"],
        "count": len(ages),
        "mean": round(sum(ages) / len(ages), 3),
    }
    assert ocean_js.call("result", job=job, index=0, offset=2) == result[2:]


def test_own_code_reads_the_details_of_its_job_with_their_package(node: Node, ocean_js: OceanClient) -> None:
    job = ocean_js.call(
        "start",
        environment="default",
        data_sets=[did("open"), did("second")],
        code=own_code(node.runner, DETAILS),
        custom={"column": "weight"},
    )["jobId"]
    ended = node.ended(lambda: ocean_js.call("status", job=job))
    assert ended["status"] == 70, node.agent.log_tail()
    assert ocean_js.call("result", job=job, index=0) == "weight of 2 files"


def test_parameters_that_an_algorithm_cannot_take_end_its_job_as_failed(
    node: Node, ocean_py: OceanClient
) -> None:
    named = started(ocean_py, data_set=did("second"), algorithm=did("pooled"), custom={"digits": "many"})
    ended = node.ended(lambda: ocean_py.call("status", **named))
    assert (ended["status"], ended["terminationDetails"]["exitCode"]) == (41, 1)
    (log,) = ocean_py.call("logs", **named)
    assert "Validation failed for input parameters" in log
